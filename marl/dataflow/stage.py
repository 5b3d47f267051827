"""One policy's way from chunks to parameters: buffer, replay buffer if the algorithm asks for one, learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from marl.core.algorithm import Policy
from marl.core.errors import ConfigError
from marl.core.types import Key, Metrics, Tree
from marl.dataflow.buffers import Accepted, Answer, FifoBuffer, Lease
from marl.dataflow.chunks import Chunk, concatenate
from marl.dataflow.flow import FlowMeter
from marl.dataflow.learner import Learner
from marl.dataflow.learning import PRIORITY
from marl.dataflow.replay import ReplayBuffer


class LearnerStage:
    """Takes chunks, learns from batches of `batch` of them. With a replay buffer a batch of chunks is what is inserted
    at once, and `updates_per_add` samples of it are learned from once it holds `min_size` trajectories.

    ordered, capacity: of the FIFO buffer.  seed: of the replay's draws.
    """

    def __init__(
        self, learner: Learner, flow: FlowMeter, *, batch: int, ordered: bool, capacity: int, seed: int
    ) -> None:
        self.name, self.flow = learner.name, flow
        self.buffer = FifoBuffer(batch, ordered=ordered, capacity=capacity)
        self.learner = learner
        self.replay: ReplayBuffer | None = None
        needs = learner.algorithm.needs.replay
        if needs is not None:
            self.updates_per_add = needs.updates_per_add
            self.replay = ReplayBuffer(
                needs.capacity, needs.batch, needs.min_size, alpha=needs.alpha, beta=needs.beta, seed=seed
            )
        self._ahead: tuple[Lease, Any] | None = None  # with the batch as the learner placed it

    def offer(self, chunk: Chunk, version: int) -> Answer:
        """Take a chunk, or say why not. version: the learner's."""
        answer = self.buffer.offer(chunk, version)
        taken = isinstance(answer, Accepted)
        self.flow.add_chunks(offered=1, dropped=0 if taken else 1)
        self.flow.add_samples(inserted=chunk.lanes if taken else 0)
        return answer

    def prepare(self, version: int) -> bool:
        """Have the next batch on the learner's device, if it is there; while an update is under way this is the
        prefetch of the one after it. version: the learner's."""
        if self._ahead is None:
            lease = self.buffer.lease(version)
            if lease is not None:
                batch = None if self.replay is not None else self.learner.place(concatenate(lease.chunks))
                self._ahead = lease, batch
        return self._ahead is not None

    @property
    def next_chunks(self) -> tuple[Chunk, ...]:
        """The chunks that `learn` will use."""
        assert self._ahead is not None
        return tuple(self._ahead[0].chunks)

    def learn(self, version: int, env_steps: int, key: Key, pulled: Tree = None) -> list[tuple[Metrics, Any]]:
        """Learn from the batch that was prepared. Returns metrics and the count of updates thrown away, an update.

        pulled: parameters that a worker's gradient is taken at; None for an update of the usual kind.
        """
        assert self._ahead is not None
        (lease, batch), self._ahead = self._ahead, None
        for chunk in lease.chunks:
            self.flow.add_lag(version - chunk.version)
        learner, done = self.learner, []
        if self.replay is not None:
            done = self._replay_updates(self.replay, lease, env_steps, key)
        elif pulled is not None:
            assert batch is not None
            grads, metrics = learner.gradient(pulled, batch, key)
            done.append((learner.apply(grads, metrics, env_steps), learner.skipped))
        else:
            assert batch is not None
            done.append((learner.update(batch, env_steps, key), learner.skipped))
        self.buffer.ack(lease)
        if self.replay is None:
            self.flow.add_samples(trained=sum(chunk.lanes for chunk in lease.chunks))
        return done

    def _replay_updates(
        self, replay: ReplayBuffer, lease: Lease, env_steps: int, key: Key
    ) -> list[tuple[Metrics, Any]]:
        for chunk in lease.chunks:
            replay.offer(chunk)
        done = []
        for number in range(self.updates_per_add):
            sample = replay.sample()
            if sample is None:
                break
            weighted = sample.trajectory.replace(weight=sample.weights)  # type: ignore[attr-defined]
            metrics = self.learner.update(self.learner.place(weighted), env_steps, jax.random.fold_in(key, number))
            priority = metrics.pop(PRIORITY, None)
            if priority is not None and replay.alpha is not None:
                replay.update_priorities(sample.indices, sample.generations, np.asarray(priority))
            self.flow.add_samples(trained=replay.batch)
            done.append((metrics, self.learner.skipped))
        return done

    def snapshot(self) -> dict[str, Any]:
        """A plain tree; a batch that was prepared is saved as waiting."""
        stored = {"learner": self.learner.snapshot(), "buffer": self.buffer.snapshot()}
        return stored if self.replay is None else {**stored, "replay": self.replay.snapshot()}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `snapshot`, on a stage whose learner was started. Raises: CheckpointError if sizes differ."""
        self.learner.restore(stored["learner"])
        self.buffer.restore(stored["buffer"])
        if self.replay is not None:
            self.replay.restore(stored["replay"])
        self._ahead = None


def common_rollout(algorithms: Mapping[str, Policy]) -> int:
    """Rows of a rollout. Raises: ConfigError if the learners do not want the same."""
    lengths = {name: algorithm.needs.rollout for name, algorithm in algorithms.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ConfigError(f"rollout lengths differ ({listed}); dataflow.kind local needs one length for all learners")
    return next(iter(lengths.values()), 1)
