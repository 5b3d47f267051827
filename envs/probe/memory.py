"""Does the recurrent state carry anything?"""

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

from .rows import BLUE, GREEN, GREY, RED, Prize, default_prize, first_row, next_row, tiles

WAIT, SAY_0, SAY_1 = 0, 1, 2


class MemoryConfig(EnvConfig):
    """delay: rows between the one that shows the cue and the one that asks for it [steps]."""

    delay: int = Field(default=4, ge=1, le=1000)


@struct.dataclass
class MemoryState:
    """cue: 0 or 1, i32.  t: steps made, i32.  Scalars."""

    cue: jax.Array
    t: jax.Array


class Memory:
    """A cue is shown at row 0 and must be said at row `delay`, when it can no longer be seen.

    Observation `[2]`: the cue (-1 or +1 at row 0, else 0), and 1 at the row that asks. Actions: wait, say 0, say 1.
    Until it is asked an agent can only wait, and then it can only speak (`action_mask`), so that nobody can store the
    cue in its own last action. Known answers, for discount g: best return 1, value g^(delay - t) at row t; a policy
    without memory cannot do better than 0.5.
    """

    Config: ClassVar[type[EnvConfig]] = MemoryConfig
    lane_axis: ClassVar[int] = 0

    def __init__(self, **options: Any) -> None:
        self.config = MemoryConfig(**options)

    @property
    def max_steps(self) -> int | None:
        return self.config.delay + 1

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("agent", 1, Box((2,), -1.0, 1.0), Discrete(3), max_steps=self.max_steps),)

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[MemoryState, TimeStep]:
        state = MemoryState(cue=jax.random.bernoulli(key).astype(jnp.int32), t=jnp.zeros((), jnp.int32))
        return state, first_row(self._observe(state), "recall", action_mask=self._mask(state))

    def step(self, key: Key, state: MemoryState, actions: ByRole, params: Prize) -> tuple[MemoryState, TimeStep]:
        asked = state.t == self.config.delay
        right = asked & (actions["agent"][0] == SAY_0 + state.cue)
        reward = {"agent": jnp.where(right, params.prize, 0.0).astype(jnp.float32)[None]}
        state = MemoryState(cue=state.cue, t=state.t + 1)
        row = next_row(self._observe(state), reward, "recall", last=asked, action_mask=self._mask(state))
        return state, row

    def render(self, state: MemoryState, params: Prize) -> NDArray[np.uint8]:
        """A tile a row: the cue at the left (blue 0, red 1), the row that asks green, the present one lit."""
        colours = [RED if int(state.cue) else BLUE] + [GREY] * (self.config.delay - 1) + [GREEN]
        shades = [1.0 if t == min(int(state.t), self.config.delay) else 0.4 for t in range(self.config.delay + 1)]
        return tiles([np.asarray(colours) * np.asarray(shades)[:, None]])

    def _observe(self, state: MemoryState) -> ByRole:
        cue = jnp.where(state.t == 0, 2 * state.cue - 1, 0)
        return {"agent": jnp.stack([cue, state.t == self.config.delay]).astype(jnp.float32)[None]}

    def _mask(self, state: MemoryState) -> ByRole:
        asked = state.t == self.config.delay
        return {"agent": jnp.stack([~asked, asked, asked])[None]}
