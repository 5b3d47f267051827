"""Oriented rectangles: do two of them touch now, and would they touch if both kept their velocity."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Contact(NamedTuple):
    """touching: now.  about_to_touch: now or within the step.  push_x, push_y: what separates the first from the
    second [m].
    """

    touching: jax.Array
    about_to_touch: jax.Array
    push_x: jax.Array
    push_y: jax.Array


def rectangle_contact(
    offset: tuple[jax.Array, jax.Array],
    heading: tuple[jax.Array, jax.Array],
    other_heading: tuple[jax.Array, jax.Array],
    motion: tuple[jax.Array, jax.Array],
    is_first: jax.Array,
    length: float,
    width: float,
) -> Contact:
    """Separating-axis test of two equal rectangles, elementwise.

    offset: centre of the first minus centre of the second [m].  heading, other_heading: (cos, sin).  motion:
    displacement of the first relative to the second within the step [m]; it lengthens the first one's shadow on each
    axis.  is_first: whether the rectangle called first here goes first where both are exactly level.
    The push is along the axis with the least overlap (the first such axis: along and across the first rectangle, then
    the second), which includes the coming motion.
    """
    (ox, oy), (mx, my) = offset, motion
    (ca, sa), (cb, sb) = heading, other_heading
    cos, sin = jnp.abs(ca * cb + sa * sb), jnp.abs(sa * cb - ca * sb)
    reach_along = 0.5 * (length + length * cos + width * sin)
    reach_across = 0.5 * (width + length * sin + width * cos)
    touching = about = jnp.bool_(True)
    least, push_x, push_y = jnp.full_like(ox, jnp.inf), jnp.zeros_like(ox), jnp.zeros_like(ox)
    axes = (
        (ca, sa, reach_along, 1),
        (-sa, ca, reach_across, -1),
        (cb, sb, reach_along, 1),
        (-sb, cb, reach_across, -1),
    )
    for nx, ny, reach, level in axes:  # level: the way a rectangle goes that is first and level
        shadow, moved = nx * ox + ny * oy, nx * mx + ny * my
        gap = jnp.abs(shadow) - reach
        swept_gap = jnp.abs(shadow + 0.5 * moved) - reach - 0.5 * jnp.abs(moved)
        touching, about = touching & (gap <= 0), about & (swept_gap <= 0)
        depth = jnp.abs(swept_gap)
        outward = jnp.where(shadow == 0, jnp.where(is_first, level, -level), jnp.sign(shadow)) * depth
        nearer = depth < least
        least = jnp.where(nearer, depth, least)
        push_x, push_y = jnp.where(nearer, outward * nx, push_x), jnp.where(nearer, outward * ny, push_y)
    return Contact(touching, about, push_x, push_y)
