"""All learners of a run, which learn at the same moments: from chunks to parameters, wherever the chunks come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.algorithm import Algorithm
from marl.core.prng import stream
from marl.core.types import Tree
from marl.dataflow.buffers import Answer
from marl.dataflow.chunks import Chunk
from marl.dataflow.flow import FlowMeter
from marl.dataflow.learner import Learner, LearnerCore
from marl.dataflow.learning import Updates
from marl.dataflow.stage import LearnerStage

MakeLearner: TypeAlias = Callable[[str, Algorithm], Learner]


class Trainer:
    """batch: chunks an update.  ordered, capacity: of the FIFO buffers.  seed: of the run.  make_learner: the learner
    of a policy by name; on JAX's default device if None."""

    def __init__(
        self,
        algorithms: Mapping[str, Algorithm],
        flow: FlowMeter,
        *,
        batch: int,
        ordered: bool,
        capacity: int,
        seed: int,
        make_learner: MakeLearner | None = None,
    ) -> None:
        make: MakeLearner = make_learner or LearnerCore
        self.seed, self.flow = seed, flow
        self.stages = {
            name: LearnerStage(make(name, algorithm), flow, batch=batch, ordered=ordered, capacity=capacity, seed=seed)
            for name, algorithm in algorithms.items()
        }
        self.env_steps_learned = 0
        self.pending: dict[str, Any] | None = None  # an update under way, by learner what tells that it is done
        self._metrics: dict[str, list[tuple[Any, Any]]] = {name: [] for name in self.stages}

    def start(self) -> None:
        """Fresh learners."""
        self.key = stream(self.seed, "update")
        for name, stage in self.stages.items():
            stage.learner.start(stream(self.seed, "init", name))

    def offer(self, chunk: Chunk, version: int) -> Answer:
        """Take a chunk, or say why not. version: the learners'."""
        return self.stages[chunk.policy].offer(chunk, version)

    def prepare(self, version: int) -> bool:
        """Have the next batches on the learners' devices; whether all are there."""
        return all([stage.prepare(version) for stage in self.stages.values()])

    @property
    def next_chunks(self) -> tuple[Chunk, ...]:
        """What the first learner will use next; the others use the same tickets."""
        return next(iter(self.stages.values())).next_chunks

    @property
    def all_next_chunks(self) -> list[Chunk]:
        """What all learners will use next."""
        return [chunk for stage in self.stages.values() for chunk in stage.next_chunks]

    @property
    def skipped(self) -> int:
        """Updates thrown away in a row, of the learner with the most; waits for the newest."""
        return max(int(stage.learner.skipped) for stage in self.stages.values())

    def slow_down(self, factor: float) -> bool:
        """Multiply every learning rate that is part of a learner's state; whether there was any."""
        found = False
        for stage in self.stages.values():
            state = getattr(stage.learner, "state", None)
            hyper = getattr(state, "hyper", None)
            if isinstance(hyper, Mapping) and "learning_rate" in hyper:
                slower = {**hyper, "learning_rate": hyper["learning_rate"] * jnp.float32(factor)}
                stage.learner.state = state.replace(hyper=slower)  # type: ignore[attr-defined,union-attr]
                found = True
        return found

    def learn(self, version: int, pulled: Mapping[str, Tree] | None = None) -> None:
        """Begin an update of every learner from what was prepared.

        pulled: parameters by learner at which a worker's gradient is taken; None for an update of the usual kind.
        """
        self.env_steps_learned += sum(chunk.env_steps for chunk in self.next_chunks)
        for name, key in self._keys().items():
            at = None if pulled is None else pulled[name]
            self._metrics[name] += self.stages[name].learn(version, self.env_steps_learned, key, at)
        self._begun()

    def apply(self, version: int, grads: Mapping[str, tuple[Tree, Mapping[str, Any]]], acted: int, steps: int) -> None:
        """Apply gradients that were taken elsewhere, by learner with their metrics.

        acted: the version they were taken at.  steps: the env steps they come from.
        """
        self.env_steps_learned += steps
        self._keys()  # so that it does not matter for later updates where a gradient was taken
        for name, (gradient, metrics) in grads.items():
            learner = self.stages[name].learner
            metrics = {tag: jnp.asarray(value) for tag, value in metrics.items()}
            self.flow.add_lag(version - acted)
            self._metrics[name].append((learner.apply(gradient, metrics, self.env_steps_learned), learner.skipped))
        self._begun()

    def _keys(self) -> dict[str, Any]:
        """By learner, the key of its next update."""
        self.key, update_key = jax.random.split(self.key)
        return {name: jax.random.fold_in(update_key, position) for position, name in enumerate(self.stages)}

    def _begun(self) -> None:
        self.pending = {name: stage.learner.pending for name, stage in self.stages.items()}

    @property
    def done(self) -> bool:
        """Whether the update under way has been computed."""
        assert self.pending is not None
        return all(x.is_ready() for x in self.pending.values())

    def finish(self) -> None:
        """Wait for the update under way."""
        for update in (self.pending or {}).values():
            update.block_until_ready()

    def published(self) -> dict[str, Tree]:
        """What actors need, by learner, of the update that was begun last; it counts as published from here on."""
        self.pending = None
        return {name: stage.learner.published() for name, stage in self.stages.items()}

    def take_updates(self) -> Updates:
        """What the updates since the last call amounted to; waits for them."""
        metrics: dict[str, Any] = {}
        skipped: dict[str, Any] = {}
        for name, seen in self._metrics.items():
            values = [{tag: float(x) for tag, x in m.items()} for m, bad in jax.device_get(seen) if int(bad) == 0]
            tags = values[0] if values else {tag: 0.0 for tag in (seen[0][0] if seen else {})}
            metrics[name] = {tag: np.float32(sum(v[tag] for v in values) / max(len(values), 1)) for tag in tags}
            skipped[name] = np.int32(self.stages[name].learner.skipped)
        updates: dict[str, Any] = {name: np.int64(len(seen)) for name, seen in self._metrics.items()}
        self._metrics = {name: [] for name in self.stages}
        for name, stage in self.stages.items():
            self.flow.depth(name, stage.buffer.held)
        return Updates(metrics, updates, skipped)

    def snapshot(self) -> dict[str, Any]:
        """A plain tree; an update under way must be published first."""
        return {
            "stages": {name: stage.snapshot() for name, stage in self.stages.items()},
            "key": np.asarray(jax.random.key_data(self.key)),
            "env_steps_learned": np.int64(self.env_steps_learned),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a snapshot, on a trainer that was started. Raises: CheckpointError if it is of another run."""
        for name, stage in self.stages.items():
            stage.restore(stored["stages"][name])
        self.key = jax.random.wrap_key_data(jnp.asarray(stored["key"]), impl=str(jax.random.key_impl(self.key)))
        self.env_steps_learned = int(stored["env_steps_learned"])
        self.pending = None
