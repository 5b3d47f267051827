"""One process of a group of learners: how it joins, and what it does when the group says so.

The processes (ranks) form one JAX runtime (`jax.distributed`), each with its own devices and its own lanes of every
batch. A rank that is lost takes the group with it: whoever started the ranks ends them all and starts new ones from the
last snapshot, as a runtime cannot be joined twice.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.errors import RunError
from marl.core.types import Key, Trajectory, Tree
from marl.dataflow.arena import pack, unpack
from marl.dataflow.chunks import trajectory_restored, trajectory_snapshot
from marl.dataflow.learner_sharded import MakeAlgorithm, ShardedLearner
from marl.dataflow.parts import Blueprint


def free_address(host: str = "127.0.0.1") -> str:
    """`host:port` with a port that is free now; asked for by rank 0, on its own machine, under the name by which the
    other ranks reach it."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def join(address: str, ranks: int, rank: int, *, start_timeout_s: int = 120, heartbeat_s: int = 20) -> None:
    """Become rank number `rank` of `ranks`; returns when all are there. Before anything else that uses JAX.

    address: rank 0's `free_address`; it listens there without a password, as do the collectives on ports of their own:
    for a private network only.  heartbeat_s: JAX ends this process when another one has been silent for so long.

    Raises: RunError if the others do not come in time, or JAX was used before.
    """
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=ranks,
            process_id=rank,
            cluster_detection_method="deactivate",
            initialization_timeout=start_timeout_s,
            heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=heartbeat_s,
            coordinator_bind_address=address,
        )
    except RuntimeError as error:
        raise RunError(f"learner rank {rank} of {ranks} cannot join at {address}: {error}") from error


def leave() -> None:
    """Part in peace: all ranks call it, and each waits for the others. Not for a group that has failed: end that."""
    jax.distributed.shutdown()


def key_words(key: Key) -> dict[str, Any]:
    """A key as JSON."""
    return {"impl": str(jax.random.key_impl(key)), "words": np.asarray(jax.random.key_data(key)).tolist()}


def key_of(words: Mapping[str, Any]) -> Key:
    """The inverse of `key_words`."""
    key: Key = jax.random.wrap_key_data(jnp.asarray(words["words"], jnp.uint32), impl=words["impl"])
    return key


class RankLearner:
    """One policy's learner as its rank holds it: takes JSON, arrays and trajectories, gives arrays of NumPy.

    Every rank gets the same calls in the same order, each with its own lanes; `published` alone may be asked of one
    rank. One that raises must be ended, and its group with it: the other ranks wait for what it will not do.
    """

    def __init__(self, name: str, make_algorithm: MakeAlgorithm) -> None:
        self.core = ShardedLearner(name, make_algorithm, jax.devices())
        self._placed: dict[int, Trajectory] = {}

    def start(self, key: Mapping[str, Any]) -> None:
        """A fresh state. key: of `key_words`."""
        self.core.start(key_of(key))

    def place(self, batch_id: int, lanes: Trajectory) -> None:
        """This rank's lanes of a batch, ahead of its update: the copy to the devices runs beside an earlier update."""
        self._placed[batch_id] = self.core.place(lanes)

    def update(self, batch_id: int, env_steps: int, key: Mapping[str, Any]) -> dict[str, Any]:
        """Learn from a batch that was placed; what rank 0 gives as env steps and key counts for all.

        Returns when it is done: `{"metrics": floats by tag, "skipped": updates thrown away in a row}`, and `priority`,
        one a lane of this rank, if the algorithm gives it.
        Raises: RunError if the batch was not placed here, or the ranks are not at the same update of the same batch.
        """
        batch = self._take(batch_id)
        return self._done(self.core.update(batch, env_steps, key_of(key), batch_id))

    def gradient(self, params: Tree, batch_id: int, key: Mapping[str, Any]) -> tuple[Tree, dict[str, float]]:
        """The mean gradient over all ranks' lanes of a batch that was placed, and metrics."""
        grads, metrics = jax.tree.map(_local, self.core.gradient(params, self._take(batch_id), key_of(key)))
        return grads, {tag: float(value) for tag, value in metrics.items()}

    def apply(self, grads: Tree, metrics: Mapping[str, float], env_steps: int) -> dict[str, Any]:
        """Apply a gradient that every rank is given. Returns as `update`."""
        numbers: Any = {tag: np.float32(value) for tag, value in metrics.items()}
        return self._done(self.core.apply(grads, numbers, env_steps))

    def _take(self, batch_id: int) -> Trajectory:
        if batch_id not in self._placed:
            raise RunError(f"rank {jax.process_index()} of '{self.core.name}' has no lanes of batch {batch_id}")
        return self._placed.pop(batch_id)

    def _done(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        self.core.check()
        seen = {tag: _local(value) for tag, value in metrics.items()}
        lanes = {tag: value for tag, value in seen.items() if value.ndim}
        numbers = {tag: float(value) for tag, value in seen.items() if not value.ndim}
        return {"metrics": numbers, "skipped": int(_local(self.core.skipped)), **lanes}

    def published(self) -> Tree:
        """What actors need."""
        return jax.tree.map(np.asarray, self.core.published())

    def snapshot(self) -> dict[str, Any]:
        """As `LearnerCore.snapshot`: the same on every rank. Raises: RunError if the ranks have drifted apart."""
        return self.core.snapshot()

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a snapshot of any number of learners, after `start`. Raises: CheckpointError if sizes differ."""
        self.core.restore(stored)
        self._placed.clear()


def _local(array: Any) -> Any:
    """What this rank holds: all of an array that is the same everywhere, its part of one that is split."""
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        return np.asarray(array)
    return np.concatenate([np.asarray(shard.data) for shard in array.addressable_shards])


class RankShell:
    """A rank in a process of its own, with the learner of every policy. It holds nothing that is not lost with it.

    identity: of the blueprint, as the process sees it that starts this one.  address, ranks, rank: as in `join`.
    Raises: RunError if this process runs other code, or the other ranks do not come in time.
    """

    def __init__(self, blueprint: Blueprint, identity: str, address: str, ranks: int, rank: int) -> None:
        blueprint.check(identity)
        join(address, ranks, rank)
        parts = blueprint.make()
        self.learners = {name: RankLearner(name, partial(parts.on_axis, name)) for name in parts.learners}

    def call(self, policy: str, method: str, *arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a method of a policy's RankLearner; what it takes and gives went through `encode`."""
        return encode(getattr(self.learners[policy], method)(*[decode(value) for value in arguments]))


def encode(value: Any) -> dict[str, Any]:
    """An argument or a result as JSON, or as one block of bytes (`arena`). Raises: CheckpointError if it is neither."""
    if isinstance(value, Trajectory):
        return {"batch": pack(trajectory_snapshot(value), "a batch")}
    try:
        json.dumps(value)
    except TypeError:
        return {"tree": pack(jax.device_get(value), "what a rank is told")}
    return {"json": value}


def decode(encoded: Mapping[str, Any]) -> Any:
    """The inverse of `encode`; arrays are views of the block, numbers among them arrays of no dimension."""
    ((kind, value),) = encoded.items()
    if kind == "json":
        return value
    tree = unpack(value)
    return trajectory_restored(tree) if kind == "batch" else tree
