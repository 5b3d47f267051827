"""Does an episode cut short by time keep its future, for all agents and for one that leaves before the others?"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import NDArray
from pydantic import Field, model_validator

from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import ByRole, Key, RoleSpec, TimeStep

from .rows import BLUE, GREY, RED, Prize, default_prize, first_row, mean_terms, tiles


class TruncationConfig(EnvConfig):
    """steps: length of an episode [steps].  leave: the step after which agent 1 leaves, before the end [steps]."""

    steps: int = Field(default=8, ge=2, le=100_000)
    leave: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _leaves_before_the_end(self) -> Self:
        if self.leave >= self.steps:
            raise ValueError(f"leave must be smaller than steps, got leave {self.leave} and steps {self.steps}")
        return self


@struct.dataclass
class TruncationState:
    """t: steps made, i32 scalar."""

    t: jax.Array


class Truncation:
    """Two agents are paid 1 a step. Agent 1 is truncated after `leave` steps, agent 0, and the episode, after `steps`.

    They see a constant 1 (0 once they are gone) and cannot see the time, and nothing ever terminates. Known answers,
    for discount g: the value is 1 / (1 - g), for both agents and at every row they live, as long as every truncated
    row is bootstrapped from; a learner that takes a truncation for an end finds a finite sum instead. Undiscounted
    returns: `steps` for agent 0, `leave` for agent 1. Both actions do the same.
    """

    Config: ClassVar[type[EnvConfig]] = TruncationConfig
    lane_axis: ClassVar[int] = 0

    def __init__(self, **options: Any) -> None:
        self.config = TruncationConfig(**options)

    @property
    def max_steps(self) -> int | None:
        return self.config.steps

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("agent", 2, Box((1,), 0.0, 1.0), Discrete(2), max_steps=self.config.steps),)

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[TruncationState, TimeStep]:
        return TruncationState(t=jnp.zeros((), jnp.int32)), first_row({"agent": jnp.ones((2, 1), jnp.float32)}, "stay")

    def step(
        self, key: Key, state: TruncationState, actions: ByRole, params: Prize
    ) -> tuple[TruncationState, TimeStep]:
        t = state.t + 1
        ends = jnp.asarray([self.config.steps, self.config.leave], jnp.int32)
        last = t == self.config.steps
        # The row that truncates an agent is the successor its value is taken from, so it still shows the constant.
        reached = t <= ends
        reward = {"agent": jnp.where(reached, params.prize, 0.0).astype(jnp.float32)}
        row = TimeStep(
            obs={"agent": reached.astype(jnp.float32)[:, None]},
            reward=reward,
            terminated={"agent": jnp.zeros(2, bool)},
            truncated={"agent": t == ends},
            alive={"agent": (t < ends) | (reached & last)},
            first=jnp.zeros((), bool),
            last=last,
            info=mean_terms(reward, "stay"),
        )
        return TruncationState(t=t), row

    def render(self, state: TruncationState, params: Prize) -> NDArray[np.uint8]:
        """A row of tiles an agent, one a step, filled as far as the agent has come."""
        spans, colours, t = (self.config.steps, self.config.leave), (BLUE, RED), int(state.t)
        columns = range(self.config.steps)
        return tiles([[colours[i] if c < min(t, spans[i]) else GREY for c in columns] for i in range(2)])
