"""Car following (IDM) and lane changing (MOBIL): accelerations from gaps and speeds, elementwise on arrays of any
shape.

Treiber, Hennecke and Helbing, "Congested traffic states in empirical observations and microscopic simulations", 2000
(IDM); Kesting, Treiber and Helbing, "General lane-changing model MOBIL for car-following models", 2007.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Driver:
    """One temperament, or arrays of them.

    max_accel: bound of the applied command [m/s2].  accel, brake: comfortable acceleration and braking (both > 0)
    [m/s2].
    gap: standstill distance, centre to centre [m].  time_gap: [s].  politeness: weight of the others' gain [1].
    min_gain: least gain that is worth a lane change [m/s2].  safe_braking: most braking imposed on a new follower
    [m/s2].
    delay: time between two decisions [s].  min_speed: no lane change below this speed [m/s].  abort_scale: factor on
    the distance in the test that gives a lane change up [1].
    """

    max_accel: jax.Array
    accel: jax.Array
    brake: jax.Array
    gap: jax.Array
    time_gap: jax.Array
    politeness: jax.Array
    min_gain: jax.Array
    safe_braking: jax.Array
    delay: jax.Array
    min_speed: jax.Array
    abort_scale: jax.Array


def not_zero(x: jax.Array, smallest: float = 0.01) -> jax.Array:
    """x, kept at least `smallest` away from 0; 0 itself counts as positive."""
    return jnp.where(jnp.abs(x) > smallest, x, jnp.where(x >= 0, smallest, -smallest))


def desired_gap(driver: Driver, speed: jax.Array, closing_speed: jax.Array) -> jax.Array:
    """d* = d0 + v T + v dv / (2 sqrt(a b)) [m]; not clamped, so a leader that pulls away fast can make it negative."""
    return driver.gap + speed * (driver.time_gap + closing_speed / (2 * jnp.sqrt(driver.accel * driver.brake)))


def free_acceleration(driver: Driver, speed: jax.Array, target_speed: jax.Array, exponent: jax.Array) -> jax.Array:
    """a (1 - (v / v0)^delta) [m/s2]: what a driver does on an empty road."""
    ratio = jnp.maximum(speed, 0) / jnp.abs(not_zero(target_speed))
    return driver.accel * (1 - jnp.exp(exponent * jnp.log(ratio)))


def interaction(driver: Driver, distance: jax.Array, speed: jax.Array, closing_speed: jax.Array) -> jax.Array:
    """a (d* / d)^2 [m/s2]: what a leader at `distance`, approached with `closing_speed`, takes from the
    acceleration.
    """
    return driver.accel * jnp.square(desired_gap(driver, speed, closing_speed) / not_zero(distance))
