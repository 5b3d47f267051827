"""The state of the road and how an episode begins."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .params import AGGRESSIVE, CONTROLLED, DEFENSIVE, LANE_WIDTH, NORMAL, HighwayConfig, HighwayParams


@struct.dataclass
class HighwayState:
    """Leaves `[n_vehicles]` in list order unless said otherwise (physics works on `[n_vehicles, lanes]`).

    x, y: centre [m], y = 0 is the centre of the leftmost lane.  heading: [rad].  speed: [m/s].  target_speed: [m/s].
    target_lane: i32.  timer: since the last lane-change decision [s].  exponent: of the IDM law [1].  kind: i32.
    crashed: bool.  struck: bool, a contact is due in the next physics step.  push_x, push_y: its displacement [m].
    time: policy steps so far, i32 scalar.  ended: bool `[n_agents]`.  driven: steps survived, i32 `[n_agents]`.
    driven_distance: sum of the speeds of those steps [m], `[n_agents]`.
    """

    x: jax.Array
    y: jax.Array
    heading: jax.Array
    speed: jax.Array
    target_speed: jax.Array
    target_lane: jax.Array
    timer: jax.Array
    exponent: jax.Array
    kind: jax.Array
    crashed: jax.Array
    struck: jax.Array
    push_x: jax.Array
    push_y: jax.Array
    time: jax.Array
    ended: jax.Array
    driven: jax.Array
    driven_distance: jax.Array


def agent_ids(config: HighwayConfig) -> tuple[int, ...]:
    """List positions of the agents: each is followed by its near-equal share of the background vehicles."""
    share, extra = divmod(config.background_vehicles, config.controlled_vehicles)
    ids, position = [], 0
    for group in range(config.controlled_vehicles):
        ids.append(position)
        position += 1 + share + (group < extra)
    return tuple(ids)


def lane_of(y: jax.Array, lanes: int) -> jax.Array:
    """Nearest lane (i32); halfway between two, the left one."""
    return jnp.clip(jnp.ceil(y / LANE_WIDTH - 0.5), 0, lanes - 1).astype(jnp.int32)


def spawn(key: jax.Array, params: HighwayParams, config: HighwayConfig) -> HighwayState:
    """A platoon: vehicles in list order, each one further ahead than the last by a random spacing, in a random lane."""
    n = config.controlled_vehicles + config.background_vehicles
    controlled = np.zeros(n, bool)
    controlled[list(agent_ids(config))] = True
    lane_key, unit_key = jax.random.split(key)
    lane = jax.random.randint(lane_key, (n,), 0, config.lanes, jnp.int32)
    u_speed, u_gap, u_kind, u_exponent = jax.random.uniform(unit_key, (4, n), jnp.float32)

    speed = jnp.where(controlled, 25.0, 21.0 + 3.0 * u_speed)
    spacing = jnp.where(controlled, 2.0, 1.0) * (12.0 + speed) * math.exp(-config.lanes / 8)
    x = jnp.cumsum(spacing * (0.9 + 0.2 * u_gap)) + 3.0 * spacing[0]
    y = LANE_WIDTH * lane.astype(jnp.float32)

    kind = jnp.where(u_kind < params.aggressive, AGGRESSIVE, NORMAL)
    kind = jnp.where(u_kind > 1 - params.defensive, DEFENSIVE, kind)
    kind = jnp.where(controlled, CONTROLLED, kind).astype(jnp.int32)
    low, high = params.exponent_low[kind], params.exponent_high[kind]

    zero, no = jnp.zeros(n, jnp.float32), jnp.zeros(n, bool)
    agents = config.controlled_vehicles
    return HighwayState(
        x=x,
        y=y,
        heading=zero,
        speed=speed,
        target_speed=speed,
        target_lane=lane,
        timer=jnp.mod((x + y) * math.pi, params.drivers.delay[kind]),
        exponent=low + (high - low) * u_exponent,
        kind=kind,
        crashed=no,
        struck=no,
        push_x=zero,
        push_y=zero,
        time=jnp.int32(0),
        ended=jnp.zeros(agents, bool),
        driven=jnp.zeros(agents, jnp.int32),
        driven_distance=jnp.zeros(agents, jnp.float32),
    )
