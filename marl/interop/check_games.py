"""The three kinds of foreign worlds played alike, by whoever looks for faults in them. Importing this imports no JAX.

Nothing is repaired here: what a world returns is handed on as it is, and what makes it impossible to go on is a
`BrokenError` that says which check it belongs to.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from marl.interop.check_values import shown

AGENT = "agent"


class BrokenError(Exception):
    """The world cannot be played on. check: the name of the check that this belongs to."""

    def __init__(self, check: str, words: str) -> None:
        super().__init__(words)
        self.check = check


@dataclasses.dataclass
class Moment:
    """What a world says at one row. agents: who is there.  acting: whose actions it wants.  expected: of whom a step
    must tell reward and end, None after reset."""

    agents: list[str]
    acting: list[str]
    observations: dict[str, Any]
    infos: dict[str, Any]
    expected: list[str] | None = None
    rewards: dict[str, Any] = dataclasses.field(default_factory=dict)
    terminations: dict[str, Any] = dataclasses.field(default_factory=dict)
    truncations: dict[str, Any] = dataclasses.field(default_factory=dict)


class Game(Protocol):
    """One world under test."""

    kind: str

    @property
    def possible(self) -> list[str]: ...

    def observation_space(self, agent: str) -> Any: ...
    def action_space(self, agent: str) -> Any: ...
    def reset(self, seed: int) -> Moment: ...
    def step(self, actions: dict[str, Any]) -> Moment: ...


def _call(check: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the world is somebody else's code: whatever it raises is what we report
        raise BrokenError(check, f"{what} raised {type(error).__name__}: {first_line(error)}{_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else "(no message)"


def _line(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _reset(env: Any, seed: int) -> Any:
    try:
        return env.reset(seed=seed, options={})
    except TypeError as error:
        if "argument" in str(error):
            raise BrokenError(
                "reset",
                f"reset(seed={seed}, options={{}}) raised TypeError: {first_line(error)}; expected reset to take both",
            ) from error
        raise BrokenError("reset", f"reset raised TypeError: {first_line(error)}{_line(error)}") from error
    except Exception as error:
        words = f"reset raised {type(error).__name__}: {first_line(error)}{_line(error)}"
        raise BrokenError("reset", words) from error


def _pair(outcome: Any, names: str) -> tuple[Any, Any]:
    if not isinstance(outcome, tuple) or len(outcome) != 2:
        raise BrokenError("reset", f"reset returned {shown(outcome)}, expected {names}")
    return outcome


def _five(outcome: Any, names: str) -> tuple[Any, ...]:
    if not isinstance(outcome, tuple) or len(outcome) != 5:
        found = f"a tuple of {len(outcome)}" if isinstance(outcome, tuple) else shown(outcome)
        raise BrokenError("step", f"step returned {found}, expected {names}")
    return outcome


def _acted(actions: dict[str, Any]) -> str:
    return f"step with the legal actions {shown(actions)}"


class GymnasiumGame:
    """One agent, called `agent`."""

    kind = "Gymnasium"

    def __init__(self, env: Any) -> None:
        self.env = env

    @property
    def possible(self) -> list[str]:
        return [AGENT]

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space

    def action_space(self, agent: str) -> Any:
        return self.env.action_space

    def reset(self, seed: int) -> Moment:
        observation, info = _pair(_reset(self.env, seed), "(observation, info)")
        return Moment([AGENT], [AGENT], {AGENT: observation}, {AGENT: info})

    def step(self, actions: dict[str, Any]) -> Moment:
        outcome = _call("step", _acted(actions), lambda: self.env.step(actions[AGENT]))
        names = "(observation, reward, terminated, truncated, info)"
        observation, reward, terminated, truncated, info = _five(outcome, names)
        over = bool(terminated) or bool(truncated)
        return Moment(
            [] if over else [AGENT],
            [] if over else [AGENT],
            {AGENT: observation},
            {AGENT: info},
            [AGENT],
            {AGENT: reward},
            {AGENT: terminated},
            {AGENT: truncated},
        )


class ParallelGame:
    """All at once."""

    kind = "PettingZoo, parallel"

    def __init__(self, env: Any) -> None:
        self.env = env

    @property
    def possible(self) -> list[str]:
        return _possible(self.env)

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.env.action_space(agent)

    def reset(self, seed: int) -> Moment:
        observations, infos = _pair(_reset(self.env, seed), "(observations, infos)")
        agents = _agents(self.env)
        _dicts("reset", observations=observations, infos=infos)
        return Moment(agents, agents, observations, infos)

    def step(self, actions: dict[str, Any]) -> Moment:
        given = dict(actions)
        outcome = _call("step", _acted(actions), lambda: self.env.step(given))
        names = "(observations, rewards, terminations, truncations, infos)"
        observations, rewards, terminations, truncations, infos = _five(outcome, names)
        _dicts("step", observations=observations, rewards=rewards, terminations=terminations, truncations=truncations)
        agents = _agents(self.env)
        return Moment(agents, agents, observations, infos, list(actions), rewards, terminations, truncations)


class TurnGame:
    """One after another."""

    kind = "PettingZoo, AEC"

    def __init__(self, env: Any) -> None:
        self.env = env
        self._ended: dict[str, tuple[Any, Any]] = {}

    @property
    def possible(self) -> list[str]:
        return _possible(self.env)

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.env.action_space(agent)

    def reset(self, seed: int) -> Moment:
        _reset(self.env, seed)
        return self._look(None, {})

    def step(self, actions: dict[str, Any]) -> Moment:
        ((agent, action),) = actions.items()
        expected = _agents(self.env)
        _call("step", f"step with the legal action {shown(action)} of agent '{agent}'", lambda: self.env.step(action))
        rewards = _call("step", "env.rewards", lambda: dict(self.env.rewards))
        return self._look(expected, rewards)

    def _look(self, expected: list[str] | None, rewards: dict[str, Any]) -> Moment:
        env = self.env
        terminations: dict[str, Any] = {}
        truncations: dict[str, Any] = {}
        acting: list[str] = []
        while _agents(env):
            agent = _call("step", "env.agent_selection", lambda: env.agent_selection)
            if agent not in env.agents:
                here = ", ".join(map(str, env.agents))
                raise BrokenError("step", f"it is the turn of agent {agent!r}, which is not in `agents`: {here}")
            _, _, terminated, truncated, _ = _call("step", "last()", lambda: env.last(observe=False))
            if not terminated and not truncated:
                acting = [agent]
                break
            terminations[agent], truncations[agent] = terminated, truncated
            _call("ends", f"step(None) for agent '{agent}', which has ended,", lambda: env.step(None))
            if agent in env.agents:
                raise BrokenError(
                    "ends", f"agent '{agent}' has ended and was stepped with None, but is still in `agents`"
                )
        agents = _agents(env)
        for agent in expected or []:
            terminations.setdefault(agent, False)
            truncations.setdefault(agent, False)
        seen = {agent: self._observe(agent) for agent in agents}
        infos = dict(env.infos) if isinstance(env.infos, dict) else {}
        return Moment(agents, acting, seen, infos, expected, rewards, terminations, truncations)

    def _observe(self, agent: str) -> Any:
        return _call("observations", f"observe('{agent}')", lambda: self.env.observe(agent))


def _possible(env: Any) -> list[str]:
    found = getattr(env, "possible_agents", None)
    return list(found) if isinstance(found, list | tuple) else []


def _agents(env: Any) -> list[str]:
    found = getattr(env, "agents", None)
    if not isinstance(found, list | tuple):
        raise BrokenError("agents", f"`agents` is {shown(found)}, expected a list of the names of those who are there")
    return list(found)


def _dicts(where: str, **parts: Any) -> None:
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise BrokenError(where, f"the {name} that {where} returned are {shown(part)}, expected a dict by agent")
