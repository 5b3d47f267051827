"""A look at the object store of every node, every few seconds: how full it is, and whether it spills to disk."""

from __future__ import annotations

import contextlib
from typing import Any

from marl.dataflow.ray_crew import now

LOOK_S = 3.0  # between two looks
FULL = 0.7  # of a store that is taken: no more rollouts are begun until there is room; Ray spills beyond 0.8
_ANSWER_S = 1.0


class StoreWatch:
    """share: of all nodes' stores together that is in use.  spilled: bytes that were ever written to disk.  full:
    whether no more rollouts should be begun. All are of the last look; a cluster that does not say is neither full nor
    spilling."""

    def __init__(self) -> None:
        self.share, self.spilled = 0.0, 0
        self._looked = 0.0
        self._was_full = False

    @property
    def full(self) -> bool:
        return self.share > FULL

    def look(self) -> list[tuple[str, str]]:
        """(event, words) of what became worse since the last look, which is not repeated within seconds."""
        if now() - self._looked < LOOK_S:
            return []
        self._looked = now()
        stats = _stats()
        if stats is None:
            return []
        events = []
        capacity = max(stats.object_store_bytes_avail, 1)
        self.share = stats.object_store_bytes_used / capacity
        if stats.spilled_bytes_total > self.spilled:
            more = (stats.spilled_bytes_total - self.spilled) / 2**20
            words = f"{more:.1f} MiB went from the object store to disk; expected a larger dataflow.object_store"
            events.append(("store spilling", words))
            self.spilled = stats.spilled_bytes_total
        if self.full and not self._was_full:
            words = (
                f"{self.share:.0%} of {capacity / 2**20:.0f} MiB are taken; no rollouts are begun until there is room"
            )
            events.append(("store full", words))
        self._was_full = self.full
        return events

    def tags(self) -> dict[str, float]:
        """For a row of metrics."""
        return {"flow/store_share": self.share, "flow/store_spilled_mb": self.spilled / 2**20}


def _stats() -> Any:
    """Ray's own numbers of all nodes together, or None. There is no public way to ask for them without a dashboard."""
    with contextlib.suppress(Exception):
        from ray._private.internal_api import get_memory_info_reply
        from ray._private.state import state

        reply = get_memory_info_reply(state, timeout_seconds=_ANSWER_S)  # type: ignore[no-untyped-call]
        return reply.store_stats
    return None
