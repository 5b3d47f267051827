"""Two gatherers on a small field, in JAX: world and training become one compiled program."""

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
from marl.core.types import Array, ByRole, Key, RoleSpec, TimeStep

ROLE = "gatherer"
MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))  # stay, up, down, left, right, as (x, y)
GROUND, APPLE, COATS = (58, 92, 66), (220, 60, 50), ((240, 200, 80), (90, 150, 240))
TILE = 24  # pixels


class MyJaxWorldConfig(EnvConfig):
    """Options in YAML: what fixes shapes or the length of an episode. size: of the field, in cells a side.  apples: how
    many will have grown.  max_steps: longest episode."""

    size: int = Field(5, ge=2)
    apples: int = Field(10, ge=1)
    max_steps: int = Field(50, ge=1)


@struct.dataclass
class MyJaxWorldParams:
    """Numbers that fix no shape; each copy of the world may have its own. apple: reward for one.  step: cost of a
    move."""

    apple: Array
    step: Array


@struct.dataclass
class MyJaxWorldState:
    """at: where each gatherer is, i32 `[2, 2]`.  apple: where the apple is, i32 `[2]`.  eaten, t: i32 scalars."""

    at: Array
    apple: Array
    eaten: Array
    t: Array


class MyJaxWorld:
    """Whoever walks onto the apple eats it (both at once: half each), and another one grows somewhere else.

    `reset` and `step` are pure functions of one copy: no attribute changes, no Python `if` on an array, a dtype on
    every array. The episode ends by itself with the last apple (termination) or after `max_steps` (truncation).
    """

    Config: ClassVar[type[EnvConfig]] = MyJaxWorldConfig
    lane_axis: ClassVar[int] = 0
    render_fps: ClassVar[int] = 8

    def __init__(self, **options: Any) -> None:
        self.config = MyJaxWorldConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        observation = Box((4,), -1.0, 1.0)
        return (RoleSpec(ROLE, 2, observation, Discrete(len(MOVES)), max_steps=self.max_steps),)

    @property
    def default_params(self) -> MyJaxWorldParams:
        return MyJaxWorldParams(apple=jnp.asarray(1.0, jnp.float32), step=jnp.asarray(0.01, jnp.float32))

    @property
    def max_steps(self) -> int | None:
        return self.config.max_steps

    def reset(self, key: Key, params: MyJaxWorldParams) -> tuple[MyJaxWorldState, TimeStep]:
        """Begin an episode; reward 0."""
        at_key, apple_key = jax.random.split(key)
        zero = jnp.zeros((), jnp.int32)
        at = jax.random.randint(at_key, (2, 2), 0, self.config.size, jnp.int32)
        state = MyJaxWorldState(at=at, apple=self._anywhere(apple_key), eaten=zero, t=zero)
        nothing = jnp.zeros(2, jnp.float32)
        return state, self._row(state, {"apple": nothing, "step": nothing}, first=True)

    def step(
        self, key: Key, state: MyJaxWorldState, actions: ByRole, params: MyJaxWorldParams
    ) -> tuple[MyJaxWorldState, TimeStep]:
        """Everybody moves at once."""
        move = jnp.asarray(MOVES, jnp.int32)[actions[ROLE]]
        at = jnp.clip(state.at + move, 0, self.config.size - 1)
        there = (at == state.apple).all(-1)
        found = there.any()
        share = jnp.where(there, params.apple / jnp.maximum(there.sum(), 1), 0.0).astype(jnp.float32)
        effort = -params.step * (move != 0).any(-1).astype(jnp.float32)
        new = MyJaxWorldState(
            at=at,
            apple=jnp.where(found, self._anywhere(key), state.apple),
            eaten=state.eaten + found.astype(jnp.int32),
            t=state.t + 1,
        )
        return new, self._row(new, {"apple": share, "step": effort}, first=False)

    def _anywhere(self, key: Key) -> Array:
        return jax.random.randint(key, (2,), 0, self.config.size, jnp.int32)

    def _row(self, state: MyJaxWorldState, terms: dict[str, Array], *, first: bool) -> TimeStep:
        """What arrives with a state. terms: the parts of the reward, f32 `[2]`; each is reported as a curve."""
        over = state.eaten >= self.config.apples
        cut = (state.t >= self.config.max_steps) & ~over
        seen = jnp.concatenate([state.apple - state.at, state.at[::-1] - state.at], axis=-1)
        return TimeStep(
            obs={ROLE: seen.astype(jnp.float32) / self.config.size},
            reward={ROLE: sum(terms.values(), jnp.zeros(2, jnp.float32))},
            terminated={ROLE: jnp.broadcast_to(over, (2,))},
            truncated={ROLE: jnp.broadcast_to(cut, (2,))},
            alive={ROLE: jnp.broadcast_to(~over, (2,))},
            first=jnp.asarray(first),
            last=over | cut,
            info={f"reward/{ROLE}/{name}": term.mean() for name, term in terms.items()},
        )

    def render(self, state: MyJaxWorldState, params: MyJaxWorldParams) -> NDArray[np.uint8]:
        """The field as an RGB picture, `[height, width, 3]`, in plain NumPy."""
        picture = np.full((self.config.size * TILE, self.config.size * TILE, 3), GROUND, np.uint8)
        for (x, y), colour in zip([state.apple, *np.asarray(state.at)], [APPLE, *COATS], strict=True):
            picture[y * TILE + 3 : (y + 1) * TILE - 3, x * TILE + 3 : (x + 1) * TILE - 3] = colour
        return picture
