"""Statistics of fixed shape: masked means, and running moments that merge exactly.

`axis_name` names a mesh (or vmap) axis over which the statistic is taken as well; None where there is one copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from marl.core.types import Array

Axes = int | Sequence[int] | None


def masked_mean(x: Array, mask: Array, axis: Axes = None, axis_name: str | None = None) -> Array:
    """Mean of `x` where `mask` is True, over `axis` (all if None) and the mesh axis; 0 where nothing is True."""
    weight = jnp.broadcast_to(mask, x.shape).astype(jnp.float32)
    total, count = jnp.sum(jnp.where(weight > 0, x, 0.0), axis=axis), jnp.sum(weight, axis=axis)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1.0)


def masked_mean_std(x: Array, mask: Array, axis: Axes = None, axis_name: str | None = None) -> tuple[Array, Array]:
    """Mean and (population) standard deviation where `mask` is True, in two passes; shapes as `masked_mean`."""
    mean = masked_mean(x, mask, axis, axis_name)
    centred = x - (mean if axis is None else jnp.expand_dims(mean, axis))
    return mean, jnp.sqrt(masked_mean(jnp.square(centred), mask, axis, axis_name))


def explained_variance(prediction: Array, target: Array, mask: Array, axis_name: str | None = None) -> Array:
    """1 - var(target - prediction) / var(target) where `mask` is True; 1 is perfect, 0 is no better than a constant."""
    _, left = masked_mean_std(target - prediction, mask, axis_name=axis_name)
    _, whole = masked_mean_std(target, mask, axis_name=axis_name)
    return 1.0 - jnp.square(left) / jnp.maximum(jnp.square(whole), 1e-8)


@struct.dataclass
class RunningMoments:
    """Mean and sum of squared deviations of everything seen, f32 `[...]`; `count` is a weight and may decay."""

    count: Array
    mean: Array
    m2: Array

    @classmethod
    def zero(cls, shape: tuple[int, ...] = ()) -> RunningMoments:
        """Moments of nothing: mean 0 and, until data come, standard deviation 1."""
        nothing = jnp.zeros(shape, jnp.float32)
        return cls(count=nothing, mean=nothing, m2=nothing)

    @property
    def std(self) -> Array:
        """Standard deviation, 1 while fewer than two elements were seen and at least 1e-4 later."""
        variance = self.m2 / jnp.maximum(self.count, 1.0)
        return jnp.where(self.count > 1.0, jnp.maximum(jnp.sqrt(variance), 1e-4), 1.0)


def merge_moments(a: RunningMoments, b: RunningMoments) -> RunningMoments:
    """Moments of both sets of data together (Chan, Golub & LeVeque 1983)."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1e-8)
    delta = b.mean - a.mean
    m2 = a.m2 + b.m2 + jnp.square(delta) * a.count * share
    return RunningMoments(count=count, mean=a.mean + delta * share, m2=m2)


def update_moments(
    moments: RunningMoments, x: Array, mask: Array, axis: Axes = None, axis_name: str | None = None, decay: float = 1.0
) -> RunningMoments:
    """Adds the masked elements of `x`, reduced over `axis`; `decay` < 1 first shrinks the weight of the old ones.

    Args: moments: shape of `x` without `axis`.  mask: bool, shape of `x`.
    """
    weight = jnp.sum(mask.astype(jnp.float32), axis=axis)
    if axis_name is not None:
        weight = jax.lax.psum(weight, axis_name)
    mean, std = masked_mean_std(x, mask, axis, axis_name)
    old = RunningMoments(count=moments.count * decay, mean=moments.mean, m2=moments.m2 * decay)
    return merge_moments(old, RunningMoments(count=weight, mean=mean, m2=jnp.square(std) * weight))
