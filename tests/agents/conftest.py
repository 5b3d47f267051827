"""Rollouts made up of random observations and rewards, acted by the algorithm under test."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.core.algorithm import Algorithm
from marl.core.prng import stream
from marl.core.spaces import Dict, Discrete, MultiDiscrete, ObservationSpace
from marl.core.types import Key, LearnerState, RoleSpec, TimeStep, Trajectory


def random_steps(
    specs: tuple[RoleSpec, ...], rows: int, lanes: int, seed: int, ends: float, turns: bool = False
) -> TimeStep:
    """`rows` + 1 time steps; each row ends an episode or an agent's life with probability `ends`. turns: who acts is
    random too."""
    rng = np.random.default_rng(seed)

    def observe(space: ObservationSpace, lead: tuple[int, ...]) -> Any:
        if isinstance(space, Dict):
            return {key: observe(part, lead) for key, part in space.items}
        if isinstance(space, Discrete | MultiDiscrete):
            return jnp.asarray(rng.integers(0, 2, (*lead, *space.shape)), jnp.int32)
        if space.dtype == "uint8":
            return jnp.asarray(rng.integers(0, 256, (*lead, *space.shape)), jnp.uint8)
        return jnp.asarray(rng.normal(size=(*lead, *space.shape)), jnp.float32)

    def by_role(draw: Any) -> dict[str, Any]:
        return {spec.name: jnp.asarray(draw((rows + 1, lanes, spec.size))) for spec in specs}

    last = rng.random((rows + 1, lanes)) < ends
    first = np.concatenate([np.ones((1, lanes), bool), last[:-1]])
    state_size = 0 if specs[0].state_space is None else specs[0].state_space.shape[0]  # type: ignore[union-attr]
    step = TimeStep(
        obs={spec.name: observe(spec.observation_space, (rows + 1, lanes, spec.size)) for spec in specs},
        reward=by_role(lambda shape: rng.normal(size=shape).astype(np.float32)),
        terminated=by_role(lambda shape: rng.random(shape) < ends),
        truncated=by_role(lambda shape: rng.random(shape) < ends),
        alive=by_role(lambda shape: rng.random(shape) < 1 - ends),
        first=jnp.asarray(first),
        last=jnp.asarray(last),
        state=jnp.asarray(rng.normal(size=(rows + 1, lanes, state_size)), jnp.float32) if state_size else None,
    )
    if turns:
        step = step.replace(acting=by_role(lambda shape: rng.random(shape) < 0.5))  # type: ignore[attr-defined]
    return step


def act_through(algorithm: Algorithm, state: LearnerState, steps: TimeStep, key: Key) -> Trajectory:
    """The trajectory of the algorithm's own actions on given time steps; the carry is reset at `first`."""
    params, initial = algorithm.publish(state), algorithm.initial_carry()
    rows, lanes = steps.last.shape[0] - 1, steps.last.shape[1]
    keys = jax.random.split(key, (rows, lanes))

    def one_lane(steps: TimeStep, keys: jax.Array) -> Any:
        def body(carry: Any, row: Any) -> Any:
            step, key = row
            carry = jax.tree.map(lambda fresh, old: jnp.where(step.first, fresh, old), initial, carry)
            carry, action, extras = algorithm.act(params, carry, step, key, explore=True)
            return carry, (action, extras)

        return jax.lax.scan(body, initial, (jax.tree.map(lambda x: x[:-1], steps), keys))[1]

    action, extras = jax.vmap(one_lane, in_axes=1, out_axes=1)(steps, keys)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), initial)
    return Trajectory(steps, action, extras, carry, {}, jnp.zeros(lanes, jnp.int32))


def draw_state(algorithm: Any) -> LearnerState:
    """A learner with drawn parameters; compiling `init` takes longer than most tests do."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(algorithm.init, stream(0, "init"))
    state: LearnerState = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    hyper = {name: jnp.float32(getattr(algorithm.config, name)) for name in state.hyper}
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32), state.params)
    return state.replace(params=params, hyper=hyper)  # type: ignore[attr-defined, no-any-return]


class Rollouts:
    """`rollout(algorithm, state, ...)` makes time steps and acts on them; `rollout.act` acts on given ones."""

    draw_state = staticmethod(draw_state)

    def __init__(self) -> None:
        self._compiled: dict[int, Any] = {}

    def __call__(
        self,
        algorithm: Any,
        state: LearnerState,
        rows: int = 6,
        lanes: int = 4,
        seed: int = 0,
        ends: float = 0.15,
        turns: bool = False,
    ) -> Trajectory:
        return self.act(algorithm, state, random_steps(algorithm.specs, rows, lanes, seed, ends, turns), seed)

    def act(self, algorithm: Any, state: LearnerState, steps: TimeStep, seed: int) -> Trajectory:
        act = self._compiled.setdefault(id(algorithm), jax.jit(partial(act_through, algorithm)))
        trajectory: Trajectory = act(state, steps, stream(seed, "act"))
        return trajectory


@pytest.fixture(scope="session")
def rollout() -> Rollouts:
    """Trajectories for `algorithm.update`."""
    return Rollouts()
