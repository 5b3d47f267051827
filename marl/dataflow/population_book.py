"""Which lane of a group of worlds plays which episode of a task, and what came of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.errors import RunError
from marl.core.host_rows import HostWorlds
from marl.core.types import EpisodeResult
from marl.dataflow.population_tasks import Task

MAX_STEPS = 1_000_000  # an episode longer than this has no end
ATTEMPTS = 2  # at an episode whose world fails, before it counts as it is


class Book:
    """Episodes are numbered individual by individual; -1 is none.

    pair: by lane, the episode in play.  next: the one that begins when the lane's world moves.
    """

    def __init__(self, worlds: HostWorlds, task: Task, lanes: int) -> None:
        self.episodes = task.episodes
        self.total = task.count * task.episodes
        self._shape = (len(jax.tree.leaves(task.offspring)[0]), len(task.keys))
        self._count = task.count
        self._waiting = deque(range(self.total))
        self._tries = np.zeros(self.total, np.int32)
        self.pair = np.full(lanes, -1)
        self.next = np.full(lanes, -1)
        self._ended = 0
        self._roles = worlds.roles
        self._returns = {r.name: np.zeros((lanes, r.size), np.float32) for r in worlds.roles}
        self._length, self._agent_steps = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
        self._all_returns = {r.name: np.zeros((self.total, r.size), np.float32) for r in worlds.roles}
        self._all_length, self._all_agent_steps = np.zeros(self.total, np.int32), np.zeros(self.total, np.int32)

    @property
    def done(self) -> bool:
        return self._ended == self.total

    def take_first(self) -> None:
        """Give every lane its first episode."""
        for lane in range(len(self.next)):
            self._take(lane)

    def _take(self, lane: int) -> None:
        self.next[lane] = self._waiting.popleft() if self._waiting else -1

    def acting(self, rows: Mapping[tuple[str, ...], NDArray[Any]]) -> NDArray[np.int32]:
        """How many agents act on the present row, `[lanes]`."""
        total = np.zeros(len(self.pair), np.int32)
        for role in self._roles:
            acts = rows["alive", role.name]
            if ("acting", role.name) in rows:
                acts = acts & rows["acting", role.name]
            total += acts.sum(-1, dtype=np.int32)
        return total

    def landed(
        self,
        rows: Mapping[tuple[str, ...], NDArray[Any]],
        last: NDArray[np.bool_],
        fault: NDArray[np.bool_],
        acting: NDArray[np.int32],
    ) -> NDArray[np.bool_]:
        """Take the rows that the worlds moved to. Returns the lanes in which an episode has just begun."""
        going = (self.pair >= 0) & ~fault
        began = (self.next >= 0) & ~fault
        for role, total in self._returns.items():
            total += rows["reward", role] * going[:, None]
        self._length += going
        self._agent_steps += acting * going
        if self._length.max(initial=0) > MAX_STEPS:
            raise RunError(f"an episode went on for {MAX_STEPS} steps; give env.max_steps")
        for lane in np.flatnonzero(fault):
            self._failed(int(lane))
        for lane in np.flatnonzero(going & last):
            self._keep(int(lane))
            self._take(int(lane))
        for lane in np.flatnonzero(began):
            self._clear(int(lane))
            self.pair[lane], self.next[lane] = self.next[lane], -1
        return began

    def _failed(self, lane: int) -> None:
        pair = int(max(self.pair[lane], self.next[lane]))
        if pair < 0:
            return
        self._tries[pair] += 1
        if self._tries[pair] < ATTEMPTS:
            self._clear(lane)
            self.next[lane] = pair
        else:
            self.pair[lane] = pair
            self._keep(lane)
            self._take(lane)

    def _keep(self, lane: int) -> None:
        pair = self.pair[lane]
        for role, total in self._returns.items():
            self._all_returns[role][pair] = total[lane]
        self._all_length[pair], self._all_agent_steps[pair] = self._length[lane], self._agent_steps[lane]
        self._ended += 1
        self._clear(lane)

    def _clear(self, lane: int) -> None:
        self.pair[lane] = -1
        for total in self._returns.values():
            total[lane] = 0.0
        self._length[lane] = self._agent_steps[lane] = 0

    def result(self) -> EpisodeResult:
        """Results of all episodes, leaves `[C, E, ...]`; zeros for the copies that fill a task up."""

        def spread(x: NDArray[Any]) -> NDArray[Any]:
            whole = np.zeros((*self._shape, *x.shape[1:]), x.dtype)
            whole[: self._count, : self.episodes] = x.reshape(self._count, self.episodes, *x.shape[1:])
            return whole

        returns = {role: spread(x) for role, x in self._all_returns.items()}
        make: Any = EpisodeResult  # of NumPy arrays
        result: EpisodeResult = make(returns, spread(self._all_length), spread(self._all_agent_steps), {})
        return result
