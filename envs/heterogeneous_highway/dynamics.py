"""One vehicle's motion: kinematic bicycle, low-level controllers, meta-actions. Elementwise on `[n, lanes]`."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from marl.envs.common.car_following import not_zero

from .params import (
    ACCEL_TIME,
    FASTER,
    HEADING_TIME,
    LANE_LEFT,
    LANE_RIGHT,
    LANE_WIDTH,
    LATERAL_TIME,
    LENGTH,
    MAX_STEERING,
    SLOWER,
    TARGET_SPEED_GAP,
    TARGET_SPEED_LOW,
    TOP_SPEED,
)
from .state import HighwayState


def speed_control(speed: jax.Array, target_speed: jax.Array) -> jax.Array:
    """Acceleration that closes the speed error with time constant ACCEL_TIME [m/s2]."""
    return (target_speed - speed) / ACCEL_TIME


def wrap_angle(angle: jax.Array) -> jax.Array:
    """The same angle in [-pi, pi)."""
    return jnp.mod(angle + math.pi, 2 * math.pi) - math.pi


def steering_slope(y: jax.Array, heading: jax.Array, speed: jax.Array, lane: jax.Array) -> jax.Array:
    """tan(steering) / 2 of the cascade that steers to the centre of `lane`.

    Lateral error -> heading command -> heading rate -> slip angle asin(s) -> steering atan(2 tan(slip)), clipped.
    Only the
    tangent of the steering enters the motion, so that atan, tan and asin cancel: tan(asin(s)) = s / sqrt(1 - s^2).
    """
    inverse_speed = 1 / not_zero(speed)
    side = (LANE_WIDTH * lane - y) / LATERAL_TIME * inverse_speed
    command = jnp.clip(jnp.arcsin(jnp.clip(side, -1, 1)), -math.pi / 4, math.pi / 4)
    rate = wrap_angle(command - heading) / HEADING_TIME
    slip = jnp.clip(0.5 * LENGTH * inverse_speed * rate, -1, 1)
    limit = math.tan(MAX_STEERING) / 2
    return jnp.clip(slip / jnp.sqrt(1 - slip * slip), -limit, limit)


def advance(state: HighwayState, slope: jax.Array, acceleration: jax.Array, dt: float) -> HighwayState:
    """Explicit Euler step of the bicycle model (position and heading move with the old speed), then any due contact.

    slope: tan(slip) = tan(steering) / 2.  acceleration: [m/s2].  A crashed vehicle neither steers nor drives: it
    loses its speed with a time constant of 1 s.
    """
    speed = state.speed
    slope = jnp.where(state.crashed, 0, slope)
    acceleration = jnp.where(state.crashed, -speed, acceleration)
    acceleration = jnp.where(speed > TOP_SPEED, jnp.minimum(acceleration, TOP_SPEED - speed), acceleration)
    acceleration = jnp.where(speed < -TOP_SPEED, jnp.maximum(acceleration, -TOP_SPEED - speed), acceleration)

    cos_slip = 1 / jnp.sqrt(1 + slope * slope)
    sin_slip = slope * cos_slip
    cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
    step = speed * dt
    return dataclasses.replace(
        state,
        x=state.x + step * (cos * cos_slip - sin * sin_slip) + jnp.where(state.struck, state.push_x, 0),
        y=state.y + step * (sin * cos_slip + cos * sin_slip) + jnp.where(state.struck, state.push_y, 0),
        heading=state.heading + step * sin_slip / (LENGTH / 2),
        speed=speed + acceleration * dt,
        timer=state.timer + dt,
        crashed=state.crashed | state.struck,
        struck=jnp.zeros_like(state.struck),
    )


def meta_action(
    action: jax.Array, y: jax.Array, speed: jax.Array, target_lane: jax.Array, target_speed: jax.Array, lanes: int
) -> tuple[jax.Array, jax.Array]:
    """New (target_lane, target_speed) of agents that take `action`.

    FASTER and SLOWER step from the speed actually driven, not from the last target; a lane change steps from the
    target lane and is ignored at the edge of the road or when the lane is out of reach.
    """
    index = jnp.clip(jnp.round((speed - TARGET_SPEED_LOW) / TARGET_SPEED_GAP), 0, 2)
    index = jnp.clip(index + (action == FASTER) - (action == SLOWER), 0, 2)
    faster_or_slower = (action == FASTER) | (action == SLOWER)
    new_speed = jnp.where(faster_or_slower, TARGET_SPEED_LOW + TARGET_SPEED_GAP * index, target_speed)

    side = (action == LANE_RIGHT).astype(jnp.int32) - (action == LANE_LEFT).astype(jnp.int32)
    new_lane = jnp.clip(target_lane + side, 0, lanes - 1)
    within_reach = jnp.abs(y - LANE_WIDTH * new_lane) <= 2 * LANE_WIDTH
    return jnp.where(within_reach, new_lane, target_lane), new_speed.astype(target_speed.dtype)
