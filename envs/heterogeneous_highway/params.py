"""Options and numbers of the highway: what fixes shapes (`HighwayConfig`), what can be traced (`HighwayParams`),
constants.
"""

from __future__ import annotations

from typing import Final, Literal

import jax
import jax.numpy as jnp
from flax import struct
from pydantic import Field

from marl.core.config import EnvConfig
from marl.envs.common.car_following import Driver

CONTROLLED, NORMAL, AGGRESSIVE, DEFENSIVE = range(4)  # kinds of vehicle
LANE_LEFT, IDLE, LANE_RIGHT, FASTER, SLOWER = range(5)  # actions

LENGTH: Final = 5.0  # body [m]
WIDTH: Final = 2.0  # [m]
DIAGONAL: Final = (LENGTH**2 + WIDTH**2) ** 0.5  # [m]
LANE_WIDTH: Final = 4.0  # [m]
TOP_SPEED: Final = 40.0  # soft limit, both ways [m/s]
STEP_SECONDS: Final = 1.0  # a policy step [s]

ACCEL_TIME: Final = 0.6  # time constants of the low-level controllers [s]
HEADING_TIME: Final = 0.2
LATERAL_TIME: Final = 0.6
MAX_STEERING: Final = 3.141592653589793 / 3  # [rad]

TARGET_SPEED_LOW: Final = 20.0  # an agent's target speeds are low, middle and high [m/s]
TARGET_SPEED_GAP: Final = 5.0

OBSERVED_ROWS: Final = 15  # the agent itself and 14 others
FEATURES: Final = 5  # presence, x, y, vx, vy
SIGHT: Final = 200.0  # [m]
SIGHT_BEHIND: Final = 10.0  # [m]

FRACTIONS: Final = {"mild": 0.1, "chaotic": 0.3}  # of aggressive, and again of defensive drivers


class HighwayConfig(EnvConfig):
    """Options of `heterogeneous_highway_v0`.

    scenario: share of aggressive and of defensive drivers, 10 % each (mild) or 30 % each (chaotic).
    controlled_vehicles, background_vehicles: agents and other vehicles.  lanes: parallel lanes.
    duration: episode length [policy steps of 1 s].  simulation_frequency: physics steps per second [Hz].
    hetero_longitudinal: `released`: aggressive and defensive drivers hold their speed and never brake for a leader,
    as in the published code; `idm`: they follow their own car-following law.
    politeness_normal: MOBIL politeness of normal drivers [1].
    observation: `released`: normalised so that an agent's own speed saturates, as published; `unsaturated`: see README.
    act_order: `jacobi`: drivers see the target lanes of the start of the physics step; `sequential`: in list order,
    as the reference simulator.
    time_limit: an agent that is alive at the end is `truncated` (a learner bootstraps) or `terminated` (it does not).
    """

    scenario: Literal["mild", "chaotic"] = "mild"
    controlled_vehicles: int = Field(5, ge=1, le=64)
    background_vehicles: int = Field(50, ge=0, le=1000)
    lanes: int = Field(8, ge=1, le=32)
    duration: int = Field(90, ge=1, le=10_000)
    simulation_frequency: int = Field(5, ge=1, le=60)
    hetero_longitudinal: Literal["released", "idm"] = "released"
    politeness_normal: float = Field(0.2, ge=0.0, le=1.0)
    observation: Literal["released", "unsaturated"] = "released"
    act_order: Literal["jacobi", "sequential"] = "jacobi"
    time_limit: Literal["truncated", "terminated"] = "truncated"


@struct.dataclass
class HighwayParams:
    """Traced numbers; `vmap` over them is domain randomisation. Leaves f32, scalars unless said otherwise.

    drivers: a table by kind, leaves `[4]` (row CONTROLLED is never used for a decision).  exponent_low,
    exponent_high: range of the IDM exponent by kind `[4]`.  aggressive, defensive: shares of the background.
    collision, right_lane, high_speed: reward weights [1].  speed_low, speed_high: forward speeds that earn 0 and all of
    `high_speed` [m/s].
    """

    drivers: Driver
    exponent_low: jax.Array
    exponent_high: jax.Array
    aggressive: jax.Array
    defensive: jax.Array
    collision: jax.Array
    right_lane: jax.Array
    high_speed: jax.Array
    speed_low: jax.Array
    speed_high: jax.Array


def default_params(config: HighwayConfig) -> HighwayParams:
    """The published numbers, for the scenario and politeness of `config`."""

    def f32(*values: float) -> jax.Array:
        return jnp.asarray(values if len(values) > 1 else values[0], jnp.float32)

    p = config.politeness_normal
    drivers = Driver(  # columns: controlled (as normal), normal, aggressive, defensive
        max_accel=f32(6, 6, 9, 5),
        accel=f32(3, 3, 6, 2),
        brake=f32(5, 5, 9, 4),
        gap=f32(10, 10, 5.5, 18),
        time_gap=f32(1.5, 1.5, 1.2, 1.8),
        politeness=f32(p, p, 0.0, 0.5),
        min_gain=f32(0.2, 0.2, 0.1, 0.3),
        safe_braking=f32(2, 2, 9, 2),
        delay=f32(1.0, 1.0, 0.5, 1.0),
        min_speed=f32(1.0, 1.0, 0.0, 0.0),
        abort_scale=f32(1.0, 1.0, 0.5, 1.0),
    )
    share = f32(FRACTIONS[config.scenario])
    return HighwayParams(
        drivers=drivers,
        exponent_low=f32(4.0, 3.5, 4.0, 3.0),
        exponent_high=f32(4.0, 4.5, 4.0, 4.0),
        aggressive=share,
        defensive=share,
        collision=f32(-1.0),
        right_lane=f32(0.1),
        high_speed=f32(0.4),
        speed_low=f32(20.0),
        speed_high=f32(30.0),
    )
