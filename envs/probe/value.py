"""Can the critic learn a constant?"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import NDArray
from pydantic import Field

from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import ByRole, Key, RoleSpec, TimeStep

from .rows import GOLD, GREY, Prize, default_prize, first_row, next_row, tiles


class ValueConfig(EnvConfig):
    """agents: size of the one role."""

    agents: int = Field(default=1, ge=1, le=1024)


@struct.dataclass
class ValueState:
    """over: the one step has been made, bool scalar."""

    over: jax.Array


class Value:
    """One step, always paid 1, whatever is seen (a constant 1) and done (two actions).

    Known answer: every return is 1, and so is the value of the only observation, for any discount. A critic that does
    not reach 1 is wrong in its loss, its targets, its optimiser or its normaliser; the actor has no part in it.
    """

    Config: ClassVar[type[EnvConfig]] = ValueConfig
    lane_axis: ClassVar[int] = 0
    max_steps: int | None = 1

    def __init__(self, **options: Any) -> None:
        self.config = ValueConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("agent", self.config.agents, Box((1,), 0.0, 1.0), Discrete(2), max_steps=1),)

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[ValueState, TimeStep]:
        obs = {"agent": jnp.ones((self.config.agents, 1), jnp.float32)}
        return ValueState(over=jnp.zeros((), bool)), first_row(obs, "constant")

    def step(self, key: Key, state: ValueState, actions: ByRole, params: Prize) -> tuple[ValueState, TimeStep]:
        obs = {"agent": jnp.ones((self.config.agents, 1), jnp.float32)}
        reward = {"agent": jnp.full(self.config.agents, params.prize, jnp.float32)}
        over = jnp.ones((), bool)
        return ValueState(over=over), next_row(obs, reward, "constant", last=over)

    def render(self, state: ValueState, params: Prize) -> NDArray[np.uint8]:
        """One tile an agent, gold once it has been paid."""
        return tiles([[GOLD if bool(state.over) else GREY] * self.config.agents])
