"""Evaluators: plain objects that decode individuals and play whole episodes with them, for one task at a time.

`start` gives a generator that yields whenever it waits for worlds, so that one loop can drive several evaluators; its
return value is the result. The population placements hold some of them, a Ray actor is a shell around one.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.algorithm import Policy
from marl.core.collect import Lane, collect, init_lanes
from marl.core.env import AnyEnvironment
from marl.core.errors import UserError
from marl.core.evolution import Evolution, Offspring, Shared
from marl.core.host_rows import HostWorlds
from marl.core.inference import Acted, LaneMemory, act_lanes, check_policies, start_lanes, time_step_arrays
from marl.core.types import Array, EpisodeResult, TimeStep, Tree
from marl.dataflow.groups import GroupHandle
from marl.dataflow.population_book import Book
from marl.dataflow.population_tasks import Task

LANES_TIMES = 4  # episodes of a task for each lane of worlds in Python, so that most of them are busy most of the time
SEGMENT = 64  # rows of a JAX world between two looks whether all episodes are over

Cast = tuple[tuple[str, Policy], ...]
Playing = Generator[None, None, EpisodeResult]


class Evaluator(Protocol):
    """Plays tasks. name: of the policy that evolves."""

    def start(self, shared: Shared, task: Task) -> Playing:
        """Begin a task. Result leaves are numpy `[C, E, ...]`, the copies that fill it up included."""
        ...

    def ready(self) -> bool:
        """Whether the generator can go on."""
        ...

    def new_faults(self) -> list[str]:
        """What went wrong in worlds since the last call."""
        ...

    def close(self) -> None: ...


def evaluate(evaluator: Evaluator, shared: Shared, task: Task) -> EpisodeResult:
    """Play a task from beginning to end."""
    playing = evaluator.start(shared, task)
    while True:
        try:
            next(playing)
        except StopIteration as done:
            result: EpisodeResult = done.value
            return result
        while not evaluator.ready():
            time.sleep(1e-3)


@partial(jax.jit, static_argnums=0)
def decode_all(evolution: Evolution, shared: Shared, offspring: Offspring) -> Tree:
    """Parameters of several individuals, leaves `[C, ...]`: the one compiled function that decodes."""
    return jax.vmap(lambda one: evolution.decode(shared, one))(offspring)


class JaxEvaluator:
    """Plays worlds in JAX: all episodes of a task in one compiled call, which ends when the last of them does.

    policies: by name; together they play every role.  name: the one that evolves.  fixed: parameters of the others.
    device: None for JAX's default one.
    Raises: UserError if the world has no limit on its episodes.
    """

    def __init__(
        self,
        env: AnyEnvironment,
        policies: Mapping[str, Policy],
        name: str,
        fixed: Mapping[str, Tree],
        device: jax.Device | None = None,
    ) -> None:
        if env.max_steps is None:
            raise UserError("this world has no max_steps, so nobody knows when the episodes of an individual are over")
        self.env, self.cast, self.name, self.device = env, tuple(policies.items()), name, device
        self.evolution: Evolution = policies[name]  # type: ignore[assignment]
        self.fixed = self._here(dict(fixed))

    def _here(self, tree: Tree) -> Tree:
        return tree if self.device is None else jax.device_put(tree, self.device)

    def start(self, shared: Shared, task: Task) -> Playing:
        shared, offspring, keys = self._here((shared, task.offspring, task.keys))
        params = decode_all(self.evolution, shared, offspring)
        result = _play(self.env, self.cast, self.name, params, self.fixed, keys)
        yield  # the device works on it
        return jax.device_get(result)  # type: ignore[no-any-return]

    def ready(self) -> bool:
        return True

    def new_faults(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing to close."""


@partial(jax.jit, static_argnums=(0, 1, 2))
def _play(env: AnyEnvironment, cast: Cast, name: str, params: Tree, fixed: dict[str, Tree], keys: Array) -> Tree:
    """Sums of whole episodes, leaves `[C, E, ...]`. params: `[C, ...]`.  keys: u32 `[E, 2]`."""
    policies = dict(cast)
    limit = env.max_steps
    assert limit is not None
    segment = min(SEGMENT, limit)
    episodes = jax.random.wrap_key_data(keys, impl="threefry2x32")

    def begin(own: Tree) -> Lane:
        return init_lanes(env, policies, {**fixed, name: own}, episodes)

    def go_on(own: Tree, lanes: Lane) -> Lane:
        return collect(env, policies, {**fixed, name: own}, lanes, segment, hold=True)[0]

    def unfinished(state: tuple[Array, Lane]) -> Array:
        rows, lanes = state
        return (rows < limit) & ~lanes.step.last.all()

    def body(state: tuple[Array, Lane]) -> tuple[Array, Lane]:
        rows, lanes = state
        return rows + segment, jax.vmap(go_on)(params, lanes)

    _, lanes = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), jax.vmap(begin)(params)))
    return lanes.sums


class HostEvaluator:
    """Plays worlds in Python in the lanes of one group. A lane whose episode is over goes on with the task's next one,
    so nobody waits for the longest. An episode whose world fails is played once more, then ends at its last good row.

    policies, name, fixed: as in `JaxEvaluator`.
    Raises: ConfigError if a policy cannot act in such worlds; WorldError from the generator if too many copies fail.
    """

    def __init__(
        self,
        worlds: HostWorlds,
        policies: Mapping[str, Policy],
        name: str,
        fixed: Mapping[str, Tree],
        handle: GroupHandle,
        device: jax.Device | None = None,
    ) -> None:
        check_policies(policies)
        self.worlds, self.cast, self.name, self.handle, self.device = (
            worlds,
            tuple(policies.items()),
            name,
            handle,
            device,
        )
        self.evolution: Evolution = policies[name]  # type: ignore[assignment]
        self.fixed = jax.device_put(dict(fixed), device)
        self.block = handle.block
        self._begun = False

    def ready(self) -> bool:
        return self.handle.ready()

    def new_faults(self) -> list[str]:
        return self.handle.new_faults()

    def close(self) -> None:
        self.handle.close()

    def start(self, shared: Shared, task: Task) -> Playing:
        block = self.block
        shared, offspring = jax.device_put((shared, task.offspring), self.device)
        params = decode_all(self.evolution, shared, offspring)
        own, seeds = _begin(self.cast, task.keys)
        book = Book(self.worlds, task, block.lanes)
        if not self._begun:
            self.handle.start()
            self._begun = True
        step: TimeStep = time_step_arrays(block.step)
        memory = LaneMemory(_carry(self.cast, block.lanes), np.zeros((block.lanes, 2), np.uint32))  # type: ignore[arg-type]
        book.take_first()
        block.last[:] = True
        own_keys, episode_seeds = np.asarray(own), np.asarray(seeds)
        mine = _pick(params, np.zeros(block.lanes, np.int64))  # by lane the parameters that play in it
        while True:
            block.hold[:] = book.next < 0
            block.seed[:] = np.where(book.next < 0, block.seed, episode_seeds[book.next % book.episodes])
            acting = book.acting(block.step)
            self.handle.send()
            yield
            began = book.landed(block.step, block.last, block.fault, acting)
            if book.done:
                return book.result()
            if began.any():
                keys = np.array(memory.key)
                keys[began] = own_keys[book.pair[began] % book.episodes]
                memory = memory.replace(key=keys)  # type: ignore[attr-defined]
                mine = _pick(params, np.maximum(book.pair, 0) // book.episodes)
            memory, acted = _act(self.cast, self.name, mine, self.fixed, memory, step)
            for role, array in block.action.items():
                array[:] = np.asarray(acted.action[role])


@partial(jax.jit, static_argnums=0)
def _begin(cast: Cast, keys: Any) -> tuple[Array, Array]:
    """Own keys u32 `[E, 2]` and world seeds u32 `[E]` of episodes with these keys."""
    memory, seeds = start_lanes(dict(cast), jax.random.wrap_key_data(keys, impl="threefry2x32"))
    return memory.key, seeds


def _carry(cast: Cast, lanes: int) -> dict[str, Tree]:
    """What nobody has remembered yet; it is reset at the first row of an episode anyway."""
    return {
        name: jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (lanes, *np.shape(x))), policy.initial_carry())
        for name, policy in cast
    }


@jax.jit
def _pick(params: Tree, individuals: Any) -> Tree:
    return jax.tree.map(lambda x: x[individuals], params)


@partial(jax.jit, static_argnums=(0, 1))
def _act(
    cast: Cast, name: str, params: Tree, fixed: dict[str, Tree], memory: LaneMemory, step: TimeStep
) -> tuple[LaneMemory, Acted]:
    """`act_lanes` with parameters of its own for each lane, leaves `[B, ...]`."""
    policies = dict(cast)

    def one(own: Tree, memory: LaneMemory, step: TimeStep) -> tuple[LaneMemory, Acted]:
        alone = jax.tree.map(lambda x: x[None], (memory, step))
        answer = act_lanes(policies, {**fixed, name: own}, *alone, explore=True)
        return jax.tree.map(lambda x: x[0], answer)  # type: ignore[no-any-return]

    answer: tuple[LaneMemory, Acted] = jax.vmap(one)(params, memory, step)
    return answer
