"""Reward terms of the agents. Arrays are `[n_agents, lanes]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .params import LANE_WIDTH, HighwayConfig, HighwayParams
from .state import HighwayState


def reward_terms(agent: HighwayState, params: HighwayParams, config: HighwayConfig) -> dict[str, jax.Array]:
    """Named parts of r = (collision + right_lane + high_speed + 1) / 1.5, each `[n_agents, lanes]`.

    agent: the agents' rows of the state.  `offset` is the constant part. With the default weights r is in [0, 1]: the
    normalisation maps the range from a crash to full speed on the right. Off the road every part is 0.
    """
    worst, best = params.collision, params.high_speed + params.right_lane
    on_road = (agent.y >= -LANE_WIDTH / 2) & (agent.y <= LANE_WIDTH * (config.lanes - 0.5))
    scale = on_road / (best - worst)
    forward = agent.speed * jnp.cos(agent.heading)
    fast = jnp.clip((forward - params.speed_low) / (params.speed_high - params.speed_low), 0, 1)
    return {
        "collision": scale * params.collision * agent.crashed,
        "right_lane": scale * params.right_lane * agent.target_lane / max(config.lanes - 1, 1),
        "high_speed": scale * params.high_speed * fast,
        "offset": scale * -worst,
    }
