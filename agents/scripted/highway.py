"""A careful driver for the heterogeneous highway: a few rules on the rows that an agent sees, nothing learnt."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from marl.core.config import AgentConfig
from marl.core.types import Array, ByRole, Key, TimeStep, Tree

from .memoryless import Memoryless

LANE_LEFT, IDLE, LANE_RIGHT, FASTER, SLOWER = range(5)
LANE_WIDTH: Final = 4.0  # [m]
BODY: Final = 5.0  # [m]
SIGHT: Final = 200.0  # an empty lane counts as that free [m]
# What one unit of (x, y, vx, vy) of the other vehicles' rows means [m, m, m/s, m/s], and of the own y [m]; the
# unsaturated y is a share of the road's width, here of eight lanes.
SCALES: Final = {
    "released": ((100.0, 100.0, 20.0, 20.0), 100.0),
    "unsaturated": ((200.0, 28.0, 30.0, 10.0), 28.0),
}


class DefensiveConfig(AgentConfig):
    """Margins of the driver; distances are bumper to bumper.

    observation: which normalisation the world uses.  lanes: of the road.
    brake_gap, brake_time: a leader is too near within brake_gap + brake_time * closing speed [m, s].
    free_gap, free_time: the same for a leader on a lane to change to.  free_behind, behind_time: for a follower there.
    cruise_gap: speed up when nobody on this lane, or on the way to it, is nearer ahead [m].
    """

    observation: Literal["released", "unsaturated"] = "released"
    lanes: int = Field(8, ge=1)
    brake_gap: float = Field(12.0, ge=0)
    brake_time: float = Field(3.0, ge=0)
    free_gap: float = Field(15.0, ge=0)
    free_time: float = Field(3.0, ge=0)
    free_behind: float = Field(6.0, ge=0)
    behind_time: float = Field(1.0, ge=0)
    cruise_gap: float = Field(80.0, ge=0)


class Defensive(Memoryless[DefensiveConfig]):
    """Each agent on its own, from its own 15 rows (presence, x, y, vx, vy):

    1. Not yet in the middle of a lane: go on with the change (idle), or slow down if the leader is too near.
    2. Leader too near: change to the neighbouring lane that is free and has more room; if none, slow down.
    3. Nobody for a long way ahead: speed up.  4. Otherwise idle.

    A lane is free if its nearest vehicle ahead is far enough for the closing speed, and nobody beside or behind on it
    (a follower is seen over 10 m only) is near. A vehicle counts on every lane that it touches or moves into.
    """

    Config: ClassVar[type[AgentConfig]] = DefensiveConfig

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """Always the same in the same situation: `key` and `explore` make no difference."""
        del params, key, explore
        actions = {role: jax.vmap(lambda rows: choose(rows, self.config))(step.obs[role]) for role in self.roles}
        return carry, actions, ()


def choose(rows: Array, config: DefensiveConfig) -> Array:
    """The action (i32) of an agent that sees `rows` `[15, 5]`."""
    scale, y_scale = SCALES[config.observation]
    present = rows[1:, 0] > 0.5
    dx, dy, dvx, dvy = (rows[1:, 1 + i] * unit for i, unit in enumerate(scale))
    y = rows[0, 2] * y_scale
    lane = jnp.round(y / LANE_WIDTH)
    centred = jnp.abs(y - LANE_WIDTH * lane) < 0.6

    def room(change: int) -> tuple[Array, Array, Array]:
        """Bumper distance to the nearest vehicle ahead, whether the lane is free, whether a leader is too near."""
        centre = LANE_WIDTH * (lane + change) - y
        now, soon = jnp.abs(dy - centre), jnp.abs(dy + dvy - centre)
        here = present & (jnp.minimum(now, soon) < 2.6)
        ahead = here & (dx > 0)
        gap = jnp.where(ahead, dx - BODY, SIGHT)
        closing = jnp.maximum(-dvx, 0)
        blocked = ahead & (gap < config.free_gap + config.free_time * closing)
        near = ahead & (gap < config.brake_gap + config.brake_time * closing)
        behind = here & (dx <= 0)
        pressed = behind & (-dx - BODY < config.free_behind + config.behind_time * jnp.maximum(dvx, 0))
        exists = (lane + change >= 0) & (lane + change < config.lanes)
        return gap.min(), exists & ~(blocked | pressed).any(), near.any()

    (left, left_free, _), (here, _, danger), (right, right_free, _) = (room(change) for change in (-1, 0, 1))
    left = jnp.where(left_free, left, -1.0)
    right = jnp.where(right_free, right, -1.0)
    side = jnp.where(right >= left, LANE_RIGHT, LANE_LEFT)
    escape = jnp.where(centred & (jnp.maximum(left, right) > here), side, SLOWER)
    calm = jnp.where(here > config.cruise_gap, FASTER, IDLE)
    return jnp.where(danger, escape, jnp.where(centred, calm, IDLE)).astype(jnp.int32)
