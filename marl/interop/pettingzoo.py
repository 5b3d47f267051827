"""Any world as a PettingZoo environment: named agents, dictionaries, NumPy, a list of agents that shrinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import gymnasium
import jax
import numpy as np
import pettingzoo
from numpy.typing import NDArray
from pettingzoo.utils.conversions import parallel_to_aec
from pydantic import ValidationError

from marl.core.env import AnyEnvironment
from marl.core.errors import UserError, did_you_mean
from marl.core.spaces import Space
from marl.core.types import ByRole, Key, TimeStep, Tree

from .spaces import to_action, to_gymnasium

Infos: TypeAlias = dict[str, dict[str, Any]]
AECEnv: TypeAlias = pettingzoo.AECEnv[str, NDArray[Any], Any]
Programs: TypeAlias = tuple[Callable[..., Any], Callable[..., Any]]

DEFAULT_FPS = 10  # of a recorded episode, for worlds that do not say
MAX_SEED = 2**32 - 1

# Worlds and their compiled functions by class and options: making an environment a second time compiles nothing.
_made: dict[tuple[type, str], tuple[AnyEnvironment, Programs]] = {}


class ParallelEnv(pettingzoo.ParallelEnv[str, NDArray[Any], Any]):  # type: ignore[misc] # untyped base
    """One copy of a world, with agents named `<role>_<index>`.

    `reset(seed=…)` starts a reproducible sequence of episodes; without a seed the sequence goes on, and a first reset
    without one takes its seed from the operating system. `reset(options={"params": {"name": value}})` changes numbers
    of the world for one episode; other options are ignored. An agent that has ended is in the dictionaries of that
    step and in none after it. `infos[agent]` has the world's named numbers and, where the world has masks,
    `action_mask` (int8, 1 = allowed, as `space.sample(mask)` takes it); a forbidden action is passed on, and the
    world says what it does.
    """

    def __init__(
        self,
        env: AnyEnvironment,
        *,
        name: str | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        programs: Programs | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode {render_mode!r} is not known, expected 'rgb_array' or None")
        self.world = env
        self.render_mode = render_mode
        self.metadata: dict[str, Any] = {
            "name": name or type(env).__name__.lower(),
            "render_modes": ["rgb_array"],
            "render_fps": getattr(env, "render_fps", DEFAULT_FPS),
            "is_parallelizable": True,
        }
        # An agent's place in the arrays, and its spaces: the same objects at every call, so that seeding them works.
        self._place = {f"{role.name}_{index}": (role.name, index) for role in env.roles for index in range(role.size)}
        self._action_space_of_role: dict[str, Space] = {role.name: role.action_space for role in env.roles}
        self._sizes = {role.name: role.size for role in env.roles}
        self.possible_agents = list(self._place)
        self.agents: list[str] = []
        spaces = {role.name: (role.observation_space, role.action_space) for role in env.roles}
        self._observation_spaces = {a: to_gymnasium(spaces[role][0]) for a, (role, _) in self._place.items()}
        self._action_spaces = {a: to_gymnasium(spaces[role][1]) for a, (role, _) in self._place.items()}
        state_spaces = {role.state_space for role in env.roles if role.state_space is not None}
        if len(state_spaces) == 1:
            self.state_space = to_gymnasium(state_spaces.pop())
        self._reset, self._step = programs or _compile(env)
        self._key: Key | None = None
        self._params: Tree = None
        self._state: Tree = None
        self._row: TimeStep | None = None

    def observation_space(self, agent: str) -> gymnasium.spaces.Space[Any]:
        """The same object at every call."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Space[Any]:
        """The same object at every call."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[dict[str, Tree], Infos]:
        """Start an episode. Raises: UserError for a seed outside 0..2^32-1 or a parameter the world does not have."""
        if seed is None and self._key is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            if not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
                raise UserError(f"seed {seed!r} does not fit, expected an integer from 0 to {MAX_SEED}")
            self._key = jax.random.key(int(seed))
        self._params = _with_params(self.world.default_params, (options or {}).get("params"))
        self._key, self._state, row = self._reset(self._key, self._params)
        self._row = jax.device_get(row)
        self.agents = self._living(self._row)
        return self._observations(self._row, self.agents), self._infos(self._row, self.agents)

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Tree], dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Every living agent acts at once; actions of agents that are gone are ignored.

        Raises: UserError before `reset`, after the episode's end, for a name that is no agent and for a missing action;
        ActionError for an action its space does not hold.
        """
        if not self.agents:
            raise UserError(f"{self.metadata['name']}: no agent is left, call reset before step")
        for name in actions:
            if name not in self._place:
                raise UserError(f"unknown agent '{name}'{did_you_mean(str(name), self._place)}")
        self._key, self._state, row = self._step(self._key, self._state, self._gather(actions), self._params)
        self._row = row = jax.device_get(row)
        present = self._living(row)
        seen = [agent for agent in self.possible_agents if agent in {*self.agents, *present}]
        terminated = {agent: bool(self._of(row.terminated, agent)) for agent in seen}
        # An episode that is over is over for everybody, even where a world does not say why.
        truncated = {a: bool(self._of(row.truncated, a)) or (bool(row.last) and not terminated[a]) for a in seen}
        reward = {agent: float(self._of(row.reward, agent)) for agent in seen}
        self.agents = [] if bool(row.last) else present
        return self._observations(row, seen), reward, terminated, truncated, self._infos(row, seen)

    def state(self) -> NDArray[Any]:
        """The global state for central critics; a state of several arrays is flattened into one.

        Raises: UserError before `reset` or if the world has no global state.
        """
        if self._row is None or self._row.state is None:
            why = "has not been reset" if self._row is None else "has no global state"
            raise UserError(f"{self.metadata['name']} {why}")
        leaves = jax.tree.leaves(self._row.state)
        return np.array(leaves[0]) if len(leaves) == 1 else np.concatenate([np.ravel(leaf) for leaf in leaves])

    def render(self) -> NDArray[np.uint8]:
        """The present picture, uint8 `[H, W, 3]`. Raises: UserError without `render_mode="rgb_array"` or before
        `reset`."""
        if self.render_mode is None:
            raise UserError(f"{self.metadata['name']} was made without a render_mode, expected render_mode='rgb_array'")
        if self._row is None:
            raise UserError(f"{self.metadata['name']} has not been reset, there is nothing to draw yet")
        return self.world.render(self._state, self._params)

    def close(self) -> None:
        """Nothing is held open: no window, no process."""

    def _of(self, by_role: ByRole, agent: str) -> Any:
        role, index = self._place[agent]
        return by_role[role][index]

    def _living(self, row: TimeStep) -> list[str]:
        return [
            agent
            for agent in self.possible_agents
            if self._of(row.alive, agent) and not self._of(row.terminated, agent) | self._of(row.truncated, agent)
        ]

    def _observations(self, row: TimeStep, agents: list[str]) -> dict[str, Tree]:
        return {agent: jax.tree.map(np.array, self._observation(row, agent)) for agent in agents}

    def _observation(self, row: TimeStep, agent: str) -> Tree:
        role, index = self._place[agent]
        return jax.tree.map(lambda leaf: leaf[index], row.obs[role])

    def _infos(self, row: TimeStep, agents: list[str]) -> Infos:
        shared = {name: float(value) for name, value in (row.info or {}).items()}
        infos: Infos = {agent: dict(shared) for agent in agents}
        for agent in agents:
            if row.action_mask is not None and self._place[agent][0] in row.action_mask:
                infos[agent]["action_mask"] = self._of(row.action_mask, agent).astype(np.int8)
        return infos

    def _gather(self, actions: Mapping[str, Any]) -> ByRole:
        """Actions `[n_role, ...]` by role; agents that are gone do 0."""
        gathered = {
            role: np.zeros((size, *space.shape), np.dtype(space.dtype))
            for (role, size), space in zip(self._sizes.items(), self._action_space_of_role.values(), strict=True)
        }
        for agent in self.agents:
            if actions.get(agent) is None:
                raise UserError(f"agent '{agent}' is alive and has no action; living agents: {', '.join(self.agents)}")
            role, index = self._place[agent]
            gathered[role][index] = to_action(self._action_space_of_role[role], actions[agent], agent)
        return gathered


def parallel_env(
    world: type[Any], *, name: str | None = None, render_mode: Literal["rgb_array"] | None = None, **options: Any
) -> ParallelEnv:
    """A world class with its options as a PettingZoo parallel environment. name: for `metadata`, else the class's.

    Raises: UserError if an option is unknown or does not fit, naming the nearest one.
    """
    name = name or world.__name__.lower()
    try:
        options_key = world.Config(**options).model_dump_json()
    except ValidationError as error:
        raise UserError(f"{name}: {_first_problem(error, world)}") from error
    if (world, options_key) not in _made:
        env = world(**options)
        _made[world, options_key] = env, _compile(env)
    env, programs = _made[world, options_key]
    return ParallelEnv(env, name=name, render_mode=render_mode, programs=programs)


def aec_env(
    world: type[Any], *, name: str | None = None, render_mode: Literal["rgb_array"] | None = None, **options: Any
) -> AECEnv:
    """The same as `parallel_env`, one agent at a time. Raises: UserError as `parallel_env`."""
    return parallel_to_aec(parallel_env(world, name=name, render_mode=render_mode, **options))


def _compile(env: AnyEnvironment) -> Programs:
    """Jitted reset and step, which also advance the key: one dispatch a row."""

    def reset(key: Key, params: Tree) -> tuple[Key, Tree, TimeStep]:
        key, own = jax.random.split(key)
        return (key, *env.reset(own, params))

    def step(key: Key, state: Tree, actions: ByRole, params: Tree) -> tuple[Key, Tree, TimeStep]:
        key, own = jax.random.split(key)
        return (key, *env.step(own, state, actions, params))

    return jax.jit(reset), jax.jit(step)


def _with_params(default: Tree, wanted: object) -> Tree:
    """World parameters with the named fields replaced, in their own dtype and shape."""
    if wanted is None:
        return default
    if not isinstance(wanted, Mapping):
        raise UserError(f"options['params'] is {wanted!r}, expected a mapping from names to numbers")
    fields = list(getattr(default, "__dataclass_fields__", ()))
    changed = {}
    for name, value in wanted.items():
        if name not in fields:
            raise UserError(f"unknown parameter '{name}'{did_you_mean(str(name), fields)} known: {', '.join(fields)}")
        old = getattr(default, name)
        try:
            changed[name] = jax.numpy.broadcast_to(jax.numpy.asarray(value, old.dtype), old.shape)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"parameter '{name}': {value!r} does not fit, expected numbers of shape {old.shape}"
            ) from error
    return default.replace(**changed)


def _first_problem(error: ValidationError, world: type[Any]) -> str:
    problem = error.errors()[0]
    option = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(world.Config.model_fields)
        return f"unknown option '{option}'{did_you_mean(option, known)} known: {', '.join(known) or '(none)'}"
    return f"option '{option}' is {problem['input']!r}: {problem['msg']}" if option else str(problem["msg"])
