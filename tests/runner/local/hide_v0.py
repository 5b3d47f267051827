"""A PettingZoo world as a user would write it: two hiders choose a corner, a seeker looks into one."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

HINT = 0.8  # how often the seeker's hint is true


class HideAndSeek(ParallelEnv):
    """hider_0 and hider_1 see where the seeker looked last, the seeker sees a hint; `rounds` of it are an episode.

    A hider gets 1 where it was not found, the seeker 1 for each that it found.
    """

    metadata: dict[str, Any] = {"name": "hide_v0", "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, rounds: int = 6, corners: int = 3) -> None:
        self.possible_agents = ["hider_0", "hider_1", "seeker"]
        self.render_mode = render_mode
        self.rounds, self.corners = rounds, corners
        sizes = {"hider_0": corners + 1, "hider_1": corners + 1, "seeker": corners}
        self.observations = {agent: spaces.Box(0.0, 1.0, (size,), np.float32) for agent, size in sizes.items()}
        self.actions = {agent: spaces.Discrete(corners) for agent in sizes}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observations[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.actions[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.round, self.looked = 0, int(self.random.integers(self.corners))
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.round += 1
        self.looked = int(actions["seeker"])
        found = {agent: int(actions[agent]) == self.looked for agent in ("hider_0", "hider_1")}
        rewards = {**{agent: float(not there) for agent, there in found.items()}, "seeker": float(sum(found.values()))}
        over = self.round == self.rounds
        acted, self.agents = self.agents, [] if over else self.agents
        return (
            self._seen(),
            rewards,
            dict.fromkeys(acted, False),
            dict.fromkeys(acted, over),
            {agent: {} for agent in acted},
        )

    def render(self) -> Any:
        picture = np.full((16, 16 * self.corners, 3), 40, np.uint8)
        picture[:, 16 * self.looked : 16 * (self.looked + 1)] = 220
        picture[: 2 * self.round, ::8] = 120
        return picture

    def _seen(self) -> dict[str, Any]:
        looked = np.eye(self.corners, dtype=np.float32)[self.looked]
        clock = np.asarray([self.round / self.rounds], np.float32)
        hint = looked if self.random.random() < HINT else np.zeros(self.corners, np.float32)
        hider = np.concatenate([looked, clock])
        return {"hider_0": hider, "hider_1": hider.copy(), "seeker": hint}


parallel_env = HideAndSeek
