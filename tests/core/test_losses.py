"""Losses on numbers that can be checked by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.core import losses


def close(actual: jax.Array, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected, np.float32), rtol=1e-6, atol=1e-6)


def test_policy_gradient_weighs_the_score_by_the_advantage() -> None:
    grad = jax.grad(lambda lp, a: losses.policy_gradient(lp, a).sum(), argnums=(0, 1))
    of_log_prob, of_advantage = grad(jnp.asarray([-1.0, -2.0]), jnp.asarray([3.0, -4.0]))
    close(of_log_prob, [-3, 4])
    close(of_advantage, [0, 0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside: the plain surrogate
        (1.5, 2.0, -2.4, 0.0),  # too likely already: no more reward for it
        (0.5, 2.0, -1.0, -1.0),  # less likely than before: the pessimistic branch still pulls back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clipped_policy_gradient(ratio: float, advantage: float, loss: float, slope: float) -> None:
    old = jnp.float32(-1.0)
    value, grad = jax.value_and_grad(losses.clipped_policy_gradient)(
        old + math.log(ratio), old, jnp.float32(advantage), 0.2
    )
    close(value, loss)
    close(grad, slope)  # d ratio / d log_prob = ratio


def test_gradient_equals_the_policy_gradient_while_the_policy_has_not_moved() -> None:
    log_prob, advantage = jnp.asarray([-0.3, -2.0]), jnp.asarray([1.5, -0.7])
    moved = jax.grad(lambda lp: losses.clipped_policy_gradient(lp, log_prob, advantage, 0.2).sum())(log_prob)
    close(moved, -advantage)


def test_huber_is_quadratic_inside_and_linear_on_both_sides() -> None:
    close(losses.huber(jnp.asarray([-20.0, -2.0, 0.0, 2.0, 20.0]), 10.0), [150, 2, 0, 2, 150])
    slopes = jax.vmap(jax.grad(lambda e: losses.huber(e, 10.0)))(jnp.asarray([-20.0, -2.0, 2.0, 20.0]))
    close(slopes, [-10, -2, 2, 10])


def test_value_loss_plain_clipped_and_huber() -> None:
    value, target, old = jnp.asarray([1.0, 1.0]), jnp.asarray([3.0, 3.0]), jnp.asarray([0.0, 0.9])
    close(losses.value_loss(value, target), [2, 2])
    # Clipped predictions are 0.2 and 1.0; the larger error counts.
    close(losses.value_loss(value, target, old, clip=0.2), [0.5 * 2.8**2, 2])
    close(losses.value_loss(value, target, delta=1.0), [1.5, 1.5])
    assert not jax.grad(lambda t: losses.value_loss(value, t, old, clip=0.2).sum())(target).any()
    moved_too_far = jax.grad(lambda v: losses.value_loss(v, target[0], old[0], clip=0.2))(value[0])
    close(moved_too_far, 0)


def test_entropy_of_uniform_and_certain() -> None:
    close(losses.entropy(jnp.asarray([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])), [math.log(4), 0])


def test_td_error_and_its_gradient() -> None:
    close(losses.td(jnp.float32(2.0), jnp.float32(1.0), jnp.float32(0.5), jnp.float32(8.0)), 3)
    gradients = jax.grad(losses.td, argnums=(0, 1, 2, 3))(*jnp.asarray([2.0, 1.0, 0.5, 8.0]))
    close(jnp.stack(gradients), [-1, 0, 0, 0])


def test_expected_sarsa_covers_sarsa_and_q_learning() -> None:
    q, next_q = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[4.0, 8.0]])
    action, reward, discount = jnp.asarray([1]), jnp.asarray([1.0]), jnp.asarray([0.5])
    for probabilities, expected in (
        ([0.5, 0.5], 1 + 0.5 * 6 - 2),
        ([1, 0], 1 + 0.5 * 4 - 2),
        ([0, 1], 1 + 0.5 * 8 - 2),
    ):
        error = losses.expected_sarsa(q, action, reward, discount, next_q, jnp.asarray([probabilities], jnp.float32))
        close(error, [expected])
