"""The learner: one jitted update a batch, gradients that others took, and what it publishes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.algorithm import Algorithm
from marl.core.types import Key, LearnerState, Metrics, Trajectory, Tree
from marl.dataflow.learning import guarded, learn, pack, unpack


class Learner(Protocol):
    """What a `LearnerStage` drives: `LearnerCore` on one device, `ShardedLearner` on several, `LearnerGroup` across
    processes.

    skipped: updates thrown away in a row, for `int`.  pending: of the newest update; it has `is_ready` and
    `block_until_ready`. A placed batch is only given back to the learner that placed it.
    """

    name: str
    algorithm: Algorithm

    @property
    def skipped(self) -> Any: ...
    @property
    def pending(self) -> Any: ...
    def start(self, key: Key) -> None: ...
    def place(self, batch: Trajectory) -> Any: ...
    def update(self, batch: Any, env_steps: int, key: Key) -> Any: ...
    def gradient(self, params: Tree, batch: Any, key: Key) -> tuple[Tree, Any]: ...
    def apply(self, grads: Tree, metrics: Any, env_steps: int) -> Any: ...
    def published(self) -> Tree: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, stored: Mapping[str, Any]) -> None: ...


class LearnerCore:
    """One policy's learner. Its state is not donated: what was published may still be in use by a server.

    Raises: nothing of its own; an update that is not finite is thrown away and counted in `skipped`.
    """

    def __init__(self, name: str, algorithm: Algorithm, device: jax.Device | None = None) -> None:
        self.name, self.algorithm, self.device = name, algorithm, device
        self.state: LearnerState
        self.skipped: Any = jnp.zeros((), jnp.int32)

    def start(self, key: Key) -> None:
        """A fresh state."""
        self.state = self._on_device(_init(self.algorithm, key))
        self.skipped = self._on_device(self.skipped)

    def _on_device(self, tree: Tree) -> Tree:
        return tree if self.device is None else jax.device_put(tree, self.device)

    def place(self, batch: Trajectory) -> Trajectory:
        """The batch on the learner's device; it may be called ahead of `update`, so that the copy overlaps another
        update (prefetch)."""
        return self._on_device(batch)  # type: ignore[no-any-return]

    def update(self, batch: Trajectory, env_steps: int, key: Key) -> Metrics:
        """Learn from a batch. env_steps: of the run so far, for schedules. Returns before the device is done."""
        metrics: Metrics
        self.state, self.skipped, metrics = _update(
            self.algorithm, self.state, self.skipped, batch, np.float32(env_steps), key
        )
        return metrics

    # ---- gradients that cross a boundary --------------------------------------------------------------------------

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        """What a worker does with the parameters it pulled."""
        found: tuple[Tree, Metrics] = _gradient(self.algorithm, self._on_device(params), batch, key)
        return found

    def apply(self, grads: Tree, metrics: Metrics, env_steps: int) -> Metrics:
        """Apply a gradient in the order of arrival; one that is not finite is thrown away and counted."""
        self.state, self.skipped, metrics = _apply(
            self.algorithm, self.state, self.skipped, grads, metrics, np.float32(env_steps)
        )
        return metrics

    @property
    def pending(self) -> Any:
        """Tells when the newest update is done."""
        return self.state.updates

    # ---- what others see ------------------------------------------------------------------------------------------

    def published(self) -> Tree:
        """What actors need."""
        return self.algorithm.publish(self.state)

    def snapshot(self) -> dict[str, Any]:
        """State leaves in order, and the count of updates thrown away."""
        return {"state": pack(self.state), "skipped": np.asarray(self.skipped)}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Put a snapshot into the place of a fresh state.

        Raises: CheckpointError if it is of another algorithm or size.
        """
        self.state = self._on_device(unpack(stored["state"], self.state, f"learner '{self.name}'"))
        self.skipped = self._on_device(jnp.asarray(stored["skipped"]))


# Compiled once for an algorithm object, whichever seeds and slots call them.


@partial(jax.jit, static_argnums=0)
def _init(algorithm: Algorithm, key: Key) -> LearnerState:
    return algorithm.init(key)


@partial(jax.jit, static_argnums=0)
def _update(algorithm: Algorithm, state: Any, skipped: Any, batch: Trajectory, env_steps: Any, key: Key) -> Any:
    return learn(algorithm, state.replace(env_steps=env_steps), skipped, batch, key)


@partial(jax.jit, static_argnums=0)
def _gradient(algorithm: Any, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
    return algorithm.gradient(params, batch, key)  # type: ignore[no-any-return]


@partial(jax.jit, static_argnums=0)
def _apply(algorithm: Any, state: Any, skipped: Any, grads: Tree, metrics: Metrics, env_steps: Any) -> Any:
    state = state.replace(env_steps=env_steps)
    return guarded(algorithm.apply(state, grads), metrics, state, skipped)
