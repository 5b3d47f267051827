"""The fused placement: worlds, policies, buffer and learners in one compiled program, many updates a dispatch.

Seeds train side by side (`vmap`), lanes may be split over the local devices (`shard_map`, gradients averaged by the
algorithm over the mesh axis), the carry is donated, and nothing leaves the program but a handful of scalars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from marl.core.algorithm import Algorithm, Policy
from marl.core.collect import Lane, collect, init_lanes, lane_axes
from marl.core.env import AnyEnvironment
from marl.core.errors import ConfigError
from marl.core.prng import stream
from marl.core.types import Array, Key, LearnerState, Metrics, Trajectory, Tree
from marl.dataflow.learning import MESH_AXIS as MESH_AXIS
from marl.dataflow.learning import DispatchResult, learn, trajectory_of
from marl.dataflow.learning import count as count_rows
from marl.io import checkpoint


@struct.dataclass
class FusedState:
    """The whole run as one pytree; every leaf has the seed axis in front. learners: by policy name.

    skipped: by policy name, how many updates in a row were thrown away because they were not finite (i32).
    """

    learners: dict[str, LearnerState]
    lanes: Lane
    key: Key
    skipped: dict[str, Array]


def _zeros_like_shape(shape: Tree) -> Tree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)


class Fused:
    """Compiles and drives one fused run.

    env, policies: policies by name; together they play every role.  learners: names of those that learn.
    fixed: parameters by name of those that do not.  num_envs: lanes a seed.  seeds: run seeds, trained side by side.
    updates_per_dispatch: of the learner with the longest rollout.  devices: the lanes are split over them.

    Raises: ConfigError if the lanes cannot be split evenly.
    """

    def __init__(
        self,
        env: AnyEnvironment,
        policies: Mapping[str, Policy],
        learners: Sequence[str],
        fixed: Mapping[str, Tree],
        *,
        num_envs: int,
        seeds: Sequence[int],
        updates_per_dispatch: int,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.env = env
        self.policies = dict(policies)
        self.learners: dict[str, Algorithm] = {name: policies[name] for name in learners}  # type: ignore[misc]
        self.fixed = {name: fixed.get(name, ()) for name in policies if name not in self.learners}
        self.num_envs = num_envs
        self.seeds = tuple(seeds)
        rollouts = {name: policy.needs.rollout for name, policy in self.learners.items()}
        self.tick = math.gcd(*rollouts.values()) if rollouts else 1
        self.segments = {name: length // self.tick for name, length in rollouts.items()}
        if rollouts and self.tick < min(rollouts.values()):
            listed = ", ".join(f"{name}: {length}" for name, length in rollouts.items())
            raise ConfigError(
                f"rollout lengths ({listed}) share only ticks of {self.tick} rows; "
                "make the longer ones multiples of the shortest"
            )
        self.ticks_per_dispatch = max(updates_per_dispatch, 1) * math.lcm(*self.segments.values())
        self.keep_state = any(policy.needs.global_state for policy in self.learners.values())
        self.devices = list(devices) if devices is not None else [jax.devices()[0]]
        if num_envs % len(self.devices):
            raise ConfigError(
                f"dataflow.num_envs: {num_envs} lanes cannot be split evenly over {len(self.devices)} devices"
            )
        self.mesh = Mesh(np.asarray(self.devices), (MESH_AXIS,))
        self._axis = MESH_AXIS if len(self.devices) > 1 else None
        self._specs: FusedState | None = None
        self._dispatch: Any = None

    # ---- start -------------------------------------------------------------------------------------------------

    def _init_seed(self, learner_keys: dict[str, Key], lane_keys: Key, key: Key) -> FusedState:
        learners = {name: policy.init(learner_keys[name]) for name, policy in self.learners.items()}
        lanes = init_lanes(self.env, self.policies, self._params(learners), lane_keys)
        skipped = {name: jnp.zeros((), jnp.int32) for name in learners}
        return FusedState(learners, lanes, key, skipped)

    def init(self) -> FusedState:
        """Fresh state for every seed, placed on the devices. A seed's numbers do not depend on the other seeds."""
        learner_keys = {n: jnp.stack([stream(s, "init", n) for s in self.seeds]) for n in self.learners}
        lane_keys = jnp.stack([jax.random.split(stream(s, "lanes"), self.num_envs) for s in self.seeds])
        keys = jnp.stack([stream(s, "update") for s in self.seeds])
        state = jax.jit(jax.vmap(self._init_seed))(learner_keys, lane_keys, keys)
        return self.place(state)

    def place(self, state: FusedState) -> FusedState:
        """Put a state (fresh or from a checkpoint) onto the devices in the layout that `dispatch` expects."""
        shardings = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self.specs(state),
            is_leaf=lambda x: isinstance(x, P),
        )
        return jax.device_put(state, shardings)  # type: ignore[no-any-return]

    def specs(self, state: FusedState) -> FusedState:
        """How each leaf lies on the mesh: lanes split along their own axis, everything else on every device."""
        axes = lane_axes(self.env, state.lanes.params)

        def lane_spec(axis: int | None) -> Any:
            def spec(leaf: Array) -> P:
                if axis is None:
                    return P()
                position = axis + 1 if axis >= 0 else leaf.ndim + axis
                return P(*[MESH_AXIS if i == position else None for i in range(leaf.ndim)])

            return spec

        make: Any = FusedState  # a FusedState of specs
        lanes = Lane(
            **{
                field: jax.tree.map(lane_spec(getattr(axes, field)), getattr(state.lanes, field))
                for field in ("world", "step", "carry", "pending", "sums", "key", "params")
            }
        )
        everywhere = P()
        specs: FusedState = make(
            learners=jax.tree.map(lambda _: everywhere, state.learners),
            lanes=lanes,
            key=everywhere,
            skipped=jax.tree.map(lambda _: everywhere, state.skipped),
        )
        return specs

    # ---- one seed ----------------------------------------------------------------------------------------------

    def _params(self, learners: Mapping[str, LearnerState]) -> dict[str, Tree]:
        published = {name: policy.publish(learners[name]) for name, policy in self.learners.items()}
        return {**self.fixed, **published}

    def _tick(self, carry: Tree, index: Array, env_steps_before: Array) -> tuple[Tree, Tree]:
        state, open_batches, done = carry
        params = self._params(state.learners)
        lanes, rollout = collect(
            self.env,
            self.policies,
            params,
            state.lanes,
            self.tick,
            record=tuple(self.learners),
            keep_state=self.keep_state,
        )
        counts = count_rows(rollout)
        if len(self.devices) > 1:
            counts = jax.lax.psum(counts, MESH_AXIS)
        done = done + counts.env_steps
        key, update_key = jax.random.split(state.key)
        if len(self.devices) > 1:
            update_key = jax.random.fold_in(update_key, jax.lax.axis_index(MESH_AXIS))
        learners, skipped, reports = {}, {}, {}
        for position, name in enumerate(self.learners):
            learner = state.learners[name].replace(env_steps=env_steps_before + done.astype(jnp.float32))
            own_key = jax.random.fold_in(update_key, position)
            segment = trajectory_of(self.learners[name], name, rollout, learner.updates)
            count = self.segments[name]
            if count == 1:
                learner, bad, metrics = learn(
                    self.learners[name], learner, state.skipped[name], segment, own_key, self._axis
                )
                updated = jnp.ones((), jnp.int32)
            else:
                # The index comes from the scan's inputs, so that `cond` stays a branch under vmap over seeds.
                batch = _append(open_batches[name], segment, index % count, self.tick)
                open_batches = {**open_batches, name: batch}
                due = (index + 1) % count == 0
                learner, bad, metrics = self._learn_if(due, name, learner, state.skipped[name], batch, own_key)
                updated = due.astype(jnp.int32)
            learners[name], skipped[name], reports[name] = learner, bad, (metrics, updated, bad)
        return (FusedState(learners, lanes, key, skipped), open_batches, done), (counts, reports)

    def _learn_if(
        self, due: Array, name: str, learner: LearnerState, skipped: Array, batch: Trajectory, key: Key
    ) -> tuple[LearnerState, Array, Metrics]:
        def update(args: Tree) -> Tree:
            old, bad, rows, own_key = args
            return learn(self.learners[name], old, bad, rows, own_key, self._axis)

        arguments = (learner, skipped, batch, key)
        metric_shapes = jax.eval_shape(update, arguments)[2]

        def skip(args: Tree) -> Tree:
            return args[0], args[1], _zeros_like_shape(metric_shapes)

        return jax.lax.cond(due, update, skip, arguments)  # type: ignore[no-any-return]

    def _open_batches(self, state: FusedState) -> dict[str, Trajectory]:
        """Empty buffers for learners whose rollout spans several ticks; a dispatch ends with all of them used up."""
        if all(count == 1 for count in self.segments.values()):
            return {}

        def segment(state: FusedState) -> dict[str, Trajectory]:
            _, rollout = collect(
                self.env,
                self.policies,
                self._params(state.learners),
                state.lanes,
                self.tick,
                record=tuple(self.learners),
                keep_state=self.keep_state,
            )
            return {n: trajectory_of(self.learners[n], n, rollout, state.learners[n].updates) for n in self.learners}

        shapes = jax.eval_shape(segment, state)
        return {n: _empty_batch(shapes[n], c, self.tick) for n, c in self.segments.items() if c > 1}

    def _dispatch_seed(self, state: FusedState, env_steps_before: Array) -> tuple[FusedState, DispatchResult]:
        carry = (state, self._open_batches(state), jnp.zeros((), jnp.int32))
        indices = jnp.arange(self.ticks_per_dispatch, dtype=jnp.int32)
        (state, _, _), (counts, reports) = jax.lax.scan(lambda c, i: self._tick(c, i, env_steps_before), carry, indices)
        counts = jax.tree.map(lambda x: x.sum(axis=0, dtype=x.dtype), counts)
        metrics, updates, skipped = {}, {}, {}
        for name, (values, updated, bad) in reports.items():
            useful = (updated > 0) & (bad == 0)
            number = jnp.maximum(useful.sum(dtype=jnp.float32), 1.0)
            metrics[name] = {tag: jnp.where(useful, x, 0.0).sum() / number for tag, x in values.items()}
            if len(self.devices) > 1:
                metrics[name] = jax.lax.pmean(metrics[name], MESH_AXIS)
            updates[name] = updated.sum(dtype=jnp.int32)
            skipped[name] = bad[-1]
        return state, DispatchResult(
            metrics=metrics,
            env_steps=counts.env_steps,
            agent_steps=counts.agent_steps,
            updates=updates,
            skipped=skipped,
            episodes=counts.episodes,
            returns=counts.returns,
            length=counts.length,
            info=counts.info,
        )

    # ---- all seeds, all devices ----------------------------------------------------------------------------------

    def _program(self, state: FusedState, env_steps_before: Array) -> tuple[FusedState, DispatchResult]:
        if len(self.seeds) > 1:
            return jax.vmap(self._dispatch_seed)(state, env_steps_before)
        # A seed alone is not vmapped: plain code compiles to fewer and better kernels.
        state, result = self._dispatch_seed(jax.tree.map(lambda x: x[0], state), env_steps_before[0])
        return jax.tree.map(lambda x: x[None], (state, result))  # type: ignore[no-any-return]

    def compile(self, state: FusedState) -> Any:
        """The compiled dispatch, made once; `dispatch` calls it. Shows memory and cost through JAX's own `Compiled`."""
        if self._dispatch is None:
            program: Any = self._program
            if len(self.devices) > 1:
                specs = self.specs(state)
                program = jax.shard_map(
                    self._program,
                    mesh=self.mesh,
                    in_specs=(specs, P()),
                    out_specs=(specs, P()),
                    check_vma=False,
                )
            self._dispatch = (
                jax.jit(program, donate_argnums=0).lower(state, self._before([0] * len(self.seeds))).compile()
            )
        return self._dispatch

    def _before(self, env_steps: Sequence[int]) -> Array:
        before: Array = jax.device_put(np.asarray(env_steps, np.float32), NamedSharding(self.mesh, P()))
        return before

    def dispatch(self, state: FusedState, env_steps: Sequence[int]) -> tuple[FusedState, DispatchResult]:
        """Run `ticks_per_dispatch` ticks. env_steps: totals so far, one a seed. `state` is donated: use the new one."""
        new_state, result = self.compile(state)(state, self._before(env_steps))
        return new_state, result

    def published(self, state: FusedState, seed_index: int) -> dict[str, Tree]:
        """Parameters of every policy as seed number `seed_index` of this run publishes them."""
        learners = jax.tree.map(lambda x: x[seed_index], state.learners)
        return self._params(learners)

    def snapshot(self, state: FusedState) -> FusedState:
        """What a checkpoint holds: the state itself."""
        return state

    def load(self, path: Path, state: FusedState) -> tuple[FusedState, dict[str, Any]]:
        """The state saved in a checkpoint, placed, and its header. state: a fresh one, for its structure.

        Raises: CheckpointError if it is damaged or of another run.
        """
        loaded, header = checkpoint.load(path, state)
        return self.place(loaded), header

    def describe(self) -> str:
        """What runs where, in words."""
        devices = ", ".join(f"{d.platform}:{d.id}" for d in self.devices)
        return f"{self.num_envs} lanes x {len(self.seeds)} seeds on {devices}"

    def bottleneck(self) -> str:
        """One program has no parts that wait for each other."""
        return ""

    def take_events(self) -> list[tuple[int, str, str]]:
        """Nothing happens inside a compiled program that its results do not tell."""
        return []

    def close(self) -> None:
        """Nothing is held open."""

    def rows_per_dispatch(self) -> int:
        """Rows a seed collects in a dispatch; at most this many are env steps (reset rows are not counted)."""
        return self.ticks_per_dispatch * self.tick * self.num_envs


def _append(batch: Trajectory, segment: Trajectory, position: Array, rows: int) -> Trajectory:
    """Write a segment behind the ones already in `batch`: rows overlap by one, the carry is the first segment's."""

    def put(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, position * rows, axis=0)

    return Trajectory(
        step=jax.tree.map(put, batch.step, segment.step),
        action=jax.tree.map(put, batch.action, segment.action),
        extras=jax.tree.map(put, batch.extras, segment.extras),
        carry=jax.tree.map(lambda a, b: jnp.where(position == 0, b, a), batch.carry, segment.carry),
        next_action=segment.next_action,
        version=segment.version,
    )


def _empty_batch(segment: Trajectory, count: int, rows: int) -> Trajectory:
    def longer(extra: int) -> Any:
        return lambda s: jnp.zeros((count * rows + extra, *s.shape[1:]), s.dtype)

    return Trajectory(
        step=jax.tree.map(longer(1), segment.step),
        action=jax.tree.map(longer(0), segment.action),
        extras=jax.tree.map(longer(0), segment.extras),
        carry=_zeros_like_shape(segment.carry),
        next_action=_zeros_like_shape(segment.next_action),
        version=_zeros_like_shape(segment.version),
    )
