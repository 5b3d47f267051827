"""The optimiser that A3C's workers share."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from marl.core.types import Array, Tree

Networks = Mapping[str, Mapping[str, Tree]]  # by kind ("actor", "critic"), then by name; leaves [G, ...]


def rmsprop(params: Tree, moments: Tree, grads: Tree, rate: Array, decay: float, eps: float) -> tuple[Tree, Tree]:
    """g <- decay g + (1 - decay) d^2,  theta <- theta - rate d / sqrt(g + eps)   (Mnih et al. 2016, section 4).

    Not centred, without bias correction, and with eps inside the root.
    Returns: parameters and moments (g, zeros at the start).
    """
    moments = jax.tree.map(lambda g, d: decay * g + (1.0 - decay) * jnp.square(d), moments, grads)
    params = jax.tree.map(lambda x, g, d: x - rate * d / jnp.sqrt(g + eps), params, moments, grads)
    return params, moments


def norms(grads: Networks) -> dict[str, Array]:
    """By name, the norm `[G]` of each group's gradient: actor and critic of a group count as one."""
    squares: dict[str, Array] = {}
    for by_name in grads.values():
        for name, tree in by_name.items():
            leaves = [jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)]
            squares[name] = sum(leaves, squares.get(name, jnp.zeros((), jnp.float32)))
    return {name: jnp.sqrt(square) for name, square in squares.items()}


def limited(grads: Networks, largest: float) -> Networks:
    """Each group's gradient, scaled down to the norm `largest` where it is longer."""
    scale = {name: jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12)) for name, norm in norms(grads).items()}

    def scaled(name: str, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf * scale[name].reshape(-1, *([1] * (leaf.ndim - 1))), tree)

    return {kind: {name: scaled(name, tree) for name, tree in by_name.items()} for kind, by_name in grads.items()}
