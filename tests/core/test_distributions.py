"""Distributions against closed forms, frequencies and numerical integrals."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.core.distributions import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian
from marl.core.errors import ShapeError
from marl.core.prng import stream

KEY = stream(0, "test")


def close(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def test_categorical_by_hand() -> None:
    p, q = Categorical(jnp.log(jnp.asarray([0.5, 0.25, 0.25]))), Categorical(jnp.zeros(3))
    close(p.log_prob(jnp.int32(0)), math.log(0.5))
    close(p.entropy(), 1.5 * math.log(2))
    close(p.kl(q), math.log(3) - 1.5 * math.log(2))
    close(p.kl(p), 0)
    assert int(p.mode()) == 0
    assert p.sample(KEY).dtype == jnp.int32


def test_categorical_samples_with_its_probabilities() -> None:
    wanted = np.asarray([0.6, 0.3, 0.1])
    p = Categorical(jnp.broadcast_to(jnp.log(jnp.asarray(wanted, jnp.float32)), (20_000, 3)))
    share = np.bincount(np.asarray(p.sample(KEY)), minlength=3) / 20_000
    close(share, wanted, 0.015)


def test_masked_actions_are_never_drawn_and_do_not_count() -> None:
    mask = jnp.asarray([True, False, True, False])
    p = Categorical.masked(jnp.asarray([0.0, 50.0, 0.0, 50.0]), mask)
    drawn = jax.vmap(p.sample)(jax.random.split(KEY, 2000))
    assert set(np.asarray(drawn).tolist()) == {0, 2}
    assert int(p.mode()) in (0, 2)
    close(p.entropy(), math.log(2))
    close(p.log_prob(jnp.int32(2)), math.log(0.5))
    close(p.kl(Categorical.masked(jnp.zeros(4), mask)), 0)
    gradient = jax.grad(
        lambda x: Categorical.masked(x, mask).entropy() + Categorical.masked(x, mask).log_prob(jnp.int32(0))
    )
    assert np.isfinite(gradient(jnp.asarray([1.0, 2.0, 3.0, 4.0]))).all()


def test_a_mask_that_allows_nothing_gives_the_uniform_distribution_without_nan() -> None:
    p = Categorical.masked(jnp.asarray([1.0, 2.0]), jnp.zeros(2, bool))
    close(p.log_prob(jnp.int32(1)), math.log(0.5))
    close(p.entropy(), math.log(2))


def test_multi_categorical_is_the_product_of_its_parts() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    p = MultiCategorical.masked(logits, None, (2, 3))
    a, b = Categorical(logits[:, :2]), Categorical(logits[:, 2:])
    drawn = p.sample(KEY)
    assert drawn.shape == (7, 2)
    close(p.log_prob(drawn), a.log_prob(drawn[:, 0]) + b.log_prob(drawn[:, 1]))
    close(p.entropy(), a.entropy() + b.entropy())
    close(p.kl(MultiCategorical(jnp.zeros((7, 5)), (2, 3))), math.log(6) - p.entropy())
    np.testing.assert_array_equal(p.mode(), jnp.stack([a.mode(), b.mode()], axis=1))
    masked = MultiCategorical.masked(logits, jnp.asarray([True, False, False, False, True]), (2, 3))
    np.testing.assert_array_equal(masked.sample(KEY), np.broadcast_to([0, 2], (7, 2)))
    with pytest.raises(ShapeError, match="5 choices"):
        MultiCategorical.masked(logits[:, :4], None, (2, 3))


def test_gaussian_by_hand() -> None:
    p = DiagonalGaussian(jnp.asarray([1.0, -1.0]), jnp.log(jnp.asarray([2.0, 0.5])))
    expected = sum(
        -0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi)) for x, m, s in ((0, 1, 2), (0, -1, 0.5))
    )
    close(p.log_prob(jnp.zeros(2)), expected)
    close(p.entropy(), sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in (2, 0.5)))
    close(p.mode(), [1, -1])
    q = DiagonalGaussian(jnp.zeros(2), jnp.zeros(2))
    close(p.kl(q), sum(0.5 * (s * s + m * m - 1) - math.log(s) for m, s in ((1, 2), (-1, 0.5))))
    drawn = jax.vmap(p.sample)(jax.random.split(KEY, 20_000))
    close(drawn.mean(0), [1, -1], 0.05)
    close(drawn.std(0), [2, 0.5], 0.05)


def test_tanh_gaussian_density_integrates_to_one_and_inverts_its_samples() -> None:
    p = TanhGaussian(jnp.asarray([0.3]), jnp.asarray([-0.5]))
    grid = jnp.linspace(-0.9999, 0.9999, 20_001)[:, None]
    density = jnp.exp(jax.vmap(p.log_prob)(grid))
    close(jnp.trapezoid(density, grid[:, 0]), 1.0, 1e-3)
    action, log_prob = p.sample_and_log_prob(KEY)
    close(p.log_prob(action), log_prob, 1e-4)
    np.testing.assert_array_equal(action, p.sample(KEY))
    close(p.mode(), jnp.tanh(p.mean))
    close(p.kl(p), 0)


def test_tanh_gaussian_stays_finite_at_the_bounds_and_its_entropy_is_near_the_integral() -> None:
    p = TanhGaussian(jnp.asarray([20.0]), jnp.asarray([0.0]))
    assert np.isfinite(p.log_prob(jnp.asarray([1.0])))
    assert np.isfinite(p.sample_and_log_prob(KEY)[1])
    q = TanhGaussian(jnp.zeros(1), jnp.asarray([-0.5]))
    estimate = jax.vmap(q.entropy)(jax.random.split(KEY, 20_000)).mean()
    grid = jnp.linspace(-0.9999, 0.9999, 20_001)[:, None]
    log_density = jax.vmap(q.log_prob)(grid)
    close(estimate, -jnp.trapezoid(jnp.exp(log_density) * log_density, grid[:, 0]), 0.02)
    assert float(q.entropy()) > float(estimate) - 0.5
