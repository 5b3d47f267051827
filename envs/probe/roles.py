"""Are two roles that differ in everything kept apart, and are forbidden actions left alone?"""

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

STATE_SPACE = Box((8,), 0.0, 1.0)


class RolesConfig(EnvConfig):
    """No options."""


@struct.dataclass
class RolesState:
    """leader, follower: digits to be named, i32 `[1]` and `[2]`.  right: who has named it, bool `[3]`."""

    leader: jax.Array
    follower: jax.Array
    right: jax.Array


class Roles:
    """One leader (2 actions) and two followers (3 actions) name the digits they see; each is paid for its own.

    Observations are one-hot: `[2]` for the leader, `[3]` for a follower. Of a follower's two wrong actions one, the
    digit after the right one, is forbidden by `action_mask`, and taking it all the same earns nothing. Global state
    `[8]`: all digits, one-hot. Known answers: best return and value 1 in both roles; at random 0.5 in both, though a
    follower that ignores its mask has 1/3.
    """

    Config: ClassVar[type[EnvConfig]] = RolesConfig
    lane_axis: ClassVar[int] = 0
    max_steps: int | None = 1

    def __init__(self, **options: Any) -> None:
        self.config = RolesConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (
            RoleSpec("leader", 1, Box((2,), 0.0, 1.0), Discrete(2), STATE_SPACE, max_steps=1),
            RoleSpec("follower", 2, Box((3,), 0.0, 1.0), Discrete(3), STATE_SPACE, max_steps=1),
        )

    @property
    def default_params(self) -> Prize:
        return default_prize()

    def reset(self, key: Key, params: Prize) -> tuple[RolesState, TimeStep]:
        # One draw for all three: random numbers are most of what a tiny world costs.
        uniform = jax.random.uniform(key, (3,), jnp.float32)
        leader, follower = (2.0 * uniform[:1]).astype(jnp.int32), (3.0 * uniform[1:]).astype(jnp.int32)
        state = RolesState(leader=leader, follower=follower, right=jnp.zeros(3, bool))
        obs = self._observe(state)
        return state, first_row(obs, "match", action_mask=self._mask(state), state=_flat(obs))

    def step(self, key: Key, state: RolesState, actions: ByRole, params: Prize) -> tuple[RolesState, TimeStep]:
        led, followed = actions["leader"] == state.leader, actions["follower"] == state.follower
        reward = {
            "leader": jnp.where(led, params.prize, 0.0).astype(jnp.float32),
            "follower": jnp.where(followed, params.prize, 0.0).astype(jnp.float32),
        }
        state = RolesState(leader=state.leader, follower=state.follower, right=jnp.concatenate([led, followed]))
        obs, mask = self._observe(state), self._mask(state)
        return state, next_row(obs, reward, "match", last=jnp.ones((), bool), action_mask=mask, state=_flat(obs))

    def render(self, state: RolesState, params: Prize) -> NDArray[np.uint8]:
        """A row an agent (leader first): a tile an action, its digit lit, then a tile that is green if it was right."""
        digits = [*np.asarray(state.leader), *np.asarray(state.follower)]
        rows = []
        for agent, (digit, right) in enumerate(zip(digits, np.asarray(state.right), strict=True)):
            row = [(RED if agent else BLUE) if action == digit else GREY for action in range(3)]
            rows.append([*row, GREEN if right else GREY])
        return tiles(rows)

    def _observe(self, state: RolesState) -> ByRole:
        return {
            "leader": jax.nn.one_hot(state.leader, 2, dtype=jnp.float32),
            "follower": jax.nn.one_hot(state.follower, 3, dtype=jnp.float32),
        }

    def _mask(self, state: RolesState) -> ByRole:
        forbidden = (state.follower + 1) % 3
        return {
            "leader": jnp.ones((1, 2), bool),
            "follower": jnp.arange(3, dtype=jnp.int32) != forbidden[:, None],
        }


def _flat(obs: ByRole) -> jax.Array:
    return jnp.concatenate([obs["leader"].ravel(), obs["follower"].ravel()])
