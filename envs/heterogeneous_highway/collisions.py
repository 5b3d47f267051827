"""Who touches whom. A contact that is about to happen within the physics step already counts: it is due in the next
one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from marl.envs.common.geometry import rectangle_contact

from .params import DIAGONAL, LENGTH, WIDTH
from .state import HighwayState


def collide(state: HighwayState, dt: float) -> HighwayState:
    """State after every pair of vehicles has been checked.

    A pair is looked at only within a distance that grows with the speed of the one earlier in the list. Touching
    crashes both at once. A coming contact pushes the two apart, half each, in the next physics step and crashes them
    then; with several partners the latest in the list decides.
    """
    n = state.x.shape[0]
    rows = jnp.arange(n)[:, None]
    cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
    vx, vy = state.speed * cos, state.speed * sin

    def check(j: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        crashed, struck, push_x, push_y = found
        dx, dy = state.x - state.x[j], state.y - state.y[j]
        first_speed = jnp.where(rows < j, state.speed, state.speed[j])
        near = (rows != j) & (jnp.sqrt(dx * dx + dy * dy) <= DIAGONAL + first_speed * dt)
        motion = ((vx - vx[j]) * dt, (vy - vy[j]) * dt)
        contact = rectangle_contact((dx, dy), (cos, sin), (cos[j], sin[j]), motion, LENGTH, WIDTH)
        hit = near & contact.about_to_touch
        return (
            crashed | (near & contact.touching),
            struck | hit,
            jnp.where(hit, 0.5 * contact.push_x, push_x),
            jnp.where(hit, 0.5 * contact.push_y, push_y),
        )

    found = (state.crashed, state.struck, state.push_x, state.push_y)
    crashed, struck, push_x, push_y = jax.lax.fori_loop(0, n, check, found)
    return dataclasses.replace(state, crashed=crashed, struck=struck, push_x=push_x, push_y=push_y)
