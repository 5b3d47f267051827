"""One sound world, and the same with one thing wrong each. Loaded by path; `marl check` has to find every one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Sound(ParallelEnv):
    """Two agents count to four; agent_1 is out after three. An action mask in `info` forbids the last action."""

    metadata: dict[str, Any] = {"name": "sound"}  # noqa: RUF012
    render_mode = None
    leaves = 3
    ends = 4

    def __init__(self) -> None:
        self.possible_agents = ["agent_0", "agent_1"]
        self.observations = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.actions = spaces.Discrete(3)

    def observation_space(self, agent: str) -> Any:
        return self.observations

    def action_space(self, agent: str) -> Any:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.random = np.random.default_rng(seed)
        self.agents, self.t = list(self.possible_agents), 0
        return {a: self.observe(a) for a in self.agents}, {a: self.info(a) for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        acted = list(self.agents)
        died = {a: a == "agent_1" and self.t == self.leaves for a in acted}
        cut = {a: self.t == self.ends for a in acted}
        self.agents = self.remaining(acted, died, cut)
        return (
            {a: self.observe(a) for a in self.told(acted)},
            {a: self.reward(a) for a in self.paid(acted)},
            died,
            cut,
            {a: self.info(a) for a in acted},
        )

    def observe(self, agent: str) -> Any:
        return self.random.uniform(-1.0, 1.0, 2).astype(np.float32)

    def info(self, agent: str) -> dict[str, Any]:
        return {"action_mask": np.asarray([1, 1, 0], np.int8)}

    def reward(self, agent: str) -> Any:
        return 1.0

    def remaining(self, acted: list[str], died: dict[str, bool], cut: dict[str, bool]) -> list[str]:
        return [a for a in acted if not died[a] and not cut[a]]

    def told(self, acted: list[str]) -> list[str]:
        return acted

    def paid(self, acted: list[str]) -> list[str]:
        return acted


class BeyondBounds(Sound):
    def observe(self, agent: str) -> Any:
        return np.asarray([0.0, 7.5 if self.t == 2 else 0.0], np.float32)


class WrongShape(Sound):
    def observe(self, agent: str) -> Any:
        return np.zeros(3 if agent == "agent_1" else 2, np.float32)


class WrongType(Sound):
    def observe(self, agent: str) -> Any:
        return np.zeros(2, np.float64)


class NaNObservation(Sound):
    def observe(self, agent: str) -> Any:
        return np.asarray([0.0, np.nan if self.t == 1 else 0.0], np.float32)


class NaNReward(Sound):
    def reward(self, agent: str) -> Any:
        return float("nan") if self.t == 2 else 0.0


class NoReward(Sound):
    def reward(self, agent: str) -> Any:
        return None


class AgentForgotten(Sound):
    def told(self, acted: list[str]) -> list[str]:
        return [a for a in acted if a == "agent_0" or self.t != 2]


class NeverEnds(Sound):
    leaves = ends = 1_000_000


class NotReproducible(Sound):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(None, options)


class LeavesTraces(Sound):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.episodes = getattr(self, "episodes", 0) + 1
        return super().reset(seed, options)

    def reward(self, agent: str) -> Any:
        return 0.0 if self.episodes < 3 else 1.0


class PaidAfterDeath(Sound):
    def paid(self, acted: list[str]) -> list[str]:
        return list(self.possible_agents)


class ActsAfterDeath(Sound):
    def remaining(self, acted: list[str], died: dict[str, bool], cut: dict[str, bool]) -> list[str]:
        return [] if cut["agent_0"] else acted


class EmptyMask(Sound):
    def info(self, agent: str) -> dict[str, Any]:
        return {"action_mask": np.zeros(3, np.int8) if self.t == 1 else np.ones(3, np.int8)}


class LongMask(Sound):
    def info(self, agent: str) -> dict[str, Any]:
        return {"action_mask": np.ones(5, np.int8)}


class NobodyPossible(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = self.possible_agents
        del self.possible_agents

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.possible_agents = self.hidden
        outcome = super().reset(seed, options)
        del self.possible_agents
        return outcome


class PossibleChanges(Sound):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.possible_agents = [*self.possible_agents, f"agent_{len(self.possible_agents)}"]
        return super().reset(seed, options)


class NewSpaces(Sound):
    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)


class Raises(Sound):
    def step(self, actions: dict[str, Any]) -> Any:
        return [10, 20][actions["agent_0"]] and super().step(actions) if self.t < 2 else {}["lost"]


class NoSeed(Sound):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset(0)


class FourParts(Sound):
    def step(self, actions: dict[str, Any]) -> Any:
        return super().step(actions)[:4]


class Leaves(Sound):
    def remaining(self, acted: list[str], died: dict[str, bool], cut: dict[str, bool]) -> list[str]:
        return [a for a in super().remaining(acted, died, cut) if a == "agent_0" or self.t != 2]


class TextSpace(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.observations = spaces.Text(4)  # type: ignore[assignment]


class SoundTurns(AECEnv):
    """Two players, three turns each."""

    metadata: dict[str, Any] = {"name": "turns"}  # noqa: RUF012
    render_mode = None

    def __init__(self) -> None:
        self.possible_agents = ["player_0", "player_1"]
        self.observations = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.actions = spaces.Discrete(2)

    def observation_space(self, agent: str) -> Any:
        return self.observations

    def action_space(self, agent: str) -> Any:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection, self.turn = "player_0", 0

    def observe(self, agent: str) -> Any:
        return np.asarray([self.turn / 6], np.float32)

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self.after_death(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {a: 1.0 if a == agent else -1.0 for a in self.agents}
        self.turn += 1
        self.agent_selection = self.agents[self.turn % 2]
        if self.turn == 6:
            self.terminations = dict.fromkeys(self.agents, True)
        self._accumulate_rewards()

    def after_death(self, action: Any) -> None:
        self._was_dead_step(action)


class NeverBuried(SoundTurns):
    def after_death(self, action: Any) -> None:
        return


class TurnOfNobody(SoundTurns):
    def step(self, action: Any) -> None:
        super().step(action)
        if self.turn == 2:
            self.agent_selection = "player_7"


class TurnBeyondBounds(SoundTurns):
    def observe(self, agent: str) -> Any:
        return np.asarray([self.turn], np.float32)


class TurnNaN(SoundTurns):
    def step(self, action: Any) -> None:
        super().step(action)
        if self.turn == 3 and self.rewards:
            self.rewards["player_1"] = float("nan")


class Alone(gymnasium.Env):
    """One agent that counts to three."""

    observation_space = spaces.Box(0.0, 3.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.t += 1
        return self.seen(), float(action[0]), self.t == 3, False, {}

    def seen(self) -> Any:
        return np.asarray([self.t], np.float32)


class AloneForever(Alone):
    def step(self, action: Any) -> Any:
        return self.seen(), 0.0, False, False, {}


class AloneWithoutArray(Alone):
    def seen(self) -> Any:
        return [0.0]
