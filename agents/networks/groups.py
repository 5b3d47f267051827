"""Networks stacked over agents, and how trajectories are laid out for them.

A *group* is a set of agents that share one network: every agent is one of its own, or (`sharing: role`) a role is one.
Parameters have the group axis in front, and so have a learner's arrays: `[T, B, n, ...]` becomes `[G, T, L, ...]` with
L = B n / G sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from marl.core.types import Array, Key, Tree

from .network import Network


def map_groups(f: Callable[..., Any], *args: Any) -> Any:
    """`f` for every group: `vmap` over the leading axis, or a plain call where that axis is 1.

    The plain call is worth its line: on a CPU the gradient of a 64-64 network costs a tenth less without that axis.
    """
    if jax.tree.leaves(args)[0].shape[0] > 1:
        return jax.vmap(f)(*args)
    return jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))


def init_groups(network: Network, key: Key, groups: int, inputs: int) -> Tree:
    """Parameters of `groups` independently drawn networks, group axis in front."""

    def one(k: Key) -> Tree:
        hidden = jnp.zeros((network.gru_size,), jnp.float32) if network.gru_size else None
        return network.init(k, jnp.zeros((inputs,), jnp.float32), hidden, method="step")["params"]

    return jax.vmap(one)(jax.random.split(key, groups))


def step_groups(
    network: Network, groups: int, params: Tree, x: Array, hidden: Array | None
) -> tuple[Array, Array | None]:
    """Outputs `[n, k]` and hidden states of one lane's n agents, each by its own group's network."""
    agents = x.shape[0]

    def one(p: Tree, *inputs: Any) -> Any:
        return network.apply({"params": p}, *inputs, method="step")

    def grouped(a: Array) -> Array:
        return a.reshape(groups, agents // groups, -1)

    output, hidden = map_groups(one, params, grouped(x), None if hidden is None else grouped(hidden))
    return output.reshape(agents, -1), None if hidden is None else hidden.reshape(agents, -1)


def unroll_groups(network: Network, params: Tree, x: Array, hidden: Array | None, first: Array) -> Array:
    """Outputs `[G, T, L, k]` of each group's network on x `[G, T, L, d]`, hidden `[G, L, H]`, first `[G, T, L]`."""

    def one(p: Tree, *inputs: Any) -> Any:
        return network.apply({"params": p}, *inputs, method="unroll")

    outputs: Array = map_groups(one, params, x, hidden, first)
    return outputs


def to_groups(x: Array, groups: int) -> Array:
    """`[T, B, n, ...]` to `[G, T, B * n / G, ...]`; G is n (one agent a group) or 1."""
    if groups == 1:
        return x.reshape(1, x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)


def from_groups(x: Array, agents: int) -> Array:
    """`[G, T, L, ...]` back to `[T, B, n, ...]`."""
    if x.shape[0] == 1:
        return x.reshape(x.shape[1], x.shape[2] // agents, agents, *x.shape[3:])
    return jnp.moveaxis(x, 0, 2)


def spread(first: Array, like: Array) -> Array:
    """A bool of the lane, `[T, B]`, for each group and sequence of `like` `[G, T, L, ...]`."""
    groups, sequences = like.shape[0], like.shape[2]
    each = jnp.repeat(first, sequences // first.shape[1], axis=1)
    return jnp.broadcast_to(each, (groups, *each.shape))
