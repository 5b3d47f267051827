"""The two losses of PPO for one group of agents: arrays of one minibatch in, a scalar out.

Arrays are `[L, ...]`, single rows, for feed-forward networks, and `[T, L, ...]`, whole sequences, for recurrent ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from marl.agents.networks.heads import ActionHead
from marl.agents.networks.network import Network
from marl.core.losses import clipped_policy_gradient, value_loss
from marl.core.types import Array, Metrics, Tree

from .config import PPOConfig


@struct.dataclass
class PolicyRows:
    """What the policy learns from. hidden: `[1, L, H]`, the state before row 0."""

    x: Array
    first: Array
    valid: Array
    raw_action: Array
    log_prob: Array
    advantage: Array
    action_mask: Array | None = None
    hidden: Array | None = None


@struct.dataclass
class ValueRows:
    """What a critic learns from; its K outputs have their own targets and masks `[..., K]`."""

    x: Array
    first: Array
    valid: Array
    target: Array
    old_value: Array


def policy_loss(
    params: Tree,
    rows: PolicyRows,
    entropy_coef: Array,
    clip: Array,
    network: Network,
    head: ActionHead,
    axis: str | None,
) -> tuple[Array, Metrics]:
    """Clipped surrogate minus weighted entropy, averaged over the valid rows of all devices."""
    hidden = None if rows.hidden is None else rows.hidden[0]
    output: Any = network.apply({"params": params}, rows.x, hidden, rows.first, method="unroll")
    chosen = head.distribution(output, params.get("log_std"), rows.action_mask)
    log_prob = chosen.log_prob(rows.raw_action)
    weight = weights(rows.valid, axis)
    log_ratio = jax.lax.stop_gradient(log_prob - rows.log_prob)
    ratio = jnp.exp(log_ratio)
    each = {
        "loss/policy": clipped_policy_gradient(log_prob, rows.log_prob, rows.advantage, clip),
        "policy/entropy": chosen.entropy(),
        "policy/approx_kl": (ratio - 1.0) - log_ratio,
        "policy/clip_fraction": (jnp.abs(ratio - 1.0) > clip).astype(jnp.float32),
    }
    means = dict(zip(each, jnp.tensordot(jnp.stack(list(each.values())), weight, weight.ndim), strict=True))
    return means["loss/policy"] - entropy_coef * means["policy/entropy"], means


def critic_loss(
    params: Tree, rows: ValueRows, config: PPOConfig, network: Network, axis: str | None
) -> tuple[Array, Metrics]:
    """Weighted value loss, averaged over the valid rows of all devices."""
    hidden = jnp.zeros((rows.x.shape[-2], network.gru_size), jnp.float32) if network.gru_size else None
    value: Any = network.apply({"params": params}, rows.x, hidden, rows.first, method="unroll")
    delta = config.huber_delta if config.value_loss == "huber" else None
    each = value_loss(value, rows.target, rows.old_value, config.value_clip, delta)
    loss = jnp.sum(weights(rows.valid, axis) * each)
    return config.value_coef * loss, {"loss/value": loss}


def weights(valid: Array, axis: str | None) -> Array:
    """Weights whose sum over the valid rows, averaged over the mesh axis, is 1.

    Dividing by the mean count (not the local one) makes the mean of the devices' gradients that of the joined batch.
    """
    weight = valid.astype(jnp.float32)
    count = jnp.sum(weight)
    if axis is not None:
        count = jax.lax.pmean(count, axis)
    return weight / jnp.maximum(count, 1.0)
