"""Masked means and running moments, alone and over a mapped axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from marl.core import stats

RNG = np.random.default_rng(0)


def test_masked_mean_over_all_and_over_some_axes() -> None:
    x, mask = jnp.asarray([[1.0, 2.0], [3.0, 100.0]]), jnp.asarray([[True, True], [True, False]])
    assert float(stats.masked_mean(x, mask)) == 2.0
    np.testing.assert_allclose(stats.masked_mean(x, mask, axis=0), [2.0, 2.0])


def test_masked_mean_ignores_what_is_not_finite_outside_the_mask_and_is_zero_without_data() -> None:
    x = jnp.asarray([1.0, jnp.nan, jnp.inf])
    assert float(stats.masked_mean(x, jnp.asarray([True, False, False]))) == 1.0
    assert float(stats.masked_mean(x, jnp.zeros(3, bool))) == 0.0


def test_statistics_over_a_mapped_axis_equal_those_of_the_joined_data() -> None:
    x, mask = jnp.asarray(RNG.normal(size=(3, 8, 2)), jnp.float32), jnp.asarray(RNG.random((3, 8, 2)) < 0.6)
    joined_x, joined_mask = x.reshape(24, 2), mask.reshape(24, 2)

    def each(f):  # type: ignore[no-untyped-def]
        return jax.vmap(f, axis_name="d")(x, mask)

    mean, std = each(lambda a, m: stats.masked_mean_std(a, m, 0, "d"))
    wanted_mean, wanted_std = stats.masked_mean_std(joined_x, joined_mask, 0)
    np.testing.assert_allclose(mean, np.broadcast_to(wanted_mean, mean.shape), rtol=1e-5)
    np.testing.assert_allclose(std, np.broadcast_to(wanted_std, std.shape), rtol=1e-5)
    start = stats.RunningMoments.zero((2,))
    mapped = each(lambda a, m: stats.update_moments(start, a, m, 0, "d"))
    wanted = stats.update_moments(start, joined_x, joined_mask, 0)
    for got, want in zip(jax.tree.leaves(mapped), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-5)


def test_running_moments_merge_to_the_moments_of_everything() -> None:
    x = jnp.asarray(RNG.normal(5.0, 3.0, size=(4, 50)), jnp.float32)
    moments = stats.RunningMoments.zero()
    for part in x:
        moments = stats.update_moments(moments, part, jnp.ones(50, bool))
    np.testing.assert_allclose(moments.count, 200)
    np.testing.assert_allclose(moments.mean, np.mean(x), rtol=1e-5)
    np.testing.assert_allclose(moments.std, np.std(x), rtol=1e-5)


def test_running_moments_without_data_do_nothing_and_with_decay_forget() -> None:
    moments = stats.RunningMoments.zero()
    assert (float(moments.mean), float(moments.std)) == (0.0, 1.0)
    unchanged = stats.update_moments(moments, jnp.ones(3), jnp.zeros(3, bool))
    assert (float(unchanged.mean), float(unchanged.std)) == (0.0, 1.0)
    for number in (0.0, 10.0):
        moments = stats.update_moments(moments, jnp.full(4, number), jnp.ones(4, bool), decay=0.5)
    np.testing.assert_allclose(moments.mean, (0.5 * 4 * 0 + 4 * 10) / 6, rtol=1e-6)


def test_explained_variance_of_perfect_constant_and_worse_predictions() -> None:
    target, mask = jnp.asarray([1.0, 2.0, 3.0, 99.0]), jnp.asarray([True, True, True, False])
    for prediction, expected in ((target, 1.0), (jnp.full(4, 7.0), 0.0), (-target, -3.0)):
        np.testing.assert_allclose(stats.explained_variance(prediction, target, mask), expected, atol=1e-6)
