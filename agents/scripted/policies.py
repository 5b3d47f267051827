"""The two simplest policies: uniformly random, and always the same action."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field

from marl.core.config import AgentConfig
from marl.core.distributions import Categorical, MultiCategorical
from marl.core.errors import UserError
from marl.core.spaces import Box, Discrete, MultiDiscrete
from marl.core.types import Array, ByRole, Key, RoleSpec, TimeStep, Tree

from .memoryless import Memoryless


class Random(Memoryless[AgentConfig]):
    """Uniform over the allowed actions; over a Box without bounds, standard normal."""

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """Always samples: `explore` makes no difference."""
        del params, explore
        keys = jax.random.split(key, len(self.specs))
        masks = step.action_mask or {}
        actions = {s.name: _uniform(s, masks.get(s.name), k) for s, k in zip(self.specs, keys, strict=True)}
        return carry, actions, ()


class ConstantConfig(AgentConfig):
    """action: the index that every agent takes at every step."""

    action: int = Field(0, ge=0)


class Constant(Memoryless[ConstantConfig]):
    """Always the same index of a Discrete space, allowed or not."""

    Config: ClassVar[type[AgentConfig]] = ConstantConfig

    def __init__(self, config: ConstantConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        super().__init__(config, roles, axis)
        self.action = config.action
        for spec in roles:
            if not isinstance(spec.action_space, Discrete):
                raise UserError(
                    f"scripted/constant needs Discrete actions, but role '{spec.name}' has {spec.action_space}"
                )
            if self.action >= spec.action_space.n:
                raise UserError(
                    f"action: {self.action} is not an action of role '{spec.name}', "
                    f"which has 0 to {spec.action_space.n - 1}"
                )

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        del params, step, key, explore
        return carry, {s.name: jnp.full((s.size,), self.action, jnp.int32) for s in self.specs}, ()


def _uniform(spec: RoleSpec, mask: Array | None, key: Key) -> Array:
    """One action for each agent, `[n, ...]`."""
    space = spec.action_space
    match space:
        case Discrete():
            return Categorical.masked(jnp.zeros((spec.size, space.n), jnp.float32), mask).sample(key)
        case MultiDiscrete():
            logits = jnp.zeros((spec.size, sum(space.nvec)), jnp.float32)
            return MultiCategorical.masked(logits, mask, space.nvec).sample(key)
        case Box():
            shape = (spec.size, *space.shape)
            if abs(space.low) == float("inf") or abs(space.high) == float("inf"):
                return jax.random.normal(key, shape, space.dtype)
            return jax.random.uniform(key, shape, space.dtype, space.low, space.high)
