"""Averages and intervals: hand-worked numbers, agreement with SciPy, coverage by simulation, determinism, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from marl.core.errors import ShapeError
from marl.evaluate import statistics as st


def test_iqm_of_eight_numbers_is_the_mean_of_the_middle_four() -> None:
    assert st.iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_iqm_of_three_numbers_cuts_nothing() -> None:
    assert st.iqm(np.array([0.0, 1.0, 5.0])) == pytest.approx(2.0)


@pytest.mark.parametrize("n", [1, 3, 4, 7, 64, 321])
def test_iqm_agrees_with_scipy_trimmed_mean(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=(5, n))
    np.testing.assert_allclose(st.iqm(scores), stats.trim_mean(scores, 0.25, axis=1), rtol=1e-12)


def test_optimality_gap_counts_shortfall_only() -> None:
    assert st.optimality_gap(np.array([0.0, 0.5, 1.0, 3.0]), 1.0) == pytest.approx((1.0 + 0.5) / 4)


def test_probability_of_improvement_by_hand() -> None:
    # pairs (2,1)+ (2,2)= (2,3)- (4,1)+ (4,2)+ (4,3)+ : 4 wins and one tie of 6
    assert st.probability_of_improvement([2, 4], [1, 2, 3]) == pytest.approx(4.5 / 6)


def test_probability_of_improvement_agrees_with_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 9).astype(float), rng.integers(0, 6, 7).astype(float)
    assert st.probability_of_improvement(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (9 * 7))


def test_probability_of_improvement_of_swapped_sides_sums_to_one() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 8)), rng.normal(size=(3, 8))
    assert st.compare(a, b).improvement.value + st.compare(b, a).improvement.value == pytest.approx(1.0)


def test_bootstrap_over_one_run_agrees_with_scipy_percentile_bootstrap() -> None:
    scores = np.random.default_rng(2).gamma(2.0, size=200)
    ours = st.bootstrap(scores[None, :], seed=3)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert ours.value == pytest.approx(scores.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_median_interval_agrees_with_scipy() -> None:
    scores = np.random.default_rng(5).normal(size=101)
    ours = st.bootstrap(scores[None, :], st.median, resamples=4_000)
    theirs = stats.bootstrap(
        (scores,), np.median, n_resamples=4_000, method="percentile", rng=np.random.default_rng(6)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.06)
    assert ours.high == pytest.approx(theirs.high, abs=0.06)


def test_seeds_without_episode_noise_bootstrap_over_seeds_alone() -> None:
    # two seeds scoring 0 and 1: a resample is 00, 01, 10, 11, so its mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    scores = np.repeat([[0.0], [1.0]], 10, axis=1)
    assert st.bootstrap(scores) == (0.5, 0.0, 1.0)


def test_episodes_do_not_replace_seeds() -> None:
    """Ten times the episodes leave an interval that rests on seeds as wide as it was."""
    rng = np.random.default_rng(7)
    seed_effect = rng.normal(size=(5, 1))
    few = st.bootstrap(seed_effect + 0.1 * rng.normal(size=(5, 20)))
    many = st.bootstrap(seed_effect + 0.1 * rng.normal(size=(5, 200)))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.15)


def test_constant_scores_have_an_interval_without_width() -> None:
    assert st.bootstrap(np.full((3, 4), 7.0)) == (7.0, 7.0, 7.0)
    assert st.bootstrap([[7.0]]) == (7.0, 7.0, 7.0)


def _crossed(rng: np.random.Generator, seeds: int, episodes: int, spread: float = 1.0) -> np.ndarray:
    """Scores with mean 0: a seed effect of deviation 1, and of deviation `spread` what all seeds share, and noise."""
    shared, noise = rng.normal(size=(1, episodes)), rng.normal(size=(seeds, episodes))
    return rng.normal(size=(seeds, 1)) + spread * (shared + noise)


def _coverage(seeds: int, episodes: int, shared: bool, trials: int = 300, spread: float = 1.0) -> float:
    rng = np.random.default_rng(8)
    hits = 0
    for trial in range(trials):
        scores = _crossed(rng, seeds, episodes, spread)
        found = st.bootstrap(scores, shared_episodes=shared, resamples=400, seed=trial)
        hits += found.low <= 0.0 <= found.high
    return hits / trials


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "covered"), [(3, 0.85), (5, 0.90), (10, 0.93), (20, 0.95)])
def test_the_coverage_that_the_results_page_states(seeds: int, covered: float) -> None:
    assert _coverage(seeds, 64, shared=True, trials=1_000, spread=2.0) == pytest.approx(covered, abs=0.025)


def test_intervals_of_ten_seeds_cover_the_truth_about_as_often_as_they_say() -> None:
    assert 0.88 <= _coverage(10, 8, shared=True) <= 0.99


def test_intervals_of_three_seeds_cover_less_than_they_say_hence_preliminary() -> None:
    assert 0.6 <= _coverage(3, 64, shared=True) <= 0.9
    assert [st.preliminary(n) for n in (1, 3, 4, 5)] == [True, True, True, False]


def test_shared_episodes_must_be_drawn_jointly_to_cover() -> None:
    assert _coverage(10, 4, shared=False) < _coverage(10, 4, shared=True) - 0.04


def test_intervals_of_many_metrics_at_once_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(14)
    scores = rng.normal(size=(3, 5, 32)) * np.array([1.0, 5.0, 0.1])[:, None, None]
    for many, table in zip(st.mean_intervals(scores), scores, strict=True):
        alone = st.bootstrap(table)
        spread = alone.high - alone.low
        assert many.value == pytest.approx(alone.value)
        assert many.low == pytest.approx(alone.low, abs=0.05 * spread)
        assert many.high == pytest.approx(alone.high, abs=0.05 * spread)


def test_a_share_that_was_never_seen_is_not_certainly_zero() -> None:
    none, all_ = st.share_interval(st.Interval(0, 0, 0), 128), st.share_interval(st.Interval(1, 1, 1), 128)
    exact = stats.binomtest(0, 128).proportion_ci(0.95, method="exact")
    assert none == pytest.approx((0.0, exact.low, exact.high))
    assert all_ == pytest.approx((1.0, 1.0 - exact.high, 1.0))
    assert st.share_interval(st.Interval(0.5, 0.4, 0.6), 128) == (0.5, 0.4, 0.6)


def test_paired_difference_removes_what_both_share() -> None:
    rng = np.random.default_rng(9)
    hard = 10.0 * rng.normal(size=(1, 64))  # episodes differ far more than methods
    a, b = hard + 1.0 + 0.1 * rng.normal(size=(5, 64)), hard + 0.1 * rng.normal(size=(1, 64))
    paired, unpaired = st.compare(a, b).difference, st.compare(a, b, paired=False).difference
    assert paired.value == unpaired.value == pytest.approx(1.0, abs=0.05)
    assert 0.8 < paired.low < paired.high < 1.2
    assert unpaired.low < 0.0 < unpaired.high


def test_difference_of_a_method_with_itself_keeps_only_the_luck_of_seeds() -> None:
    scores = np.random.default_rng(10).normal(size=(1, 32))
    assert st.compare(scores, scores).difference == (0.0, 0.0, 0.0)


def test_unpaired_difference_takes_different_numbers_of_episodes() -> None:
    found = st.compare(np.ones((3, 4)), np.zeros((1, 9)), paired=False)
    assert found.difference == (1.0, 1.0, 1.0)


def test_improvement_interval_spans_zero_to_one_for_a_coin_flip_of_two_runs() -> None:
    a = np.array([[0.0], [2.0]])
    assert st.compare(a, [[1.0]]).improvement == (0.5, 0.0, 1.0)


def test_same_seed_same_interval_and_other_seed_nearly_the_same() -> None:
    scores = np.random.default_rng(11).normal(size=(5, 64))
    one, again, other = st.bootstrap(scores, seed=1), st.bootstrap(scores, seed=1), st.bootstrap(scores, seed=2)
    assert one == again
    assert one != other
    assert one.low == pytest.approx(other.low, abs=0.03)


def test_chunks_do_not_change_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(12).normal(size=(3, 16))
    whole = st.bootstrap(scores, st.iqm, resamples=1_000)
    monkeypatch.setattr(st, "_CHUNK", 48 * 7)
    assert st.bootstrap(scores, st.iqm, resamples=1_000).low == pytest.approx(whole.low, abs=0.05)


def test_ten_thousand_resamples_of_five_seeds_and_64_episodes_take_under_a_second_of_cpu() -> None:
    scores = np.random.default_rng(13).normal(size=(5, 64))
    start = time.process_time()
    st.bootstrap(scores, st.iqm)
    assert time.process_time() - start < 1.0


def test_curve_band_of_one_seed_has_no_width_and_of_two_spans_them() -> None:
    middle, low, high = st.curve_band([[1.0, 2.0]])
    assert middle.tolist() == low.tolist() == high.tolist() == [1.0, 2.0]
    middle, low, high = st.curve_band([[0.0, 1.0], [1.0, 3.0]])
    assert (middle.tolist(), low.tolist(), high.tolist()) == ([0.5, 2.0], [0.0, 1.0], [1.0, 3.0])


@pytest.mark.parametrize("bad", [[], [1.0, 2.0], [[]], [[1.0, float("nan")]], [[float("inf")]]])
def test_bad_tables_are_refused(bad: object) -> None:
    with pytest.raises(ShapeError):
        st.bootstrap(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[[1.0]], [[[]]], [[[float("nan")]]]])
def test_bad_stacks_of_tables_are_refused(bad: object) -> None:
    with pytest.raises(ShapeError):
        st.mean_intervals(bad)  # type: ignore[arg-type]


def test_paired_tables_of_unequal_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="same episodes"):
        st.compare(np.ones((1, 3)), np.ones((1, 4)))
