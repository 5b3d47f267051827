"""Small worlds of every kind, as somebody would write them. Loaded by path, so nothing here is imported by name."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import AgentSelector

LONG = 5


class Meeting(ParallelEnv):
    """Two scouts and a boss, with unlike spaces: a float64 Box with a Discrete from 1, and a Dict with a Box whose
    bounds differ. Everybody sees the step and what was done last. `state` is the step."""

    metadata: dict[str, Any] = {"name": "meeting", "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, steps: int = LONG, bonus: float = 0.0) -> None:
        self.possible_agents = ["scout_0", "scout_1", "boss"]
        self.render_mode = render_mode
        self.steps, self.bonus = steps, bonus
        self.scout = spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(3, start=1)
        self.boss = (
            spaces.Dict({"where": spaces.Discrete(4), "what": spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 1)))}),
            spaces.Box(np.asarray([0.0, -10.0], np.float32), np.asarray([1.0, 10.0], np.float32)),
        )
        self.state_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.received: list[dict[str, Any]] = []

    def observation_space(self, agent: str) -> Any:
        return self.boss[0] if agent == "boss" else self.scout[0]

    def action_space(self, agent: str) -> Any:
        return self.boss[1] if agent == "boss" else self.scout[1]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        self.t, self.random = 0, np.random.default_rng(seed)
        self.start = float(self.random.random())
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.received.append(dict(actions))
        self.t += 1
        over = self.t == self.steps
        rewards = {"scout_0": 1.0 + self.bonus, "scout_1": np.float32(2.0), "boss": 3}
        everybody = self.agents
        self.agents = [] if over else everybody
        return (
            self._observations(),
            rewards,
            dict.fromkeys(everybody, False),
            dict.fromkeys(everybody, over),
            {agent: {} for agent in everybody},
        )

    def state(self) -> Any:
        return np.asarray([self.t], np.float32)

    def render(self) -> Any:
        return np.full((4, 6, 3), 10 * self.t, np.uint8)

    def _observations(self) -> dict[str, Any]:
        seen = {"where": self.t % 4, "what": (np.asarray([1, 0], np.int8), np.asarray([0.5], np.float32))}
        scouts = {f"scout_{i}": np.asarray([self.t, self.start + i]) for i in range(2)}
        return {**scouts, "boss": seen}


class Party(ParallelEnv):
    """guest_0 dies at step 2, guest_1 is truncated at step 3, guest_2 joins at step 2 and stays until the end."""

    metadata: dict[str, Any] = {"name": "party"}  # noqa: RUF012
    render_mode = None

    def __init__(self) -> None:
        self.possible_agents = ["guest_0", "guest_1", "guest_2"]
        self.observations = spaces.Box(-1.0, 100.0, (1,), np.float32)
        self.actions = spaces.Discrete(2)

    def observation_space(self, agent: str) -> Any:
        return self.observations

    def action_space(self, agent: str) -> Any:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, ["guest_0", "guest_1"]
        return self._observed(self.agents), {}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents)
        self.t += 1
        acted = list(self.agents)
        died = {agent: agent == "guest_0" and self.t == 2 for agent in acted}
        cut = {agent: (agent == "guest_1" and self.t == 3) or self.t == LONG for agent in acted}
        self.agents = [agent for agent in acted if not died[agent] and not cut[agent]]
        if self.t == 2:
            self.agents.append("guest_2")
        return self._observed([*acted, *self.agents]), dict.fromkeys(acted, 1.0), died, cut, {}

    def _observed(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.asarray([10 * (1 + int(agent[-1])) + self.t], np.float32) for agent in agents}


class Dice(AECEnv):
    """Three players in turn; a throw pays everybody, so that rewards come between one's turns. player_2 drops out after
    its second turn. The mask allows one action more at every turn."""

    metadata: dict[str, Any] = {"name": "dice", "is_parallelizable": False}  # noqa: RUF012
    render_mode = None

    def __init__(self, rounds: int = 4) -> None:
        self.possible_agents = ["player_0", "player_1", "player_2"]
        self.rounds = rounds
        mask = spaces.Box(0, 1, (4,), np.int8)
        seen = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observations = spaces.Dict({"observation": seen, "action_mask": mask})
        self.actions = spaces.Discrete(4)

    def observation_space(self, agent: str) -> Any:
        return self.observations

    def action_space(self, agent: str) -> Any:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.selector = AgentSelector(self.agents)
        self.agent_selection = self.selector.reset()
        self.turn = 0

    def observe(self, agent: str) -> Any:
        allowed = 1 + self.turn % 4 if agent == self.agent_selection else 0
        return {
            "observation": np.asarray([self.turn, int(agent[-1])], np.float32),
            "action_mask": (np.arange(4) < allowed).astype(np.int8),
        }

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        assert action <= self.turn % 4, "the mask forbids it"
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {a: float(self.random.integers(-5, 6)) + 10.0 * action * (a == agent) for a in self.agents}
        self.turn += 1
        order = list(self.agents)
        self.agent_selection = order[(order.index(agent) + 1) % len(order)]
        if agent == "player_2" and self.turn == 6:
            self.terminations[agent] = True
        if self.turn >= 3 * self.rounds:
            self.truncations = dict.fromkeys(self.agents, True)
        self._accumulate_rewards()
        self._deads_step_first()


class Masked(gymnasium.Env):
    """One number to guess; which ones are allowed is in `info`."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return 0, {"action_mask": np.asarray([1, 0, 1], np.int8)}

    def step(self, action: Any) -> Any:
        self.t += 1
        return min(self.t, 2), float(action), self.t == 3, False, {"action_mask": np.asarray([0, 1, 1], np.int8)}


class Painting(gymnasium.Env):
    """One picture whose channels have 40, 80 and 120 as their means."""

    observation_space = spaces.Box(0, 255, (12, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.picture = np.zeros((12, 8, 3), np.uint8)
        self.picture[:6] = [80, 160, 240]
        return self.picture, {}

    def step(self, action: Any) -> Any:
        return self.picture, 0.0, True, False, {}
