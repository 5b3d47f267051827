"""A learner whose batches are split over devices by lane: those of this process, or those of a group of processes.

Parameters are on every device, each takes the gradient of its own lanes, and the algorithm averages over the mesh
axis, so that all take the same step. Programs are the same in both cases; only how arrays get onto the mesh differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from marl.core.algorithm import Algorithm
from marl.core.errors import ConfigError, RunError
from marl.core.types import Array, Key, Metrics, Trajectory, Tree
from marl.dataflow.chunks import map_lanes
from marl.dataflow.learning import MESH_AXIS, PRIORITY, guarded, learn, pack, unpack

MakeAlgorithm: TypeAlias = Callable[[str], Algorithm]  # an algorithm that averages over a mesh axis of this name

_LANES = P(MESH_AXIS)
_ROWS = P(None, MESH_AXIS)
_BATCH: Any = Trajectory(_ROWS, _ROWS, _ROWS, _LANES, _LANES, _LANES, _LANES)  # type: ignore[arg-type]
_HEAD = 3  # words of an order that name an update: its number, and 64 bits for its batch
_DRIFT = 1e-3  # of the largest parameter: more than rounding, even on devices that are not reproducible


def check_lanes(lanes: int, learners: int) -> None:
    """Raises: ConfigError if batches of so many lanes cannot be split evenly over the learners."""
    if lanes % learners:
        raise ConfigError(
            f"dataflow.learners: a batch of {lanes} lanes cannot be split evenly over {learners} learners; "
            "expected a divisor of its lanes"
        )


class ShardedLearner:
    """One policy's learner on several devices; it is used as `LearnerCore` is, and its snapshots are those.

    make_algorithm: gives the algorithm for a mesh axis of a name.  devices: all of the mesh, in the same order in every
    process that shares it. Where several processes do, each one makes the same calls in the same order, gives its own
    lanes to `place`, and process 0 decides on env steps and key.

    The update of N devices is that of one on the whole batch, up to rounding, if the algorithm takes the whole batch at
    once. Minibatches (PPO) are drawn by each device from its own lanes: the k-th minibatch is made of the devices' k-th
    parts, and is another one than a single learner would draw.
    """

    def __init__(self, name: str, make_algorithm: MakeAlgorithm, devices: Sequence[jax.Device]) -> None:
        self.name, self.algorithm = name, make_algorithm(MESH_AXIS)
        self.mesh = Mesh(np.asarray(devices), (MESH_AXIS,))
        own = jax.process_index()
        self.devices = len([d for d in devices if d.process_index == own])  # of this process
        self._shared = self.devices < len(devices)
        self._number = 0
        self._agreed: Any
        self.state: Any
        self.skipped: Any

    def start(self, key: Key) -> None:
        """A fresh state, the same on every device."""
        self.state = self._everywhere(_init(self.algorithm, key))
        self.skipped, self._agreed = self._everywhere((np.zeros((), np.int32), np.ones((), np.bool_)))

    def place(self, batch: Trajectory) -> Trajectory:
        """This process's lanes of a batch, split over its devices. Raises: ConfigError if that is not even."""
        check_lanes(batch.version.shape[0], self.devices)
        return map_lanes(lambda axis, leaf: self._put(leaf, _ROWS if axis else _LANES), batch)

    def update(self, batch: Trajectory, env_steps: int, key: Key, batch_id: int = 0) -> Metrics:
        """Learn from a batch. batch_id: names it, for processes to see that they learn from parts of the same one.

        Returns before the devices are done. If processes are not at the same update of the same batch, nothing is
        applied any more, and the next `published` or `snapshot` raises RunError.
        """
        own = self.state, self.skipped, self._agreed
        order = self._order(batch_id, env_steps, key)
        own, metrics, by_lane = _update(self.algorithm, self.mesh, str(jax.random.key_impl(key)), own, batch, order)
        self.state, self.skipped, self._agreed = own
        return {**metrics, **by_lane}

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        """The mean gradient over the lanes of all devices."""
        words = self._everywhere(np.asarray(jax.random.key_data(key)))
        found: tuple[Tree, Metrics] = _gradient(
            self.algorithm, self.mesh, str(jax.random.key_impl(key)), self._everywhere(params), batch, words
        )
        return found

    def apply(self, grads: Tree, metrics: Metrics, env_steps: int) -> Metrics:
        """Apply a gradient, the same in every process; one that is not finite is thrown away and counted."""
        grads, metrics, steps = self._everywhere((grads, metrics, np.float32(env_steps)))
        self.state, self.skipped, metrics = _apply(
            self.algorithm, self.mesh, self.state, self.skipped, grads, metrics, steps
        )
        return metrics

    @property
    def pending(self) -> Any:
        """Tells when the newest update is done."""
        return self.state.updates

    def published(self) -> Tree:
        """What actors need, on this process's first device. Raises: RunError if processes were not at one update."""
        self.check()
        return self.algorithm.publish(_here(self.state))

    def snapshot(self) -> dict[str, Any]:
        """As that of a learner on one device, which can go on from it, as can any number of them.

        Raises: RunError if processes were not at one update, or the devices' parameters have drifted apart.
        """
        self.check()
        if (apart := self.drift()) > _DRIFT:
            raise RunError(
                f"the learners of '{self.name}' have drifted apart by {apart:.2g} of their largest parameter; "
                "does the algorithm average its gradients over `axis`?"
            )
        return {"state": pack(_here(self.state)), "skipped": np.asarray(_here(self.skipped))}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Put a snapshot, of any number of devices, into the place of a fresh state.

        Raises: CheckpointError if it is of another algorithm or size.
        """
        state = unpack(stored["state"], _here(self.state), f"learner '{self.name}'")
        self.state = self._everywhere(state)
        self.skipped = self._everywhere(np.asarray(stored["skipped"]))

    def drift(self) -> float:
        """Largest difference between two devices' parameters, as a share of the largest parameter; 0 up to rounding."""
        return float(_here(_drift(self.mesh, self.state.params)))

    def check(self) -> None:
        """Wait for the newest update. Raises: RunError if processes were not at the same update of the same batch."""
        if not bool(_here(self._agreed)):
            raise RunError(f"the ranks of learner '{self.name}' are not at the same update of the same batch")

    # ---- onto the mesh ---------------------------------------------------------------------------------------------

    def _order(self, batch_id: int, env_steps: int, key: Key) -> Array:
        """What this process is about to do, a row for each of its devices: words that `_decided` reads."""
        self._number += 1
        head = np.array([self._number, batch_id & 0xFFFFFFFF, batch_id >> 32 & 0xFFFFFFFF], np.uint32)
        steps = np.array([env_steps], np.float32).view(np.uint32)
        words = np.concatenate([head, steps, np.asarray(jax.random.key_data(key)).astype(np.uint32)])
        return self._put(np.tile(words, (self.devices, 1)), _LANES)

    def _everywhere(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: self._put(leaf, P()), tree)

    def _put(self, leaf: Any, spec: P) -> Array:
        """A leaf onto the mesh; of one that is split, each process gives its part."""
        sharding = NamedSharding(self.mesh, spec)
        placed: Array
        if not self._shared:
            placed = jax.device_put(leaf, sharding)
        elif isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = self._put(jax.random.key_data(leaf), spec)
            placed = jax.random.wrap_key_data(words, impl=str(jax.random.key_impl(leaf)))
        elif isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            placed = leaf
        else:
            placed = jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        return placed


def split_lanes(batch: Trajectory, ranks: int) -> list[Trajectory]:
    """The lanes of a batch in so many equal parts, in order. Raises: ConfigError if that is not even."""
    lanes = batch.version.shape[0]
    check_lanes(lanes, ranks)
    each = lanes // ranks

    def part(start: int) -> Trajectory:
        own = slice(start, start + each)
        return map_lanes(lambda axis, leaf: leaf[:, own] if axis else leaf[own], batch)

    return [part(start) for start in range(0, lanes, each)]


def _here(tree: Tree) -> Tree:
    """What this process's first device holds of arrays that are the same on all: no copy, no communication."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


# ---- programs: compiled once for an algorithm object and a mesh -----------------------------------------------------


def _on(mesh: Mesh, program: Callable[..., Any], takes: Any, gives: Any) -> Callable[..., Any]:
    """`program` on every device of the mesh. Nobody checks that what it gives for all is the same on all."""
    mapped: Callable[..., Any] = jax.shard_map(program, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)
    return mapped


@partial(jax.jit, static_argnums=0)
def _init(algorithm: Algorithm, key: Key) -> Any:
    return algorithm.init(key)


def _own_key(words: Array, impl: str) -> Key:
    """A key of this device's own, so that no two draw the same."""
    return jax.random.fold_in(jax.random.wrap_key_data(words, impl=impl), jax.lax.axis_index(MESH_AXIS))


def _decided(order: Array) -> tuple[Array, Array, Array]:
    """What process 0 decided (env steps, words of the key), and whether all are at the same update."""
    orders = jax.lax.all_gather(order[0], MESH_AXIS)
    agreed = jnp.all(orders[:, :_HEAD] == orders[0, :_HEAD])
    return jax.lax.bitcast_convert_type(orders[0, _HEAD], jnp.float32), orders[0, _HEAD + 1 :], agreed


@partial(jax.jit, static_argnums=(0, 1, 2))
def _update(algorithm: Algorithm, mesh: Mesh, impl: str, own: Tree, batch: Trajectory, order: Array) -> Any:
    def program(own: Tree, batch: Trajectory, order: Array) -> Any:
        state, skipped, agreed = own
        env_steps, words, together = _decided(order)
        old = state.replace(env_steps=env_steps)
        new, bad, metrics = learn(algorithm, old, skipped, batch, _own_key(words, impl), MESH_AXIS)
        agreed &= together
        new, bad = jax.tree.map(lambda a, b: jnp.where(agreed, a, b), (new, bad), (state, skipped))
        by_lane = {tag: metrics.pop(tag) for tag in (PRIORITY,) if tag in metrics}
        return (new, bad, agreed), metrics, by_lane

    return _on(mesh, program, (P(), _BATCH, _LANES), (P(), P(), _LANES))(own, batch, order)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(algorithm: Any, mesh: Mesh, impl: str, params: Tree, batch: Trajectory, words: Array) -> Any:
    def program(params: Tree, batch: Trajectory, words: Array) -> Any:
        grads, metrics = algorithm.gradient(params, batch, _own_key(words, impl))
        return grads, jax.lax.pmean(metrics, MESH_AXIS)

    return _on(mesh, program, (P(), _BATCH, P()), P())(params, batch, words)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(algorithm: Any, mesh: Mesh, state: Any, skipped: Array, grads: Tree, metrics: Metrics, steps: Array) -> Any:
    def program(state: Any, skipped: Array, grads: Tree, metrics: Metrics, steps: Array) -> Any:
        state = state.replace(env_steps=steps)
        return guarded(algorithm.apply(state, grads), metrics, state, skipped, MESH_AXIS)

    return _on(mesh, program, P(), P())(state, skipped, grads, metrics, steps)


@partial(jax.jit, static_argnums=0)
def _drift(mesh: Mesh, params: Tree) -> Array:
    def program(params: Tree) -> Array:
        floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
        apart = [jnp.max(jax.lax.pmax(x, MESH_AXIS) - jax.lax.pmin(x, MESH_AXIS)) for x in floats]
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in floats]))
        share: Array = jax.lax.pmax(jnp.max(jnp.stack(apart)) / jnp.maximum(largest, 1e-30), MESH_AXIS)
        return share

    share: Array = _on(mesh, program, P(), P())(params)
    return share
