"""What became of the chunks that actors brought: taken by the learner, or lost and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_KINDS = ("chunks", "frames")


class Ledger:
    """Chunks and their env steps (`frames`). Once nothing is under way, `offered == taken + lost` in both, and `taken`
    is what the learner has trained on and what its buffers hold.

    offered: what actors brought.  taken: what the learner has accepted, in the history that it is in now.  lost: what
    came too late, was damaged or refused, or went to a learner that was lost or set back before the next checkpoint.
    learners, rollbacks: how often that happened.
    """

    def __init__(self) -> None:
        self.offered = dict.fromkeys(_KINDS, 0)
        self.taken = dict.fromkeys(_KINDS, 0)
        self.lost = dict.fromkeys(_KINDS, 0)
        self.learners = self.rollbacks = 0

    @staticmethod
    def _add(to: dict[str, int], chunks: int, frames: int) -> None:
        to["chunks"] += chunks
        to["frames"] += frames

    def offer(self, frames: Mapping[int, int]) -> None:
        """Chunks came. frames: by ticket number."""
        self._add(self.offered, len(frames), sum(frames.values()))

    def settle(self, frames: Mapping[int, int], accepted: set[int]) -> None:
        """The learner has answered for these chunks."""
        taken = {number: steps for number, steps in frames.items() if number in accepted}
        self._add(self.taken, len(taken), sum(taken.values()))
        self.lose({number: steps for number, steps in frames.items() if number not in accepted})

    def lose(self, frames: Mapping[int, int]) -> None:
        """Nobody will train on these."""
        self._add(self.lost, len(frames), sum(frames.values()))

    def go_back(self, taken: Mapping[str, int]) -> dict[str, int]:
        """The learner is again where it had taken only this much; what was offered beside is lost. Returns how much
        more is lost than before."""
        before = dict(self.lost)
        self.taken = {kind: int(taken[kind]) for kind in _KINDS}
        self.lost = {kind: self.offered[kind] - self.taken[kind] for kind in _KINDS}
        return {kind: self.lost[kind] - before[kind] for kind in _KINDS}

    @property
    def exact(self) -> bool:
        """Whether everything is accounted for; only while nothing is under way."""
        return all(self.offered[kind] == self.taken[kind] + self.lost[kind] for kind in _KINDS)

    def tags(self) -> dict[str, float]:
        """For a row of metrics."""
        counted = {f"flow/lost_{kind}": float(n) for kind, n in self.lost.items()}
        return counted | {"flow/lost_learners": float(self.learners), "flow/rollbacks": float(self.rollbacks)}

    def snapshot(self) -> dict[str, Any]:
        """A plain tree."""
        numbers = [[which[kind] for kind in _KINDS] for which in (self.offered, self.taken, self.lost)]
        return {
            "chunks": np.array(numbers, np.int64),
            "events": np.array([self.learners, self.rollbacks], np.int64),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `snapshot`."""
        rows = [dict(zip(_KINDS, row, strict=True)) for row in stored["chunks"].tolist()]
        self.offered, self.taken, self.lost = rows
        self.learners, self.rollbacks = stored["events"].tolist()
