"""Replay: trajectories kept in preallocated rings, drawn uniformly or by priority, at a bounded rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl.core.errors import CheckpointError, ConfigError, ShapeError
from marl.core.types import Trajectory
from marl.dataflow.buffers import Accepted, Answer, Rejected, SeenIds
from marl.dataflow.chunks import Chunk, map_lanes, trajectory_restored, trajectory_snapshot
from marl.dataflow.plain import Tree

REASONS = ("duplicate", "late", "limited")
_LOWEST_PRIORITY = 1e-6  # what is held can always be drawn

Indices = NDArray[np.int64]


class SumTree:
    """Non-negative weights by index, of which one can be found by its share of the sum, in log2(size) array
    operations for any number of indices. A node is recomputed from its children, so rounding does not add up."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._leaves = 1 << max(size - 1, 0).bit_length()
        self._nodes = np.zeros(2 * self._leaves, np.float64)  # 1 is the root, the children of k are 2k and 2k+1

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    def get(self, indices: Indices) -> NDArray[np.float64]:
        return self._nodes[self._leaves + indices]

    def set(self, indices: Indices, weights: ArrayLike) -> None:
        """Of an index that occurs more than once, the last weight counts."""
        nodes = self._leaves + indices
        self._nodes[nodes] = weights
        for _ in range(self._leaves.bit_length() - 1):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, sums: NDArray[np.float64]) -> Indices:
        """For each sum in [0, total): the first index up to which the weights add up to more than it. Never one of
        weight 0."""
        nodes = np.ones(len(sums), np.int64)
        rest = np.array(sums, np.float64)
        for _ in range(self._leaves.bit_length() - 1):
            left = self._nodes[2 * nodes]
            right = (rest >= left) & (self._nodes[2 * nodes + 1] > 0)  # rounding may not lead to an empty branch
            rest -= np.where(right, left, 0.0)
            nodes = 2 * nodes + right
        return nodes - self._leaves


class RateLimiter:
    """Keeps `sampled` within `slack` of `samples_per_insert * inserted`, counted from the first `min_size` on; before
    that, nothing is sampled. samples_per_insert None: as often as one likes.

    With slack >= samples an update and >= samples_per_insert * inserts a chunk, one of both is always allowed.
    """

    def __init__(self, samples_per_insert: float | None, min_size: int, slack: float) -> None:
        self.samples_per_insert = samples_per_insert
        self.min_size = min_size
        self.slack = slack
        self.inserted = 0
        self.sampled = 0

    @property
    def surplus(self) -> float:
        """How many samples are due: negative if too many were drawn."""
        return (self.samples_per_insert or 0.0) * (self.inserted - self.min_size) - self.sampled

    def can_insert(self, count: int) -> bool:
        if self.samples_per_insert is None or self.inserted < self.min_size:
            return True
        return self.surplus + self.samples_per_insert * count <= self.slack

    def can_sample(self, count: int) -> bool:
        if self.inserted < self.min_size:
            return False
        return self.samples_per_insert is None or self.surplus - count >= -self.slack


class Sample(NamedTuple):
    """trajectory: leaves `[T+1 or T, batch, ...]`.  indices, generations: i64 `[batch]`, for `update_priorities`.
    weights: importance weights f32 `[batch]`, at most 1 (all 1 if drawn uniformly)."""

    trajectory: Trajectory
    indices: Indices
    generations: Indices
    weights: NDArray[np.float32]


class ReplayBuffer:
    """Keeps the last `capacity` trajectories of one policy; one lane of a chunk is one trajectory. Counted in
    trajectories, `offered == held + evicted + dropped` at all times.

    Memory is taken when the first chunk comes, whose shapes all others must have.  batch: trajectories a sample, drawn
    with replacement.  min_size: no sample before so many were inserted.  alpha: None draws uniformly, else in
    proportion to `priority ** alpha`; beta: importance weights `(held * probability) ** -beta`, divided by the largest
    of the batch (Schaul et al. 2016, arXiv 1511.05952).  samples_per_insert, slack: see `RateLimiter`; slack None: as
    small as possible.

    Raises: ConfigError if sizes do not fit together (some are known when the first chunk comes).
    """

    def __init__(
        self,
        capacity: int,
        batch: int,
        min_size: int,
        *,
        alpha: float | None = None,
        beta: float = 0.4,
        samples_per_insert: float | None = None,
        slack: float | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < min_size <= capacity or batch < 1:
            raise ConfigError(
                f"replay needs 0 < min_size <= capacity and batch >= 1, got {min_size}, {capacity} and {batch}"
            )
        if samples_per_insert is not None and samples_per_insert <= 0:
            raise ConfigError(f"replay needs samples_per_insert > 0, got {samples_per_insert}")
        self.capacity = capacity
        self.batch = batch
        self.alpha = alpha
        self.beta = beta
        self.limiter = RateLimiter(samples_per_insert, min_size, float(batch) if slack is None else slack)
        self._smallest_slack = slack is None
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._ring: Trajectory | None = None
        self._next = 0
        self._generations = np.zeros(capacity, np.int64)  # how often a place was written
        self._weights = SumTree(capacity)
        self._highest = 1.0  # priority; what is new gets it, so that it is soon drawn
        self._seen = SeenIds()
        self.offered = 0
        self.held = 0
        self.evicted = 0
        self.dropped_by_reason = dict.fromkeys(REASONS, 0)

    @property
    def dropped(self) -> int:
        return sum(self.dropped_by_reason.values())

    def counters(self) -> dict[str, int]:
        """`offered`, `held`, `evicted`, `dropped`, `sampled`, and `dropped/<reason>`."""
        counts = {name: getattr(self, name) for name in ("offered", "held", "evicted", "dropped")}
        by_reason = {f"dropped/{reason}": n for reason, n in self.dropped_by_reason.items()}
        return counts | by_reason | {"sampled": self.limiter.sampled}

    def can_insert(self, lanes: int) -> bool:
        """Whether the limiter lets a chunk of so many lanes in."""
        return self.limiter.can_insert(lanes)

    def can_sample(self) -> bool:
        return self.limiter.can_sample(self.batch)

    def offer(self, chunk: Chunk) -> Answer:
        """Copy a chunk's lanes over the oldest ones, or drop it (`duplicate`, `late`, or `limited` where `can_insert`
        is False). Raises: ConfigError at the first chunk; ShapeError if it is not like the first one."""
        lanes = chunk.lanes
        if self._ring is None:
            self._allocate(chunk)
        self._check_shapes(chunk)
        self.offered += lanes
        reason = self._seen.mark(chunk) or (None if self.can_insert(lanes) else "limited")
        if reason is not None:
            self.dropped_by_reason[reason] += lanes
            return Rejected(reason)
        places = (self._next + np.arange(lanes)) % self.capacity
        assert self._ring is not None

        def write(axis: int, ring: NDArray[Any], rows: NDArray[Any]) -> None:
            ring[(slice(None),) * axis + (places,)] = rows

        map_lanes(write, self._ring, chunk.trajectory)
        self._next = int(places[-1] + 1) % self.capacity
        self._generations[places] += 1
        if self.alpha is not None:
            self._weights.set(places, self._highest**self.alpha)
        new = min(lanes, self.capacity - self.held)
        self.held += new
        self.evicted += lanes - new
        self.limiter.inserted += lanes
        return Accepted()

    def _allocate(self, chunk: Chunk) -> None:
        lanes, limiter = chunk.lanes, self.limiter
        if lanes > self.capacity:
            raise ConfigError(f"a replay buffer of {self.capacity} trajectories cannot take a chunk of {lanes} lanes")
        if limiter.samples_per_insert is not None:
            least = max(self.batch, limiter.samples_per_insert * lanes)
            if self._smallest_slack:
                limiter.slack = least
            elif limiter.slack < least:
                raise ConfigError(
                    f"replay with slack {limiter.slack:g} would come to a stop: batches of {self.batch} and chunks of "
                    f"{lanes} lanes at {limiter.samples_per_insert:g} samples per insert need at least {least:g}"
                )
        self._ring = map_lanes(self._room, chunk.trajectory)

    def _room(self, axis: int, leaf: NDArray[Any]) -> NDArray[Any]:
        return np.zeros((*leaf.shape[:axis], self.capacity, *leaf.shape[axis + 1 :]), leaf.dtype)

    def _check_shapes(self, chunk: Chunk) -> None:
        """NumPy would broadcast or convert in silence."""

        def check(axis: int, ring: NDArray[Any], leaf: NDArray[Any]) -> None:
            expected = (*ring.shape[:axis], chunk.lanes, *ring.shape[axis + 1 :])
            if leaf.shape != expected or leaf.dtype != ring.dtype:
                raise ShapeError(
                    f"chunk {chunk.sequence} of slot {chunk.slot} holds an array {leaf.dtype}{list(leaf.shape)} where "
                    f"replay has {ring.dtype}{list(expected)}"
                )

        assert self._ring is not None
        theirs: Any = jax.tree.structure(chunk.trajectory)
        if theirs != jax.tree.structure(self._ring):
            raise ShapeError(f"chunk {chunk.sequence} of slot {chunk.slot} has other arrays than replay holds")
        map_lanes(check, self._ring, chunk.trajectory)

    def sample(self) -> Sample | None:
        """Draw a batch, or None where `can_sample` is False. The arrays are copies."""
        if self._ring is None or not self.can_sample():
            return None
        if self.alpha is None:
            indices = self._rng.integers(self.held, size=self.batch, dtype=np.int64)
            weights = np.ones(self.batch, np.float32)
        else:
            indices = self._weights.find(self._rng.random(self.batch) * self._weights.total)
            probability = self._weights.get(indices) / self._weights.total
            unscaled = (self.held * probability) ** -self.beta
            weights = (unscaled / unscaled.max()).astype(np.float32)
        self.limiter.sampled += self.batch
        batch = map_lanes(lambda axis, ring: np.take(ring, indices, axis), self._ring)
        return Sample(batch, indices, self._generations[indices], weights)

    def update_priorities(self, indices: Indices, generations: Indices, priorities: ArrayLike) -> int:
        """Set the priorities (f32 `[batch]`, >= 0) of what was sampled; trajectories that were overwritten meanwhile
        keep theirs. Returns how many were set.

        Raises: ValueError if a priority is negative or not finite, or the buffer draws uniformly.
        """
        values = np.asarray(priorities, np.float64)
        if self.alpha is None or not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError("priorities must be finite and >= 0, and the buffer must have an alpha")
        current = self._generations[indices] == generations
        values = np.maximum(values[current], _LOWEST_PRIORITY)
        if len(values):
            self._weights.set(indices[current], values**self.alpha)
            self._highest = max(self._highest, float(values.max()))
        return len(values)

    def snapshot(self) -> Tree:
        """A plain tree of copies; only what is held is in it."""
        held = self.held
        ring = self._ring
        if ring is not None:
            ring = map_lanes(lambda axis, leaf: np.take(leaf, np.arange(held), axis), ring)
        return {
            "capacity": self.capacity,
            "ring": None if ring is None else trajectory_snapshot(ring),
            "next": self._next,
            "generations": self._generations[:held].copy(),
            "weights": self._weights.get(np.arange(held)),
            "highest": self._highest,
            "rng": _pack_generator(self._rng),
            "seen": self._seen.snapshot(),
            "offered": self.offered,
            "evicted": self.evicted,
            "dropped": dict(self.dropped_by_reason),
            "limiter": {name: getattr(self.limiter, name) for name in ("inserted", "sampled", "slack")},
        }

    def restore(self, tree: Tree) -> None:
        """The inverse of `snapshot`. Raises: CheckpointError if it was saved with another capacity."""
        if int(tree["capacity"]) != self.capacity:
            raise CheckpointError(
                f"the saved replay buffer has room for {tree['capacity']} trajectories, this one for {self.capacity}"
            )
        self.held = held = len(tree["generations"])
        self._ring = None
        if tree["ring"] is not None:
            saved = trajectory_restored(tree["ring"])
            self._ring = map_lanes(self._room, saved)

            def fill(axis: int, ring: NDArray[Any], leaf: NDArray[Any]) -> None:
                ring[(slice(None),) * axis + (slice(held),)] = leaf

            map_lanes(fill, self._ring, saved)
        self._next = int(tree["next"])
        self._generations = np.zeros(self.capacity, np.int64)
        self._generations[:held] = tree["generations"]
        self._weights = SumTree(self.capacity)
        self._weights.set(np.arange(held), tree["weights"])
        self._highest = float(tree["highest"])
        self._rng = _unpack_generator(tree["rng"])
        self._seen.restore(tree["seen"])
        self.offered, self.evicted = int(tree["offered"]), int(tree["evicted"])
        self.dropped_by_reason = {reason: int(tree["dropped"].get(reason, 0)) for reason in REASONS}
        self.limiter.inserted, self.limiter.sampled = int(tree["limiter"]["inserted"]), int(tree["limiter"]["sampled"])
        if self._smallest_slack:
            self.limiter.slack = float(tree["limiter"]["slack"])


_WORD = (1 << 64) - 1


def _pack_generator(rng: np.random.Generator) -> NDArray[np.uint64]:
    """A PCG64's state: two numbers of 128 bits, and half of a 64-bit draw that may be left over."""
    state: Any = rng.bit_generator.state
    position, increment = state["state"]["state"], state["state"]["inc"]
    words = [position >> 64, position & _WORD, increment >> 64, increment & _WORD]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def _unpack_generator(packed: NDArray[np.uint64]) -> np.random.Generator:
    words = packed.tolist()
    bits = np.random.PCG64(0)
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": words[0] << 64 | words[1], "inc": words[2] << 64 | words[3]},
        "has_uint32": words[4],
        "uinteger": words[5],
    }
    return np.random.Generator(bits)
