"""Any world with named agents and dictionaries, as RLlib wants to see it, and what it counts. Nothing here imports Ray.

A JAX world comes through `marl.interop.pettingzoo`, one in Python through `marl.interop.worlds`. Agents are called
`<role>_<index>` in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import WorldError
from marl.core.host_rows import RowBlock, RowSpec
from marl.core.registry import import_target
from marl.core.roles import RoleSpec
from marl.core.spaces import Dict, Discrete, MultiDiscrete, ObservationSpace
from marl.interop.worlds import is_host_world, make_world

Named = dict[str, Any]  # by agent
MASK = "action_mask"
RESET_ATTEMPTS = 3


@dataclasses.dataclass
class Moved:
    """What a step leads to. obs: of the agents that act next, and of those that have just ended.  reward, terminated,
    truncated: of all that were there.  info: the world's own numbers.  last: whether the episode is over, with
    fault because the world failed at this step, so that the row before was the last."""

    obs: Named
    reward: dict[str, float]
    terminated: dict[str, bool]
    truncated: dict[str, bool]
    masks: Named
    info: dict[str, float]
    last: bool
    fault: bool = False


class NamedWorld(Protocol):
    """One copy of a world. `roles`: who is in it; `living`: the agents that are there."""

    roles: tuple[RoleSpec, ...]
    masked: frozenset[str]

    @property
    def living(self) -> list[str]: ...

    def reset(self, seed: int) -> tuple[Named, Named]:
        """The observations of those that act first, and their action masks."""
        ...

    def step(self, actions: Mapping[str, Any]) -> Moved: ...
    def render(self) -> NDArray[np.uint8]: ...
    def close(self) -> None: ...


def open_world(world: str, options: Mapping[str, Any], *, render: bool = False) -> NamedWorld:
    """A copy of a world: `pettingzoo:...`, `gymnasium:...`, or `package.module:Class` of one in JAX.

    Raises: UserError if there is none or an option is wrong.
    """
    if is_host_world(world):
        return _HostNamed(world, options, render)
    return _JaxNamed(world, options, render)


def agent_name(role: str, index: int) -> str:
    """How the agents of a role are called."""
    return f"{role}_{index}"


class _JaxNamed:
    """A world in JAX, through its PettingZoo face."""

    def __init__(self, world: str, options: Mapping[str, Any], render: bool) -> None:
        from marl.interop.pettingzoo import parallel_env

        self.env = parallel_env(import_target(world), render_mode="rgb_array" if render else None, **options)
        self.roles = self.env.world.roles
        _, infos = self.env.reset(seed=0)
        self.masked = frozenset(agent.rpartition("_")[0] for agent, info in infos.items() if MASK in info)
        self.living: list[str] = []

    def reset(self, seed: int) -> tuple[Named, Named]:
        obs, infos = self.env.reset(seed=seed)
        self.living = list(self.env.agents)
        return obs, _masks(infos)

    def step(self, actions: Mapping[str, Any]) -> Moved:
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        self.living = list(self.env.agents)
        shared = next(iter(infos.values()), {})
        info = {name: value for name, value in shared.items() if name != MASK}
        return Moved(obs, reward, terminated, truncated, _masks(infos), info, last=not self.living)

    def render(self) -> NDArray[np.uint8]:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def _masks(infos: Mapping[str, Mapping[str, Any]]) -> Named:
    return {agent: info[MASK] for agent, info in infos.items() if MASK in info}


class _HostNamed:
    """A world in Python, whose rows are read out agent by agent."""

    def __init__(self, world: str, options: Mapping[str, Any], render: bool) -> None:
        self.world = make_world(world, options, render=render)
        self.roles = self.world.roles
        self.masked = self.world.masked
        block = RowBlock(RowSpec.of(self.world), 1)
        self.row, self.actions = block.host_row(0), block.lane_actions(0)
        self._place = {agent_name(r.name, i): (r.name, i) for r in self.roles for i in range(r.size)}
        self._spaces = {role.name: role.observation_space for role in self.roles}
        self.living: list[str] = []

    def reset(self, seed: int) -> tuple[Named, Named]:
        self.world.reset(seed, self.row)
        self.living = self._present()
        acting = self._acting()
        return {agent: self._obs(agent) for agent in acting}, self._action_masks(acting)

    def step(self, actions: Mapping[str, Any]) -> Moved:
        for agent, action in actions.items():
            role, index = self._place[agent]
            self.actions[role][index] = action
        before = self.living
        last = self.world.step(self.actions, self.row)
        self.living = [] if last else self._present()
        row = self.row
        terminated = {agent: bool(self._of(row.terminated, agent)) for agent in before}
        truncated = {a: not terminated[a] and (last or bool(self._of(row.truncated, a))) for a in before}
        reward = {agent: float(self._of(row.reward, agent)) for agent in before}
        acting = [] if last else self._acting()
        ended = [agent for agent in before if terminated[agent] or truncated[agent]]
        obs = {agent: self._obs(agent) for agent in (*acting, *ended)}
        return Moved(obs, reward, terminated, truncated, self._action_masks(acting), {}, last)

    def render(self) -> NDArray[np.uint8]:
        return self.world.render()

    def close(self) -> None:
        self.world.close()

    def _of(self, by_role: Mapping[str, Any], agent: str) -> Any:
        role, index = self._place[agent]
        return by_role[role][index]

    def _present(self) -> list[str]:
        row = self.row
        return [
            agent
            for agent in self._place
            if self._of(row.alive, agent) and not self._of(row.terminated, agent) | self._of(row.truncated, agent)
        ]

    def _acting(self) -> list[str]:
        acting = self.row.acting
        return self.living if acting is None else [a for a in self.living if self._of(acting, a)]

    def _obs(self, agent: str) -> Any:
        role, index = self._place[agent]
        return _element(self._spaces[role], self.row.obs[role], index)

    def _action_masks(self, agents: list[str]) -> Named:
        masks = self.row.action_mask
        return {
            agent: self._of(masks, agent).astype(np.int8) for agent in agents if self._place[agent][0] in self.masked
        }


def _element(space: ObservationSpace, by_agent: Any, index: int) -> Any:
    """A copy of one agent's observation: the rows are written over at the next step."""
    if isinstance(space, Dict):
        return {key: _element(part, by_agent[key], index) for key, part in space.items}
    return np.array(by_agent[index])


# ---- faults ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Faults:
    """What a copy of a world may do wrong before the run stops: a `share` of its episodes once `grace` faults are used
    up. report: a file that gets a line of JSON for each, as there is no other way out of an env runner."""

    share: float
    grace: int
    report: str

    def note(self, text: str, fatal: bool) -> None:
        """Write a fault down."""
        with open(self.report, "a", encoding="utf-8") as file:
            file.write(json.dumps({"text": text, "fatal": fatal}) + "\n")


class GuardedWorld:
    """A world whose faults stay in it: an episode whose world fails is cut at its last good row, and the copy is made
    anew.

    Raises: WorldError from `reset` and `step` once there are too many faults.
    """

    def __init__(self, world: str, options: Mapping[str, Any], faults: Faults) -> None:
        self.name, self.options, self.faults = world, options, faults
        self.world = open_world(world, options)
        self.roles, self.masked = self.world.roles, self.world.masked
        self._seen: Named = {}
        self._count = self._episodes = self._length = 0

    @property
    def living(self) -> list[str]:
        return self.world.living

    def reset(self, seed: int) -> tuple[Named, Named]:
        self._episodes, self._length = self._episodes + 1, 0
        for attempt in range(RESET_ATTEMPTS):
            try:
                obs, masks = self.world.reset(seed + attempt)
                break
            except Exception as error:  # foreign code
                self._failed("reset", error, fatal=attempt + 1 == RESET_ATTEMPTS)
        self._seen = dict(obs)
        return obs, masks

    def step(self, actions: Mapping[str, Any]) -> Moved:
        living = self.world.living
        try:
            moved = self.world.step(actions)
        except Exception as error:  # foreign code
            self._failed(f"step {self._length}", error)
            no, yes = dict.fromkeys(living, False), dict.fromkeys(living, True)
            cut = {agent: self._seen[agent] for agent in living if agent in self._seen}
            return Moved(cut, dict.fromkeys(living, 0.0), no, yes, {}, {}, last=True, fault=True)
        self._length += 1
        self._seen.update(moved.obs)
        return moved

    def _failed(self, where: str, error: Exception, fatal: bool = False) -> None:
        self._count += 1
        fatal = fatal or (self._count > self.faults.grace and self._count > self.faults.share * self._episodes)
        line = next((line for line in str(error).splitlines() if line.strip()), "no message")
        text = f"world {self.name}: {where}: {type(error).__name__}: {line}"
        self.faults.note(text, fatal)
        if fatal:
            raise WorldError(text) from error
        with contextlib.suppress(Exception):  # it is broken
            self.world.close()
        self.world = open_world(self.name, self.options)

    def render(self) -> NDArray[np.uint8]:
        return self.world.render()

    def close(self) -> None:
        self.world.close()


# ---- one flat vector -------------------------------------------------------------------------------------------------


def flat_size(space: ObservationSpace) -> int:
    """Length of `flat(space, x)`."""
    match space:
        case Discrete():
            return space.n
        case MultiDiscrete():
            return sum(space.nvec)
        case Dict():
            return sum(flat_size(part) for _, part in space.items)
    return int(np.prod(space.shape, dtype=np.int64))


def flat(space: ObservationSpace, x: Any) -> NDArray[np.float32]:
    """An observation as the network reads it, f32 `[flat_size]`: numbers as they are, bytes scaled to [0, 1], integers
    one-hot, the parts of a `Dict` one after another. The same as `marl.agents.networks.observations.flatten`."""
    match space:
        case Discrete():
            return np.asarray(np.arange(space.n) == np.asarray(x), np.float32)
        case MultiDiscrete():
            parts = [np.arange(n) == x[i] for i, n in enumerate(space.nvec)]
            return np.concatenate(parts).astype(np.float32)
        case Dict():
            return np.concatenate([flat(part, x[key]) for key, part in space.items])
    array = np.asarray(x)
    numbers = array.astype(np.float32).reshape(-1)
    return numbers / np.float32(255.0) if array.dtype == np.uint8 else numbers


# ---- counts ----------------------------------------------------------------------------------------------------------


class Counter:
    """What happens in one copy of a world, counted as every placement counts it, by name.

    `env_steps`, `agent_steps`, `episodes`; and over the episodes that ended `length`, `return/<role>` (the mean over
    the role's agents) and `info/<name>`.
    """

    def __init__(self, roles: tuple[RoleSpec, ...]) -> None:
        self._sizes = {role.name: role.size for role in roles}
        self._role_of = {agent_name(r.name, i): r.name for r in roles for i in range(r.size)}
        self._totals: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """An episode begins; one that was not over is forgotten."""
        self._length = 0
        self._returns = dict.fromkeys(self._sizes, 0.0)
        self._info: dict[str, float] = {}

    def add(self, moved: Moved, living: int) -> None:
        """A step of `living` agents."""
        if not moved.fault:
            self._step(moved, living)
        if moved.last:
            self._end()

    def _step(self, moved: Moved, living: int) -> None:
        self._count("env_steps", 1)
        self._count("agent_steps", living)
        self._length += 1
        for agent, reward in moved.reward.items():
            role = self._role_of[agent]
            self._returns[role] += reward / self._sizes[role]
        for name, value in moved.info.items():
            self._info[name] = self._info.get(name, 0.0) + value

    def _end(self) -> None:
        self._count("episodes", 1)
        self._count("length", self._length)
        for role, total in self._returns.items():
            self._count(f"return/{role}", total)
        for name, total in self._info.items():
            self._count(f"info/{name}", total)

    def _count(self, name: str, amount: float) -> None:
        self._totals[name] = self._totals.get(name, 0.0) + amount

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        totals, self._totals = self._totals, {}
        return totals
