"""A bandit with several pullers, named `tiny_marl.worlds:Bandit` in an experiment."""

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


class BanditConfig(EnvConfig):
    """pullers: size of the role.  arms: how many actions.  best: the arm that pays 1; every other pays 0."""

    pullers: int = 2
    arms: int = 3
    best: int = 1


@struct.dataclass
class BanditState:
    """arms: what was pulled last, i32 `[pullers]`, -1 before."""

    arms: jax.Array


class Bandit:
    """One step: the best arm pays `params` (1), every other one nothing."""

    Config: ClassVar[type[EnvConfig]] = BanditConfig
    lane_axis: ClassVar[int] = 0
    max_steps: int | None = 1

    def __init__(self, **options: Any) -> None:
        self.config = BanditConfig(**options)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("puller", self.config.pullers, Box((1,), 0.0, 1.0), Discrete(self.config.arms), max_steps=1),)

    @property
    def default_params(self) -> jax.Array:
        return jnp.asarray(1.0, jnp.float32)

    def reset(self, key: Key, params: jax.Array) -> tuple[BanditState, TimeStep]:
        arms = jnp.full(self.config.pullers, -1, jnp.int32)
        return BanditState(arms), self._row(jnp.zeros(self.config.pullers, jnp.float32), over=jnp.zeros((), bool))

    def step(self, key: Key, state: BanditState, actions: ByRole, params: jax.Array) -> tuple[BanditState, TimeStep]:
        arms = actions["puller"]
        paid = jnp.where(arms == self.config.best, params, 0.0).astype(jnp.float32)
        return BanditState(arms), self._row(paid, over=jnp.ones((), bool))

    def render(self, state: BanditState, params: jax.Array) -> NDArray[np.uint8]:
        picture = np.zeros((8 * self.config.pullers, 8 * self.config.arms, 3), np.uint8)
        for puller, arm in enumerate(np.asarray(state.arms)):
            if arm >= 0:
                picture[8 * puller : 8 * puller + 8, 8 * arm : 8 * arm + 8] = 255
        return picture

    def _row(self, reward: jax.Array, over: jax.Array) -> TimeStep:
        n = self.config.pullers
        return TimeStep(
            obs={"puller": jnp.ones((n, 1), jnp.float32)},
            reward={"puller": reward},
            terminated={"puller": jnp.broadcast_to(over, (n,))},
            truncated={"puller": jnp.zeros(n, bool)},
            alive={"puller": jnp.broadcast_to(~over, (n,))},
            first=~over,
            last=over,
            info={"reward/puller/arm": reward.mean()},
        )
