"""Run a world on many lanes at once with the lane axis last, behind a function that is written for one lane.

A world with some fifty movers has small, oddly sized arrays. With the lane axis last, neighbouring numbers in memory
belong to neighbouring lanes, so every elementwise operation fills the vector registers whatever the number of movers
is, and a loop over movers is a loop over whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def lanes_last(batched: Callable[..., Any]) -> Callable[..., Any]:
    """A one-lane function from `batched`, all of whose array arguments and results have the lane axis last.

    Called plainly it runs `batched` on one lane; under `vmap` (nested or not) it runs `batched` once on all lanes.
    Arguments that are not mapped are copied to every lane.
    """

    @jax.custom_batching.custom_vmap
    def on_lanes(*args: Any) -> Any:
        return batched(*args)

    @on_lanes.def_vmap
    def _merge(axis_size: int, is_mapped: list[Any], *args: Any) -> tuple[Any, Any]:
        def join(mapped: bool, leaf: jax.Array) -> jax.Array:
            if not mapped:
                leaf = jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
            leaf = jnp.moveaxis(leaf, 0, -2)
            return leaf.reshape(*leaf.shape[:-2], -1)

        def split(leaf: jax.Array) -> jax.Array:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], axis_size, -1), -2, 0)

        out = on_lanes(*(jax.tree.map(join, m, a) for m, a in zip(is_mapped, args, strict=True)))
        return jax.tree.map(split, out), jax.tree.map(lambda _: True, out)

    def one_lane(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[..., 0], on_lanes(*jax.tree.map(lambda leaf: leaf[..., None], args)))

    return one_lane


def computed_once(tree: Any) -> Any:
    """`tree`, unchanged: makes XLA's CPU compiler store it instead of computing it again in every place that reads it.

    That compiler regards gathers and arithmetic as free to repeat and fuses a copy of the whole chain into each
    reader; an optimization barrier is gone by then, a branch is not. Elsewhere this does nothing.
    """

    def behind_a_branch(tree: Any) -> Any:
        first = jax.tree.leaves(tree)[0].ravel()[0].astype(jnp.float32)
        always = first < jnp.inf  # something that the compiler cannot know
        return jax.lax.cond(always, lambda t: t, lambda t: jax.tree.map(jnp.zeros_like, t), tree)

    return jax.lax.platform_dependent(tree, cpu=behind_a_branch, default=lambda t: t)
