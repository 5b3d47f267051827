"""Do two agents of one role find a convention when each sees only half of what matters?"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import NDArray

from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import ByRole, Key, RoleSpec, TimeStep

from .rows import BLUE, GREEN, GREY, RED, Prize, default_prize, first_row, next_row, tiles


class CoordinationConfig(EnvConfig):
    """No options."""


@struct.dataclass
class CoordinationState:
    """cue: one 0 or 1 an agent, i32 `[2]`.  agreed: they have just answered rightly, bool scalar."""

    cue: jax.Array
    agreed: jax.Array


class Coordination:
    """Two agents see a cue each; they are paid together if their actions are equal exactly when their cues are.

    Observation `[1]`: the own cue, -1 or +1. Global state `[2]`: both cues. Two conventions are perfect (each says
    its cue, or each its opposite), and against a partner that ignores its cue every policy earns 0.5: neither agent
    can improve alone, and a mixture of the two conventions fails. Known answers: best return 1 for each agent and
    value 1 of every state there; at random, and for every pair of constant actions, 0.5.
    """

    Config: ClassVar[type[EnvConfig]] = CoordinationConfig
    lane_axis: ClassVar[int] = 0
    max_steps: int | None = 1

    def __init__(self, **options: Any) -> None:
        self.config = CoordinationConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("agent", 2, Box((1,), -1.0, 1.0), Discrete(2), Box((2,), -1.0, 1.0), max_steps=1),)

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[CoordinationState, TimeStep]:
        cue = jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32)
        seen = (2 * cue - 1).astype(jnp.float32)
        state = CoordinationState(cue=cue, agreed=jnp.zeros((), bool))
        return state, first_row({"agent": seen[:, None]}, "agreement", state=seen)

    def step(
        self, key: Key, state: CoordinationState, actions: ByRole, params: Prize
    ) -> tuple[CoordinationState, TimeStep]:
        says = actions["agent"]
        agreed = (says[0] == says[1]) == (state.cue[0] == state.cue[1])
        reward = {"agent": jnp.full(2, jnp.where(agreed, params.prize, 0.0), jnp.float32)}
        seen = (2 * state.cue - 1).astype(jnp.float32)
        row = next_row({"agent": seen[:, None]}, reward, "agreement", last=jnp.ones((), bool), state=seen)
        return CoordinationState(cue=state.cue, agreed=agreed), row

    def render(self, state: CoordinationState, params: Prize) -> NDArray[np.uint8]:
        """The two cues (blue 0, red 1) with a tile between them that turns green when the answers were right."""
        left, right = (RED if int(cue) else BLUE for cue in np.asarray(state.cue))
        return tiles([[left, GREEN if bool(state.agreed) else GREY, right]])
