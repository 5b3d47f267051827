"""A world that costs next to nothing, or sleeps for as long as it is told. Importing this imports no JAX."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from marl.core.host import HostRow
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Discrete

EPISODE = 100


class FreeWorld:
    """One agent, constant rows, episodes of EPISODE steps. sleep_s: what a step takes, without using a processor."""

    name = "free"
    roles = (RoleSpec("agent", 1, Box((4,)), Discrete(2), None, EPISODE),)
    max_steps = EPISODE
    masked: frozenset[str] = frozenset()
    turn_based = False

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.t = 0

    def reset(self, seed: int, row: HostRow) -> None:
        self.t = 0
        row.alive["agent"][0] = True
        row.reward["agent"][0] = 0.0

    def step(self, actions: dict[str, Any], row: HostRow) -> bool:
        if self.sleep_s:
            time.sleep(self.sleep_s)
        self.t += 1
        row.reward["agent"][0] = 1.0
        row.truncated["agent"][0] = last = self.t == EPISODE
        return last

    def render(self) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def close(self) -> None: ...


def make(sleep_s: float = 0.0, render: bool = False) -> FreeWorld:
    return FreeWorld(sleep_s)
