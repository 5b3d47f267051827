"""A world that waits, as an external simulator makes an actor wait: its step sleeps and costs next to nothing else."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np

EPISODE = 100


class WaitingWorld(gymnasium.Env[np.ndarray[Any, Any], np.int64]):
    """Constant rows, episodes of EPISODE steps. wait_s: what a step takes, without using a processor."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, wait_s: float = 0.005) -> None:
        self.wait_s = wait_s
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> Any:
        time.sleep(self.wait_s)
        self.t += 1
        return np.zeros(4, np.float32), 1.0, False, self.t == EPISODE, {}
