"""A world in Python that is small and has everything: two roles, episodes of random length, and faults on demand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from marl.core.host import HostRow
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Discrete


class TinyHost:
    """Each agent sees three numbers drawn from the episode's seed and gets 1 for action 0 and its first number else.

    fault: `raise`, `nan`, `huge`, `hang` or `die` at step `at` of episodes whose seed is a multiple of `every`.
    """

    def __init__(
        self, fault: str = "", at: int = 2, every: int = 3, restless: bool = False, render: bool = False
    ) -> None:
        self.name = "tiny"
        self.roles = (
            RoleSpec("one", 2, Box((3,)), Discrete(2)),
            RoleSpec("two", 1, Box((3,)), Discrete(3)),
        )
        self.max_steps = 9
        self.masked = frozenset({"two"})
        self.turn_based = False
        self.fault, self.at, self.every, self.restless = fault, at, every, restless

    def reset(self, seed: int, row: HostRow) -> None:
        self.seed = seed
        self.random = np.random.default_rng(None if self.restless else seed)
        self.length = int(self.random.integers(4, self.max_steps + 1))
        self.t = 0
        self._write(row)

    def _write(self, row: HostRow) -> None:
        for role in self.roles:
            row.obs[role.name][:] = self.random.random((role.size, 3))
            row.reward[role.name][:] = 0.0
            row.terminated[role.name][:] = False
            row.truncated[role.name][:] = False
            row.alive[role.name][:] = True
        row.action_mask["two"][:] = [True, True, False]

    def step(self, actions: dict[str, Any], row: HostRow) -> bool:
        self.t += 1
        broken = self.fault and self.t == self.at and self.seed % self.every == 0
        if broken and self.fault == "raise":
            raise ValueError("the tiny world broke")
        if broken and self.fault == "hang":
            time.sleep(60)
        if broken and self.fault == "die":
            import os

            os._exit(7)
        assert int(actions["two"][0]) < 2, "the mask was not kept"
        seen = {name: array.copy() for name, array in row.obs.items()}
        self._write(row)
        for name, chosen in actions.items():
            row.reward[name][:] = np.where(chosen == 0, 1.0, seen[name][:, 0])
        if broken and self.fault == "nan":
            row.obs["one"][1, 2] = np.nan
        if broken and self.fault == "huge":  # finite, but no loss of it is
            row.reward["one"][:] = 3e38
        last = self.t >= self.length
        if last and self.seed % 2:
            for role in self.roles:
                row.terminated[role.name][:] = True
        elif last:
            for role in self.roles:
                row.truncated[role.name][:] = True
        return last

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        pass
