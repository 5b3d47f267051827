"""Replay draws with the right probabilities, at the right rate, and loses count of nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core.errors import CheckpointError, ConfigError, ShapeError
from marl.core.types import Trajectory
from marl.dataflow.buffers import Accepted, Rejected
from marl.dataflow.replay import RateLimiter, ReplayBuffer, Sample, SumTree

from .made import ROWS, chunk, through_a_file, trajectory

quick = settings(deadline=None, derandomize=True, max_examples=100)


def filled(chunks: int, capacity: int = 8, batch: int = 4, lanes: int = 2, **options: Any) -> ReplayBuffer:
    """Chunk k (from 1) has lanes of version 10k, 10k + 1, ..."""
    buffer = ReplayBuffer(capacity, batch, min_size=1, **options)
    for number in range(1, chunks + 1):
        assert buffer.offer(chunk(number, trajectory=trajectory(number, lanes))) == Accepted()
    return buffer


def sample(buffer: ReplayBuffer) -> Sample:
    found = buffer.sample()
    assert found is not None
    return found


def chi_square(counts: Any, probability: Any) -> float:
    expected = np.asarray(probability) * np.sum(counts)
    return float(np.sum((np.asarray(counts) - expected) ** 2 / expected))


def test_a_sample_is_whole_trajectories() -> None:
    drawn = sample(filled(3, batch=5)).trajectory
    lanes = drawn.version
    assert set(lanes) <= {10, 11, 20, 21, 30, 31}
    assert drawn.step.reward["a"].shape == (ROWS + 1, 5, 2)
    np.testing.assert_array_equal(drawn.step.obs["a"]["x"], np.broadcast_to(lanes[None, :, None, None], (4, 5, 2, 4)))
    np.testing.assert_array_equal(drawn.action["a"], np.broadcast_to(lanes[None, :, None], (ROWS, 5, 2)))
    np.testing.assert_array_equal(drawn.carry[0], lanes)
    np.testing.assert_array_equal(drawn.carry[1]["hidden"], np.broadcast_to(lanes[:, None], (5, 5)))
    assert drawn.version.dtype == np.int32


def test_the_oldest_trajectories_make_room() -> None:
    buffer = filled(4, capacity=5, batch=64)  # 8 lanes went into 5 places, across the end
    assert set(sample(buffer).trajectory.version) == {21, 30, 31, 40, 41}
    assert buffer.counters() == {
        **{"offered": 8, "held": 5, "evicted": 3, "dropped": 0, "sampled": 64},
        **{"dropped/duplicate": 0, "dropped/late": 0, "dropped/limited": 0},
    }


def test_a_sample_does_not_change_when_its_place_is_overwritten() -> None:
    buffer = filled(4)
    drawn = sample(buffer).trajectory
    before = drawn.version.copy()
    for number in range(5, 9):
        buffer.offer(chunk(number))
    np.testing.assert_array_equal(drawn.version, before)


def test_uniform_draws_are_uniform() -> None:
    drawn = sample(filled(5, capacity=20, batch=20_000))
    assert chi_square(np.bincount(drawn.indices, minlength=10), np.full(10, 0.1)) < 27.9  # 9 degrees, p = 0.001
    assert set(drawn.weights) == {1.0}


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_prioritised_draws_follow_the_priorities(alpha: float) -> None:
    buffer = filled(5, capacity=16, batch=20_000, alpha=alpha, beta=0.5)
    first = sample(buffer)
    priorities = np.linspace(0.1, 3.0, 10)
    places, where = np.unique(first.indices, return_index=True)
    assert places.tolist() == list(range(10))
    assert buffer.update_priorities(places, first.generations[where], priorities) == 10
    drawn = sample(buffer)
    probability = priorities**alpha / np.sum(priorities**alpha)
    counts = np.bincount(drawn.indices, minlength=10)
    assert chi_square(counts, probability) < 27.9
    unscaled = (10 * probability[drawn.indices]) ** -0.5
    np.testing.assert_allclose(drawn.weights, unscaled / unscaled.max(), rtol=1e-6)
    # The weights take back what the priorities did: a weighted mean is that of uniform draws at beta = 1.
    buffer.beta = 1.0
    full = sample(buffer)
    mean = np.average(full.trajectory.version, weights=full.weights)
    assert mean == pytest.approx(np.mean([10, 11, 20, 21, 30, 31, 40, 41, 50, 51]), abs=0.5)


def test_what_is_new_has_the_highest_priority_seen() -> None:
    buffer = filled(1, batch=10_000, alpha=1.0)
    first = sample(buffer)
    buffer.update_priorities(np.array([0]), first.generations[first.indices == 0][:1], [4.0])
    buffer.offer(chunk(2))
    counts = np.bincount(sample(buffer).indices, minlength=4)
    assert chi_square(counts, np.array([4, 1, 4, 4]) / 13) < 16.3  # 3 degrees, p = 0.001


def test_late_priorities_do_not_reach_what_came_instead() -> None:
    buffer = filled(4, batch=64, alpha=1.0)
    old = sample(buffer)
    buffer.offer(chunk(5))  # overwrites places 0 and 1
    kept = np.isin(old.indices, [0, 1])
    assert buffer.update_priorities(old.indices, old.generations, np.where(kept, 1e9, 1.0)) == int((~kept).sum())
    counts = np.bincount(np.concatenate([sample(buffer).indices for _ in range(100)]), minlength=8)
    assert chi_square(counts, np.full(8, 1 / 8)) < 24.4  # 7 degrees, p = 0.001


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_priorities_that_are_none_are_refused(bad: float) -> None:
    buffer = filled(1, batch=1, alpha=1.0)
    drawn = sample(buffer)
    with pytest.raises(ValueError, match="finite"):
        buffer.update_priorities(drawn.indices, drawn.generations, [bad])


@quick
@given(
    st.integers(1, 20),
    st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 5)), min_size=1, max_size=8), max_size=10),
)
def test_the_sum_tree_finds_what_a_cumulative_sum_finds(size: int, updates: list[list[tuple[int, int]]]) -> None:
    tree, weights = SumTree(size), np.zeros(size)
    for update in updates:
        indices = np.array([index % size for index, _ in update], np.int64)
        tree.set(indices, np.array([weight for _, weight in update], np.float64))
        for index, (_, weight) in zip(indices, update, strict=True):
            weights[index] = weight
        assert tree.total == weights.sum()
        np.testing.assert_array_equal(tree.get(np.arange(size)), weights)
        if tree.total:
            sums = np.arange(0, tree.total, 0.25)
            np.testing.assert_array_equal(tree.find(sums), np.searchsorted(np.cumsum(weights), sums, side="right"))


@quick
@given(st.integers(0, 2**32), st.integers(2, 300))
def test_rounding_never_leads_to_a_weight_of_zero(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(size) < 0.5, 0.0, rng.random(size) * 10.0 ** rng.integers(-12, 12, size))
    weights[rng.integers(size)] = 1.0
    tree = SumTree(size)
    tree.set(np.arange(size), weights)
    sums = np.append(rng.random(200) * tree.total, [0.0, np.nextafter(tree.total, 0.0)])
    found = tree.find(sums)
    assert (found < size).all()
    assert (weights[found] > 0).all()


@quick
@given(
    st.sampled_from([0.25, 1.0, 1.5, 8.0]),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(1, 10),
    st.floats(0, 10),
    st.lists(st.booleans(), max_size=200),
)
def test_the_limiter_keeps_its_bounds_and_never_stops(
    ratio: float, min_size: int, lanes: int, batch: int, more: float, schedule: list[bool]
) -> None:
    slack = max(batch, ratio * lanes) + more
    limiter = RateLimiter(ratio, min_size, slack)
    for insert_first in schedule:
        allowed = [limiter.can_sample(batch), limiter.can_insert(lanes)]
        assert any(allowed)
        if allowed[insert_first]:
            limiter.inserted += lanes * insert_first
            limiter.sampled += batch * (not insert_first)
        assert not limiter.sampled or limiter.inserted >= min_size
        if limiter.inserted >= min_size:
            assert abs(ratio * (limiter.inserted - min_size) - limiter.sampled) <= slack + 1e-9


def test_without_a_ratio_only_the_smallest_size_counts() -> None:
    limiter = RateLimiter(None, 3, 0.0)
    assert (limiter.can_insert(100), limiter.can_sample(1)) == (True, False)
    limiter.inserted = 3
    assert (limiter.can_insert(100), limiter.can_sample(100)) == (True, True)


def test_a_limited_buffer_samples_at_its_ratio() -> None:
    buffer = ReplayBuffer(16, 4, min_size=4, samples_per_insert=2.0)
    assert buffer.sample() is None
    number, samples = 0, 0
    while samples < 50:
        if buffer.can_insert(2):
            number += 1
            buffer.offer(chunk(number))
        while buffer.sample() is not None:
            samples += 1
    assert 4 * samples / (2 * number - 4) == pytest.approx(2.0, abs=0.1)
    buffer.limiter.sampled -= 100  # the learner stands still
    assert not buffer.can_insert(2)
    assert buffer.offer(chunk(number + 1)) == Rejected("limited")
    assert buffer.counters()["dropped/limited"] == 2


def test_sizes_that_do_not_fit_together_are_refused() -> None:
    for capacity, batch, least in ((4, 0, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ConfigError, match="min_size"):
            ReplayBuffer(capacity, batch, least)
    with pytest.raises(ConfigError, match="samples_per_insert > 0"):
        ReplayBuffer(4, 1, 1, samples_per_insert=0)
    with pytest.raises(ConfigError, match="cannot take a chunk of 5 lanes"):
        ReplayBuffer(4, 1, 1).offer(chunk(1, trajectory=trajectory(1, lanes=5)))
    with pytest.raises(ConfigError, match="at least 6"):
        ReplayBuffer(8, 1, 1, samples_per_insert=3.0, slack=4).offer(chunk(1))


def test_chunks_unlike_the_first_are_refused() -> None:
    buffer = filled(1)
    wide: Trajectory = dataclasses.replace(trajectory(2), version=np.zeros(2, np.int64))
    other = dataclasses.replace(trajectory(2), extras={})
    for bad, message in ((wide, r"int64\[2\] where replay has int32\[2\]"), (other, "other arrays")):
        with pytest.raises(ShapeError, match=message):
            buffer.offer(chunk(2, trajectory=bad))
    assert buffer.offered == 2


@quick
@given(
    st.integers(3, 9),
    st.sampled_from([None, 1.0, 4.0]),
    st.sampled_from([None, 0.6]),
    st.lists(st.tuples(st.sampled_from("oooosur"), st.integers(0, 12), st.integers(1, 3)), max_size=60),
)
def test_offered_is_held_plus_evicted_plus_dropped(
    capacity: int, ratio: float | None, alpha: float | None, actions: list[tuple[str, int, int]]
) -> None:
    """o offer, s sample, u sample and set priorities, r save and restore. What is held is what came last."""

    def new() -> ReplayBuffer:
        return ReplayBuffer(capacity, 2, min_size=2, alpha=alpha, samples_per_insert=ratio, slack=20.0, seed=1)

    buffer, came, last = new(), [], 0
    for action, number, lanes in actions:
        if action == "o":
            data = trajectory(len(came) + 1, lanes)
            if buffer.offer(chunk(1, sequence=number, trajectory=data)) == Accepted():
                came += data.version.tolist()
        elif action == "r":
            tree, before = buffer.snapshot(), buffer
            buffer = new()
            buffer.restore(tree)
            assert buffer.counters() == before.counters()
        elif (drawn := buffer.sample()) is not None:
            assert set(drawn.trajectory.version.tolist()) <= set(came[-capacity:])
            if action == "u" and alpha is not None:
                buffer.update_priorities(drawn.indices, drawn.generations, np.arange(2) + number)
        assert buffer.offered == buffer.held + buffer.evicted + buffer.dropped >= last
        assert buffer.held == min(len(came), capacity)
        last = buffer.offered


def test_a_restored_buffer_draws_what_the_saved_one_draws(tmp_path: Path) -> None:
    options: dict[str, Any] = {"capacity": 7, "alpha": 0.6, "samples_per_insert": 4.0, "slack": 80.0, "seed": 5}
    buffer = filled(5, **options)
    drawn = sample(buffer)
    buffer.update_priorities(drawn.indices, drawn.generations, np.arange(1.0, 5.0))
    tree = buffer.snapshot()
    after = ReplayBuffer(7, 4, min_size=1, alpha=0.6, samples_per_insert=4.0, slack=80.0, seed=99)
    after.restore(through_a_file(tree, tmp_path))
    for number in (6, 7):
        for one in (buffer, after):
            assert one.offer(chunk(number)) == Accepted()
        mine, theirs = sample(buffer), sample(after)
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert after.offer(chunk(3)) == Rejected("duplicate")
    with pytest.raises(CheckpointError, match="7 trajectories"):
        ReplayBuffer(8, 4, min_size=1).restore(tree)


def test_an_empty_buffer_passes_through_a_file(tmp_path: Path) -> None:
    after = ReplayBuffer(8, 4, min_size=1)
    after.restore(through_a_file(ReplayBuffer(8, 4, min_size=1).snapshot(), tmp_path))
    assert after.offer(chunk(1)) == Accepted()
    assert sample(after).trajectory.version.shape == (4,)


def test_a_snapshot_is_no_view_of_the_ring() -> None:
    buffer = filled(4, capacity=8)
    tree = buffer.snapshot()
    before = tree["ring"]["version"].copy()
    buffer.offer(chunk(5))
    np.testing.assert_array_equal(tree["ring"]["version"], before)
