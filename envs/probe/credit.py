"""Does a reward find the action that earned it, one step earlier?"""

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

from .rows import BLUE, GOLD, GREY, RED, Prize, default_prize, first_row, next_row, tiles


class CreditConfig(EnvConfig):
    """No options."""


@struct.dataclass
class CreditState:
    """cue: the action that is right at step 0, i32.  owed: it was taken, bool.  t: steps made, i32.  Scalars."""

    cue: jax.Array
    owed: jax.Array
    t: jax.Array


class Credit:
    """Two steps: the first action is right or wrong, the prize for it arrives after the second, which does nothing.

    Observation `[3]`: the cue (-1 for action 0, +1 for action 1; 0 after step 0), the step (0 or 1), and at step 1
    whether the prize is owed. Known answers, for discount g: best return 1, at random 0.5; value of the first row g
    for the best policy and g/2 at random; value of the second row 1 if the prize is owed, else 0, under any policy.
    """

    Config: ClassVar[type[EnvConfig]] = CreditConfig
    lane_axis: ClassVar[int] = 0
    max_steps: int | None = 2

    def __init__(self, **options: Any) -> None:
        self.config = CreditConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("agent", 1, Box((3,), -1.0, 1.0), Discrete(2), max_steps=2),)

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[CreditState, TimeStep]:
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        state = CreditState(cue=cue, owed=jnp.zeros((), bool), t=jnp.zeros((), jnp.int32))
        return state, first_row(self._observe(state), "delayed")

    def step(self, key: Key, state: CreditState, actions: ByRole, params: Prize) -> tuple[CreditState, TimeStep]:
        opening = state.t == 0
        owed = jnp.where(opening, actions["agent"][0] == state.cue, state.owed)
        last = ~opening
        reward = {"agent": jnp.where(last & owed, params.prize, 0.0).astype(jnp.float32)[None]}
        state = CreditState(cue=state.cue, owed=owed, t=state.t + 1)
        return state, next_row(self._observe(state), reward, "delayed", last=last)

    def render(self, state: CreditState, params: Prize) -> NDArray[np.uint8]:
        """Two tiles: the cue (blue 0, red 1), and the prize, gold once it is owed."""
        return tiles([[RED if int(state.cue) else BLUE, GOLD if bool(state.owed) else GREY]])

    def _observe(self, state: CreditState) -> ByRole:
        cue = jnp.where(state.t == 0, 2 * state.cue - 1, 0)
        features = jnp.stack([cue, state.t == 1, (state.t == 1) & state.owed])
        return {"agent": features.astype(jnp.float32)[None]}
