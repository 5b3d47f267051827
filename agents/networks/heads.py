"""From a network's last layer to a distribution over the actions of a space, and from a sample to an action.

A head samples in its own *raw* space. For Discrete and MultiDiscrete, raw and action are the same integers. For Box,
raw is an unbounded Gaussian number: with finite bounds [-1, 1] is mapped onto them, and what lies outside is clipped
(or squashed by tanh). Ratios of probabilities are taken between raw numbers, so neither the clip nor tanh enters them.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from marl.core.distributions import Categorical, DiagonalGaussian, MultiCategorical
from marl.core.errors import UserError
from marl.core.spaces import Box, Discrete, MultiDiscrete, Space
from marl.core.types import Array

from .observations import flat_size, flatten

ActionDistribution = Categorical | MultiCategorical | DiagonalGaussian


@dataclasses.dataclass(frozen=True)
class ActionHead:
    """How a policy network speaks for one action space. squash: tanh instead of clipping, for Box only."""

    space: Space
    squash: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.space, Box | Discrete | MultiDiscrete):
            raise UserError(f"no policy head for an action space of type {type(self.space).__name__}")
        if isinstance(self.space, Box) and math.isfinite(self.space.low) != math.isfinite(self.space.high):
            raise UserError(f"a Box of actions needs both bounds or none, got [{self.space.low}, {self.space.high}]")

    @property
    def continuous(self) -> bool:
        return isinstance(self.space, Box)

    @property
    def outputs(self) -> int:
        """Width of the network's last layer; a Gaussian's log standard deviation is a parameter beside it."""
        return flat_size(self.space)

    def distribution(
        self, output: Array, log_std: Array | None = None, mask: Array | None = None
    ) -> ActionDistribution:
        """Over raw actions. output: `[..., outputs]`.  log_std: `[outputs]`, for Box.  mask: True = allowed."""
        if isinstance(self.space, Discrete):
            return Categorical.masked(output, mask)
        if isinstance(self.space, MultiDiscrete):
            return MultiCategorical.masked(output, mask, self.space.nvec)
        return DiagonalGaussian(output, jnp.zeros(self.outputs, jnp.float32) if log_std is None else log_std)

    def action(self, raw: Array) -> Array:
        """What the world gets, `[..., *space.shape]`."""
        if not isinstance(self.space, Box):
            return raw
        low, high = self.space.low, self.space.high
        if math.isfinite(low):
            bounded = jnp.tanh(raw) if self.squash else jnp.clip(raw, -1.0, 1.0)
            raw = low + 0.5 * (bounded + 1.0) * (high - low)
        return raw.reshape(*raw.shape[:-1], *self.space.shape).astype(self.space.dtype)

    def none(self, agents: int) -> Array:
        """The raw action before the first one, `[agents, ...]`: its features are zeros."""
        if isinstance(self.space, Discrete):
            return jnp.full((agents,), -1, jnp.int32)
        if isinstance(self.space, MultiDiscrete):
            return jnp.full((agents, len(self.space.nvec)), -1, jnp.int32)
        return jnp.zeros((agents, self.outputs), jnp.float32)

    def features(self, raw: Array) -> Array:
        """A raw action as network input, f32 `[..., outputs]`: one-hot, or the numbers that the world saw."""
        if not isinstance(self.space, Box):
            return flatten(self.space, raw)
        if not math.isfinite(self.space.low):
            return raw
        return jnp.tanh(raw) if self.squash else jnp.clip(raw, -1.0, 1.0)
