"""The world: five learning vehicles among fifty drivers on a straight road of eight lanes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import ByRole, Key, RoleSpec, TimeStep
from marl.envs.common.lane_layout import lanes_last

from .collisions import collide
from .dynamics import advance, meta_action, steering_slope
from .ordering import Order, along_the_road
from .params import FEATURES, OBSERVED_ROWS, STEP_SECONDS, HighwayConfig, HighwayParams, default_params
from .render import render
from .reward import reward_terms
from .sensing import global_state, observe
from .state import HighwayState, agent_ids, spawn
from .traffic import decide

ROLE = "vehicle"


class HeterogeneousHighway:
    """Heterogeneous highway, see the README beside this file. One role, `vehicle`; episodes of at most `duration`
    steps.
    """

    Config: ClassVar[type[EnvConfig]] = HighwayConfig
    lane_axis: ClassVar[int] = 0

    def __init__(self, **options: Any) -> None:
        self.config = HighwayConfig(**options)
        self._agents = np.asarray(agent_ids(self.config))
        self._step_lanes = lanes_last(self._step_batch)
        self._first_row_lanes = lanes_last(self._first_row)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        vehicles = self.config.controlled_vehicles + self.config.background_vehicles
        return (
            RoleSpec(
                name=ROLE,
                size=self.config.controlled_vehicles,
                observation_space=Box((OBSERVED_ROWS, FEATURES), -1.0, 1.0),
                action_space=Discrete(5),
                state_space=Box((FEATURES * vehicles,)),
                max_steps=self.config.duration,
            ),
        )

    @property
    def default_params(self) -> HighwayParams:
        return default_params(self.config)

    @property
    def max_steps(self) -> int | None:
        return self.config.duration

    def reset(self, key: Key, params: HighwayParams) -> tuple[HighwayState, TimeStep]:
        """A fresh platoon (see `spawn`) and the row with `first`."""
        state = spawn(key, params, self.config)
        return state, self._first_row_lanes(state)

    def step(
        self, key: Key, state: HighwayState, actions: ByRole, params: HighwayParams
    ) -> tuple[HighwayState, TimeStep]:
        """One policy step of 1 s. Deterministic: `key` is not used. The action of an agent that has ended is
        ignored.
        """
        del key
        stepped: tuple[HighwayState, TimeStep] = self._step_lanes(state, actions[ROLE], params)
        return stepped

    def render(self, state: HighwayState, params: HighwayParams) -> NDArray[np.uint8]:
        """An RGB picture `[height, width, 3]` of the road around the agents."""
        return render(state, params, self.config)

    # Everything below has the lane axis last.

    def _agent_rows(self, state: HighwayState) -> HighwayState:
        n = self.config.controlled_vehicles + self.config.background_vehicles
        rows: HighwayState = jax.tree.map(
            lambda leaf: leaf[self._agents] if leaf.ndim == 2 and leaf.shape[0] == n else leaf, state
        )
        return rows

    def _first_row(self, state: HighwayState) -> TimeStep:
        zero = jnp.zeros(state.ended.shape, state.x.dtype)
        no = jnp.zeros_like(state.ended)
        terms = {name: zero for name in ("collision", "right_lane", "high_speed", "offset")}
        return self._row(state, zero, no, no, terms, first=True)

    def _step_batch(
        self, state: HighwayState, action: jax.Array, params: HighwayParams
    ) -> tuple[HighwayState, TimeStep]:
        config, agents = self.config, self._agents
        substeps = max(round(config.simulation_frequency * STEP_SECONDS), 1)
        dt = 1.0 / config.simulation_frequency
        driver = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, state.kind, axis=0), params.drivers)

        mine = self._agent_rows(state)
        acting = jnp.where(mine.ended, 1, action.astype(jnp.int32))
        lane, speed = meta_action(acting, mine.y, mine.speed, mine.target_lane, mine.target_speed, config.lanes)
        state = dataclasses.replace(
            state,
            target_lane=state.target_lane.at[agents].set(lane),
            target_speed=state.target_speed.at[agents].set(speed),
        )

        def physics(_: jax.Array, carry: tuple[HighwayState, Order]) -> tuple[HighwayState, Order]:
            state, order = carry
            decision = decide(state, order, driver, config)
            slope = steering_slope(state.y, state.heading, state.speed, decision.target_lane)
            state = dataclasses.replace(state, target_lane=decision.target_lane, timer=decision.timer)
            state = advance(state, slope, decision.acceleration, dt)
            order = along_the_road(state.x)
            return collide(state, order, dt), order

        state, _ = jax.lax.fori_loop(0, substeps, physics, (state, along_the_road(state.x)))

        mine = self._agent_rows(state)
        living = ~state.ended
        terms = {name: jnp.where(living, part, 0) for name, part in reward_terms(mine, params, config).items()}
        time = state.time + 1
        out_of_time = time >= config.duration
        survives = ~mine.crashed
        terminated = living & mine.crashed
        truncated = survives & out_of_time
        if config.time_limit == "terminated":
            terminated, truncated = terminated | truncated, jnp.zeros_like(truncated)
        state = dataclasses.replace(
            state,
            time=time,
            ended=state.ended | mine.crashed | out_of_time,
            driven=state.driven + survives,
            driven_distance=state.driven_distance + survives * mine.speed * STEP_SECONDS,
        )
        return state, self._row(
            state, sum(terms.values(), jnp.zeros((), state.x.dtype)), terminated, truncated, terms, first=False
        )

    def _row(
        self,
        state: HighwayState,
        reward: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
        terms: dict[str, jax.Array],
        *,
        first: bool,
    ) -> TimeStep:
        mine = self._agent_rows(state)
        survives = ~mine.crashed
        over = state.ended.all(0) if not first else jnp.zeros_like(state.ended[0])
        dtype = state.x.dtype
        on_road = 0.0 if first else survives.mean(0, dtype)
        mean_speed = (state.driven_distance / jnp.maximum(state.driven, 1) / STEP_SECONDS).mean(0)
        background_crashes = state.crashed.sum(0) - mine.crashed.sum(0)
        info = {f"reward/{ROLE}/{name}": part.mean(0) for name, part in terms.items()}
        info["survival_s"] = jnp.broadcast_to(jnp.asarray(on_road * STEP_SECONDS, dtype), over.shape)
        info["speed_mps"] = jnp.where(over, mean_speed, 0)
        info["success"] = jnp.where(over, survives.mean(0, dtype), 0)
        info["crashed_background"] = jnp.where(over, background_crashes, 0).astype(dtype)
        return TimeStep(
            obs={ROLE: observe(state, self.config)},
            reward={ROLE: reward},
            terminated={ROLE: terminated},
            truncated={ROLE: truncated},
            alive={ROLE: survives & ~terminated},
            first=jnp.full(over.shape, first),
            last=over,
            state=global_state(state),
            info=info,
        )
