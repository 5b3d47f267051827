"""Two gatherers on a small field. Whoever walks onto the apple eats it, and another one grows somewhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

MOVES = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])  # stay, up, down, left, right, as (x, y)
GROUND, APPLE = (58, 92, 66), (220, 60, 50)
COATS = {"gatherer_0": (240, 200, 80), "gatherer_1": (90, 150, 240)}
TILE = 24  # pixels


class MyWorld(ParallelEnv[str, NDArray[np.float32], int]):
    """size: of the field, in cells a side.  apples: how many to eat.  max_cycles: longest episode, in steps.

    Reward 1 for an apple. The episode ends by itself with the last apple (termination), or is cut off after
    `max_cycles` steps (truncation).
    """

    metadata = {"name": "my_world", "render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, size: int = 5, apples: int = 10, max_cycles: int = 50, render_mode: str | None = None) -> None:
        self.size, self.apples, self.max_cycles, self.render_mode = size, apples, max_cycles, render_mode
        self.possible_agents = list(COATS)
        self.agents: list[str] = []
        # One object an agent, made once: what is seeded must be what is used.
        self._observation_spaces = {name: spaces.Box(-1.0, 1.0, (4,), np.float32) for name in self.possible_agents}
        self._action_spaces: dict[str, spaces.Discrete] = {
            name: spaces.Discrete(len(MOVES)) for name in self.possible_agents
        }
        self._random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Begin an episode. All that is random comes from `seed`, so an episode can be played again."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self._at = {agent: self._anywhere() for agent in self.agents}
        self._apple = self._anywhere()
        self._eaten = self._cycle = 0
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[Any, Any, Any, Any, Any]:
        """Everybody moves, in an order drawn anew each time; the first one on the apple eats it."""
        self._cycle += 1
        playing = self.agents
        rewards = dict.fromkeys(playing, 0.0)
        for index in self._random.permutation(len(playing)):
            agent = playing[index]
            self._at[agent] = np.clip(self._at[agent] + MOVES[actions[agent]], 0, self.size - 1)
            if (self._at[agent] == self._apple).all():
                rewards[agent] += 1.0
                self._eaten += 1
                self._apple = self._anywhere()
        over = self._eaten >= self.apples
        cut = self._cycle >= self.max_cycles and not over
        terminations, truncations = dict.fromkeys(playing, over), dict.fromkeys(playing, cut)
        observations = self._observations()
        infos: dict[str, Any] = {agent: {} for agent in playing}
        if over or cut:
            self.agents = []  # `agents` are those that act next; what they got for this step is returned all the same
        return observations, rewards, terminations, truncations, infos

    def _anywhere(self) -> NDArray[np.int64]:
        return self._random.integers(0, self.size, 2)

    def _observations(self) -> dict[str, NDArray[np.float32]]:
        """Where the apple and the other gatherer are, seen from each gatherer, in widths of the field."""
        seen = {}
        for agent, other in zip(self.agents, reversed(self.agents), strict=True):
            offsets = np.concatenate([self._apple - self._at[agent], self._at[other] - self._at[agent]])
            seen[agent] = (offsets / self.size).astype(np.float32)
        return seen

    def render(self) -> NDArray[np.uint8]:
        """The field as an RGB picture, `[height, width, 3]`. Training never asks for it."""
        picture = np.full((self.size * TILE, self.size * TILE, 3), GROUND, np.uint8)
        for (x, y), colour in [(self._apple, APPLE), *((self._at[agent], COATS[agent]) for agent in self._at)]:
            picture[y * TILE + 3 : (y + 1) * TILE - 3, x * TILE + 3 : (x + 1) * TILE - 3] = colour
        return picture

    def close(self) -> None:
        """Nothing is held open."""
