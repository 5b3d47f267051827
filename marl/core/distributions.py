"""Distributions over actions: small pytrees with `sample`, `log_prob`, `entropy`, `mode` and `kl`.

Leading axes are free; the last axis of the parameters is the action's. A result sums over the parts of one action, so
`log_prob`, `entropy` and `kl` have the leading axes only.
"""

from __future__ import annotations

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from marl.core.errors import ShapeError
from marl.core.types import Array, Key

FORBIDDEN = -1e30  # a logit that no finite one comes near, without infinities that turn 0 * log 0 into NaN


class Distribution(Protocol):
    """What a policy head returns."""

    def sample(self, key: Key) -> Array: ...
    def log_prob(self, action: Array) -> Array: ...
    def entropy(self) -> Array: ...
    def mode(self) -> Array: ...


@struct.dataclass
class Categorical:
    """One integer in 0 .. n-1. logits: f32 `[..., n]`, not normalised."""

    logits: Array

    @classmethod
    def masked(cls, logits: Array, mask: Array | None) -> Categorical:
        """With probability 0 where `mask` (bool, as the logits) is False; uniform if nothing is allowed."""
        return cls(logits if mask is None else jnp.where(mask, logits, FORBIDDEN))

    def sample(self, key: Key) -> Array:
        """int32 `[...]`, by the Gumbel-max trick."""
        noise = jax.random.gumbel(key, self.logits.shape, self.logits.dtype)
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """f32 `[...]`; `action` int `[...]`."""
        chosen = action[..., None] == jnp.arange(self.logits.shape[-1], dtype=jnp.int32)
        # A masked sum costs less than a gather on small action sets, forwards and backwards.
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0.0), axis=-1)

    def entropy(self) -> Array:
        """In nats, `[...]`."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def mode(self) -> Array:
        """The most likely action, int32 `[...]`."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def kl(self, other: Categorical) -> Array:
        """KL(self || other), `[...]`."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


@struct.dataclass
class MultiCategorical:
    """Independent integers, element i in 0 .. nvec[i]-1. logits: f32 `[..., sum(nvec)]`, part after part."""

    logits: Array
    nvec: tuple[int, ...] = struct.field(pytree_node=False)

    @classmethod
    def masked(cls, logits: Array, mask: Array | None, nvec: tuple[int, ...]) -> MultiCategorical:
        """Raises: ShapeError if the last axis is not sum(nvec)."""
        if logits.shape[-1] != sum(nvec):
            raise ShapeError(f"logits of shape {logits.shape} do not end in the {sum(nvec)} choices of {nvec}")
        return cls(logits if mask is None else jnp.where(mask, logits, FORBIDDEN), nvec)

    @property
    def parts(self) -> list[Categorical]:
        ends = [sum(self.nvec[: i + 1]) for i in range(len(self.nvec))]
        return [Categorical(self.logits[..., end - n : end]) for end, n in zip(ends, self.nvec, strict=True)]

    def sample(self, key: Key) -> Array:
        """int32 `[..., len(nvec)]`."""
        keys = jax.random.split(key, len(self.nvec))
        return jnp.stack([part.sample(k) for part, k in zip(self.parts, keys, strict=True)], axis=-1)

    def log_prob(self, action: Array) -> Array:
        """f32 `[...]`; `action` int `[..., len(nvec)]`."""
        return _total([part.log_prob(action[..., i]) for i, part in enumerate(self.parts)])

    def entropy(self) -> Array:
        """In nats, `[...]`."""
        return _total([part.entropy() for part in self.parts])

    def mode(self) -> Array:
        """The most likely action, int32 `[..., len(nvec)]`."""
        return jnp.stack([part.mode() for part in self.parts], axis=-1)

    def kl(self, other: MultiCategorical) -> Array:
        """KL(self || other), `[...]`."""
        return _total([p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)])


@struct.dataclass
class DiagonalGaussian:
    """Independent normal numbers. mean, log_std: f32 `[..., d]` (log_std may broadcast)."""

    mean: Array
    log_std: Array

    def sample(self, key: Key) -> Array:
        """f32 `[..., d]`."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, action: Array) -> Array:
        """f32 `[...]`; `action` f32 `[..., d]`."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Array:
        """In nats, `[...]`."""
        each = jnp.broadcast_to(self.log_std + 0.5 * math.log(2 * math.pi * math.e), self.mean.shape)
        return jnp.sum(each, axis=-1)

    def mode(self) -> Array:
        """The mean, `[..., d]`."""
        return self.mean

    def kl(self, other: DiagonalGaussian) -> Array:
        """KL(self || other), `[...]`."""
        variance_ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        shift = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        each = 0.5 * (variance_ratio + shift - 1.0) + other.log_std - self.log_std
        return jnp.sum(jnp.broadcast_to(each, self.mean.shape), axis=-1)


@struct.dataclass
class TanhGaussian:
    """tanh of a diagonal Gaussian: actions in (-1, 1). mean, log_std: of the Gaussian before tanh, f32 `[..., d]`."""

    mean: Array
    log_std: Array

    @property
    def base(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.log_std)

    def sample(self, key: Key) -> Array:
        """f32 `[..., d]` in [-1, 1]."""
        return jnp.tanh(self.base.sample(key))

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """A sample with its log density, exact also where tanh is saturated."""
        raw = self.base.sample(key)
        return jnp.tanh(raw), self._density(raw)

    def log_prob(self, action: Array) -> Array:
        """f32 `[...]`; actions within 1e-6 of the bounds are moved there, as tanh cannot be inverted at them."""
        return self._density(jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6)))

    def entropy(self, key: Key | None = None) -> Array:
        """Estimate from one sample, or at the mean without a key: there is no closed form."""
        raw = self.mean if key is None else self.base.sample(key)
        return self.base.entropy() + jnp.sum(_log_slope(raw), axis=-1)

    def mode(self) -> Array:
        """tanh of the mean (the median, by custom called the mode)."""
        return jnp.tanh(self.mean)

    def kl(self, other: TanhGaussian) -> Array:
        """KL(self || other): that of the Gaussians, as tanh is one-to-one."""
        return self.base.kl(other.base)

    def _density(self, raw: Array) -> Array:
        return self.base.log_prob(raw) - jnp.sum(_log_slope(raw), axis=-1)


def _log_slope(raw: Array) -> Array:
    """log(1 - tanh(x)^2), without the cancellation that makes it -inf for large |x|."""
    return 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))


def _total(parts: list[Array]) -> Array:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
