"""What an agent sees, and the global state. Arrays have the lane axis last."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .ordering import UNROLL
from .params import FEATURES, LANE_WIDTH, OBSERVED_ROWS, SIGHT, SIGHT_BEHIND, HighwayConfig
from .state import HighwayState, agent_ids


def observe(state: HighwayState, config: HighwayConfig) -> jax.Array:
    """Rows (presence, x, y, vx, vy) of the agent itself and of the nearest others `[n_agents, 15, 5, lanes]`, in [-1,
    1].

    Others are seen within SIGHT and not further behind than SIGHT_BEHIND, nearest along the road first, relative to the
    agent; missing rows are 0.
    """
    agents = list(agent_ids(config))
    n = state.x.shape[0]
    vx, vy = state.speed * jnp.cos(state.heading), state.speed * jnp.sin(state.heading)
    every = jnp.stack([state.x, state.y, vx, vy])  # [4, n, lanes]
    own = every[:, jnp.asarray(agents)]
    relative = every[:, None] - own[:, :, None]  # [4, n_agents, n, lanes]
    dx, dy = relative[0], relative[1]
    is_self = (jnp.arange(n) == jnp.asarray(agents)[:, None])[..., None]
    visible = (jnp.sqrt(dx * dx + dy * dy) < SIGHT) & (dx > -SIGHT_BEHIND) & ~is_self

    # The place of each vehicle among the visible ones, by counting: at this size that beats a sort by far.
    ids, rows = jnp.arange(n, dtype=jnp.int32)[:, None], min(OBSERVED_ROWS - 1, n - 1)
    distance = jnp.where(visible, jnp.abs(dx), jnp.inf)

    def count(k: jax.Array, place: jax.Array) -> jax.Array:
        other = jax.lax.dynamic_slice_in_dim(distance, k, 1, axis=1)
        return place + ((other < distance) | ((other == distance) & (k < ids)))

    place = jax.lax.fori_loop(0, n, count, jnp.zeros(distance.shape, jnp.int32), unroll=UNROLL)
    place = jnp.where(visible, place, n)  # [n_agents, n, lanes]

    def fill(k: jax.Array, who: jax.Array) -> jax.Array:
        return jnp.where(jax.lax.dynamic_slice_in_dim(place, k, 1, axis=1) == ids[:rows], k, who)

    who = jnp.full((len(agents), rows, state.x.shape[1]), -1, jnp.int32)
    who = jax.lax.fori_loop(0, n, fill, who, unroll=UNROLL)  # [n_agents, rows, lanes]
    seen = who >= 0
    others = jnp.take_along_axis(relative, jnp.maximum(who, 0)[None], axis=2)  # [4, n_agents, rows, lanes]

    if config.observation == "released":
        scale = jnp.asarray([100.0, 100.0, 20.0, 20.0], every.dtype)[:, None, None]
        ego = own / scale
    else:
        width = LANE_WIDTH * max(config.lanes - 1, 1)
        scale = jnp.asarray([200.0, width, 30.0, 10.0], every.dtype)[:, None, None]
        target_speed, target_lane = state.target_speed[jnp.asarray(agents)], state.target_lane[jnp.asarray(agents)]
        aside = (LANE_WIDTH * target_lane - own[1]) / (2 * LANE_WIDTH)
        ego = jnp.stack([(target_speed - 25.0) / 5.0, own[1] / width, (own[2] - 20.0) / 10.0, aside])
    others = jnp.where(seen, others / scale[..., None], 0)
    features = jnp.clip(jnp.concatenate([ego[:, :, None], others], axis=2), -1, 1)
    presence = jnp.concatenate([jnp.ones_like(ego[:1, :, None]), seen[None].astype(every.dtype)], axis=2)
    table = jnp.moveaxis(jnp.concatenate([presence, features]), 0, 2)  # [n_agents, rows + 1, 5, lanes]
    return jnp.pad(table, ((0, 0), (0, OBSERVED_ROWS - 1 - rows), (0, 0), (0, 0)))


def global_state(state: HighwayState) -> jax.Array:
    """(presence, x, y, vx, vy) of every vehicle in list order, absolute, in metres and m/s: `[5 n, lanes]`."""
    vx, vy = state.speed * jnp.cos(state.heading), state.speed * jnp.sin(state.heading)
    table = jnp.stack([jnp.ones_like(state.x), state.x, state.y, vx, vy], axis=1)
    return table.reshape(FEATURES * state.x.shape[0], -1)
