"""How far a score can be trusted: robust averages, bootstrap intervals, paired differences.

The unit of replication is the training seed: `scores` is `[n_seeds, n_episodes]`, one row a training seed, one column
an evaluation episode. A scripted policy was not trained, so it has one row and its intervals speak of episodes only.

Every seed is usually judged on the same held-out episodes. Then an easy episode is easy for all of them, and drawing
episodes anew for each seed would average that luck away; so seeds and episodes are drawn independently of each other
(`shared_episodes=True`: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007).
Seeds judged on different episodes take the ordinary two-level bootstrap: seeds first, then episodes within a seed.

Averages and probability of improvement follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021. Intervals are percentile intervals and depend on nothing but the scores and
`seed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl.core.errors import ShapeError

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]  # [..., n] -> [...]

RESAMPLES = 10_000
LEVEL = 0.95
ENOUGH_SEEDS = 5  # fewer training seeds than this and an interval is marked preliminary
_CHUNK = 1 << 22  # numbers gathered at once: 32 MiB


class Interval(NamedTuple):
    """A value with its percentile interval, all three in the unit of the score."""

    value: float
    low: float
    high: float


def mean(scores: Floats) -> Floats:
    """The mean over the last axis, `[..., n] -> [...]`."""
    return np.asarray(np.mean(scores, axis=-1), np.float64)


def median(scores: Floats) -> Floats:
    """The median over the last axis, `[..., n] -> [...]`."""
    return np.asarray(np.median(scores, axis=-1), np.float64)


def iqm(scores: Floats) -> Floats:
    """Interquartile mean over the last axis, `[..., n] -> [...]`: floor(n/4) scores are cut at each end."""
    n = scores.shape[-1]
    cut = n // 4
    if cut:
        scores = np.partition(scores, (cut, n - cut - 1), axis=-1)[..., cut : n - cut]
    return mean(scores)


def optimality_gap(scores: Floats, target: float) -> Floats:
    """How far scores fall short of `target`, over the last axis: the mean of max(0, target - score)."""
    return mean(np.maximum(target - scores, 0.0))


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """P(a run of A scores above a run of B), ties counted half: Mann-Whitney's U over n_a n_b.

    a, b: one score a run, `[n_a]` and `[n_b]`.
    """
    first, second = _vector(a), _vector(b)
    return float(np.mean(_wins(first[None, :], second[None, :])))


def preliminary(n_seeds: int) -> bool:
    """Whether a learned policy's interval rests on too few training seeds to be more than a first look."""
    return n_seeds < ENOUGH_SEEDS


def bootstrap(
    scores: ArrayLike,
    statistic: Statistic = mean,
    *,
    shared_episodes: bool = True,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Two-level bootstrap interval of `statistic` taken over all scores of all seeds.

    scores: `[n_seeds, n_episodes]`.  shared_episodes: column e is the same held-out episode in every row.
    With one row only episodes are drawn, with one column only seeds.
    Raises: ShapeError if `scores` is not a non-empty matrix of finite numbers.
    """
    table = _matrix(scores)
    n_seeds, n_episodes = table.shape
    seeds_rng, episodes_rng = _generators(seed, 2)
    samples = np.empty(resamples, np.float64)
    for part, rows in _chunks(resamples, n_seeds * n_episodes):
        seeds = seeds_rng.integers(n_seeds, size=(rows, n_seeds, 1))
        drawn = 1 if shared_episodes else n_seeds
        episodes = episodes_rng.integers(n_episodes, size=(rows, drawn, n_episodes))
        samples[part] = statistic(table[seeds, episodes].reshape(rows, n_seeds * n_episodes))
    return _interval(float(statistic(table.reshape(-1))), samples, level)


def mean_intervals(
    scores: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Interval]:
    """`bootstrap` of the mean for several metrics of the same shared episodes at once, at the price of one.

    scores: `[n_metrics, n_seeds, n_episodes]`.
    Raises: ShapeError if `scores` is not three-dimensional, is empty or holds a number that is not finite.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 3:
        raise ShapeError(f"scores must be a [n_metrics, n_seeds, n_episodes] table, not of shape {table.shape}")
    n_metrics, n_seeds, n_episodes = table.shape
    columns = _matrix(table.reshape(n_metrics * n_seeds, -1)).T
    seeds_rng, episodes_rng = _generators(seed, 2)
    samples = np.empty((n_metrics, resamples), np.float64)
    for part, rows in _chunks(resamples, max(n_episodes, n_metrics * n_seeds)):
        runs = (_weights(rows, n_episodes, episodes_rng) @ columns).reshape(rows, n_metrics, n_seeds)
        samples[:, part] = np.einsum("rms,rs->mr", runs, _weights(rows, n_seeds, seeds_rng))
    return [_interval(float(values.mean()), drawn, level) for values, drawn in zip(table, samples, strict=True)]


def share_interval(interval: Interval, n_episodes: int, *, level: float = LEVEL) -> Interval:
    """The interval of a share in [0, 1], widened where resampling cannot know better.

    If every episode scored 0 (or every one 1), every resample does too, and the bootstrap claims certainty. The exact
    binomial bound for `n_episodes` trials without success (Clopper and Pearson 1934) takes its place.
    """
    bound = float(1.0 - ((1.0 - level) / 2.0) ** (1.0 / n_episodes))
    if interval == (0.0, 0.0, 0.0):
        return Interval(0.0, 0.0, bound)
    return Interval(1.0, 1.0 - bound, 1.0) if interval == (1.0, 1.0, 1.0) else interval


class Comparison(NamedTuple):
    """A against B: the interval of mean(A) - mean(B), and the probability that a run of A scores above a run of B."""

    difference: Interval
    improvement: Interval


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    paired: bool = True,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare two methods; their training seeds are drawn independently, and a run's score is its mean over episodes.

    a: `[n_seeds_a, n_episodes]`.  b: `[n_seeds_b, n_episodes]`.  paired: column e is the same held-out episode in both,
    so an episode that is hard for both drops out of the difference. Unpaired, the numbers of episodes may differ.
    With one run on each side the probability can only be 0, 1/2 or 1.
    Raises: ShapeError if paired tables have different numbers of episodes.
    """
    first, second = _pair(a, b, paired)
    runs_a, runs_b = _resampled_runs(first, second, paired, resamples, seed)
    return Comparison(
        _interval(float(first.mean() - second.mean()), runs_a.mean(axis=1) - runs_b.mean(axis=1), level),
        _interval(
            probability_of_improvement(first.mean(axis=1), second.mean(axis=1)),
            _wins(runs_a, runs_b).mean(axis=(1, 2)),
            level,
        ),
    )


def curve_band(
    curves: ArrayLike, *, resamples: int = 2_000, level: float = LEVEL, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Mean curve over training seeds and its pointwise interval: `[n_seeds, n_points]` -> three `[n_points]`.

    A whole curve is one draw. With one seed the band has no width.
    """
    table = _matrix(curves)
    (rng,) = _generators(seed, 1)
    draws = rng.integers(len(table), size=(resamples, len(table)))
    weight = (draws[:, :, None] == np.arange(len(table))).mean(axis=1)  # [resamples, n_seeds]
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(weight @ table, [tail, 100.0 - tail], axis=0)
    return table.mean(axis=0), low, high


def _resampled_runs(first: Floats, second: Floats, paired: bool, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Run means under resampled seeds and episodes, `[resamples, n_seeds]` for each side."""
    seeds_a, seeds_b, episodes_a, episodes_b = _generators(seed, 4)
    runs_a, runs_b = np.empty((resamples, len(first))), np.empty((resamples, len(second)))
    for part, rows in _chunks(resamples, max(first.shape[1], second.shape[1])):
        weights = _weights(rows, first.shape[1], episodes_a)
        runs_a[part] = weights @ first.T
        if not paired:
            weights = _weights(rows, second.shape[1], episodes_b)
        runs_b[part] = weights @ second.T
    return _draw_seeds(runs_a, seeds_a), _draw_seeds(runs_b, seeds_b)


def _weights(rows: int, n: int, rng: np.random.Generator) -> Floats:
    """How much each of n things counts in each of `rows` resamples, `[rows, n]`, every row summing to 1."""
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) / n


def _draw_seeds(runs: Floats, rng: np.random.Generator) -> Floats:
    drawn: Floats = np.take_along_axis(runs, rng.integers(runs.shape[1], size=runs.shape), axis=1)
    return drawn


def _wins(a: Floats, b: Floats) -> Floats:
    """`[r, n_a]` and `[r, n_b]` to `[r, n_a, n_b]`: 1 where a is above b, 1/2 where they are equal."""
    left, right = a[:, :, None], b[:, None, :]
    wins: Floats = (left > right).astype(np.float64) + 0.5 * (left == right)
    return wins


def _interval(value: float, samples: Floats, level: float) -> Interval:
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))


def _generators(seed: int, n: int) -> list[np.random.Generator]:
    """Independent streams, so that a chunk size or a second statistic never shifts another stream's numbers."""
    return [np.random.default_rng([seed, stream]) for stream in range(n)]


def _chunks(resamples: int, width: int) -> Iterator[tuple[slice, int]]:
    size = max(1, _CHUNK // width)
    for start in range(0, resamples, size):
        stop = min(start + size, resamples)
        yield slice(start, stop), stop - start


def _matrix(scores: ArrayLike) -> Floats:
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ShapeError(f"scores must be a non-empty [n_seeds, n_episodes] table, not of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ShapeError("scores must be finite numbers; found NaN or infinity")
    return table


def _vector(scores: ArrayLike) -> Floats:
    vector = np.asarray(scores, np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ShapeError(f"run scores must be a non-empty vector, not of shape {vector.shape}")
    return vector


def _pair(a: ArrayLike, b: ArrayLike, paired: bool) -> tuple[Floats, Floats]:
    first, second = _matrix(a), _matrix(b)
    if paired and first.shape[1] != second.shape[1]:
        raise ShapeError(
            f"paired scores need the same episodes on both sides, not {first.shape[1]} and {second.shape[1]}"
        )
    return first, second
