"""Who touches whom. A contact that is about to happen within the physics step counts too: it is due in the next one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from marl.envs.common.geometry import rectangle_contact
from marl.envs.common.lane_layout import computed_once

from .ordering import Order
from .params import DIAGONAL, LENGTH, WIDTH
from .state import HighwayState


class _Found(NamedTuple):
    """By place along the road. partner: the latest in the list with which a contact is about to happen, -1 for none."""

    touching: jax.Array
    partner: jax.Array
    push_x: jax.Array
    push_y: jax.Array

    def joined(self, other: _Found) -> _Found:
        later = other.partner > self.partner
        return _Found(
            self.touching | other.touching,
            jnp.where(later, other.partner, self.partner),
            jnp.where(later, other.push_x, self.push_x),
            jnp.where(later, other.push_y, self.push_y),
        )


def collide(state: HighwayState, order: Order, dt: float) -> HighwayState:
    """State after every pair of vehicles has been checked.

    A pair is looked at only within a distance that grows with the speed of the one earlier in the list. Touching
    crashes both at once. A coming contact pushes the two apart, half each, in the next physics step and crashes them
    then; with several partners the latest in the list decides. Vehicles k places apart along the road are checked
    together, for k = 1, 2, ... until none of them is within reach.
    """
    n = state.x.shape[0]
    cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
    mine = tuple(order.arranged(leaf) for leaf in (state.x, state.y, cos, sin, state.speed))
    x, y, cos, sin, speed = mine
    who = order.vehicle
    reach = DIAGONAL + jnp.maximum(speed.max(0), 0) * dt
    ends = (jnp.inf, 0, 0, 0, 0)
    padded = tuple(jnp.pad(leaf, ((0, n), (0, 0)), constant_values=end) for leaf, end in zip(mine, ends, strict=True))
    padded_who = jnp.pad(who, ((0, n), (0, 0)), constant_values=n)

    def ahead(leaf: jax.Array, places: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, places, n, axis=0)

    def behind(leaf: jax.Array, places: jax.Array, nothing: int) -> jax.Array:
        leaf = jnp.pad(leaf, ((n, 0), (0, 0)), constant_values=nothing)
        return jax.lax.dynamic_slice_in_dim(leaf, n - places, n, axis=0)

    def someone_in_reach(carry: tuple[jax.Array, _Found]) -> jax.Array:
        return (ahead(padded[0], carry[0]) - x <= reach).any()

    def check(carry: tuple[jax.Array, _Found]) -> tuple[jax.Array, _Found]:
        places, found = carry
        x2, y2, cos2, sin2, speed2 = (ahead(leaf, places) for leaf in padded)
        who2 = ahead(padded_who, places)
        dx, dy = x - x2, y - y2
        near = jnp.sqrt(dx * dx + dy * dy) <= DIAGONAL + jnp.where(who < who2, speed, speed2) * dt
        motion = ((speed * cos - speed2 * cos2) * dt, (speed * sin - speed2 * sin2) * dt)
        contact = rectangle_contact((dx, dy), (cos, sin), (cos2, sin2), motion, who < who2, LENGTH, WIDTH)
        touching, hit, push_x, push_y = computed_once(
            (near & contact.touching, near & contact.about_to_touch, 0.5 * contact.push_x, 0.5 * contact.push_y)
        )
        found = found.joined(_Found(touching, jnp.where(hit, who2, -1), push_x, push_y))
        theirs = _Found(
            behind(touching, places, False),
            behind(jnp.where(hit, who, -1), places, -1),
            behind(-push_x, places, 0),
            behind(-push_y, places, 0),
        )
        return places + 1, found.joined(theirs)

    zero = jnp.zeros_like(x)
    nothing = _Found(jnp.zeros(x.shape, bool), jnp.full(x.shape, -1, jnp.int32), zero, zero)
    _, found = jax.lax.while_loop(someone_in_reach, check, (jnp.int32(1), nothing))
    touching, partner, push_x, push_y = (order.listed(leaf) for leaf in found)
    struck = partner >= 0
    return dataclasses.replace(state, crashed=state.crashed | touching, struck=struck, push_x=push_x, push_y=push_y)
