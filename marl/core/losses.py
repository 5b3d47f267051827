"""Losses and errors element by element: arrays in, an array of one shape out. Averaging and masks are the caller's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from marl.core.types import Array


def policy_gradient(log_prob: Array, advantage: Array) -> Array:
    """-A log pi(a|s) (REINFORCE with baseline); no gradient flows through the advantage."""
    return -log_prob * jax.lax.stop_gradient(advantage)


def clipped_policy_gradient(log_prob: Array, old_log_prob: Array, advantage: Array, clip: float | Array) -> Array:
    """PPO's pessimistic surrogate, as a loss (Schulman et al. 2017, eq. 7).

    -min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_prob - old_log_prob).
    """
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(old_log_prob))
    advantage = jax.lax.stop_gradient(advantage)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def huber(error: Array, delta: float | Array) -> Array:
    """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2): quadratic near 0, linear on both sides (Huber 1964)."""
    size = jnp.abs(error)
    near = jnp.minimum(size, delta)
    return near * (size - 0.5 * near)


def value_loss(
    value: Array,
    target: Array,
    old_value: Array | None = None,
    clip: float | None = None,
    delta: float | None = None,
) -> Array:
    """Half squared error to the target, or its Huber form; with `clip`, the worse of plain and clipped prediction.

    Args: old_value: prediction when the data were taken; needed with `clip`.  clip: largest change of the prediction
    that is rewarded.  delta: Huber's threshold, None for the squared error.
    """

    def loss(error: Array) -> Array:
        return 0.5 * jnp.square(error) if delta is None else huber(error, delta)

    target = jax.lax.stop_gradient(target)
    plain = loss(value - target)
    if clip is None or old_value is None:
        return plain
    old_value = jax.lax.stop_gradient(old_value)
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(plain, loss(near - target))


def entropy(logits: Array) -> Array:
    """Entropy in nats of the categorical distributions with these logits, over the last axis."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def td(value: Array, reward: Array, discount: Array, next_value: Array) -> Array:
    """One-step error r + d v' - v; no gradient flows through the target."""
    return jax.lax.stop_gradient(reward + discount * next_value) - value


def expected_sarsa(q: Array, action: Array, reward: Array, discount: Array, next_q: Array, next_probs: Array) -> Array:
    """One-step error to the expectation over the next action (van Seijen et al. 2009).

    r + d sum_a pi(a|s') q(s', a) - q(s, action).  With `next_probs` one-hot it is SARSA (action taken) or
    Q-learning (greedy action).

    Args: q, next_q, next_probs: `[..., actions]`.  action: int `[...]`.  reward, discount: `[...]`.
    """
    chosen = jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]
    return td(chosen, reward, discount, jnp.sum(next_probs * next_q, axis=-1))
