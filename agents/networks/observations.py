"""Spaces to flat float vectors: what a network reads of an observation, a global state or a remembered action."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from marl.core.errors import UserError
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete
from marl.core.types import Array, Tree


def flat_size(space: Tree) -> int:
    """Length of `flatten(space, x)`. `space` is a space, or a mapping or tuple of them.

    Raises: UserError for anything else.
    """
    match space:
        case Box():
            return math.prod(space.shape)
        case Discrete():
            return space.n
        case MultiDiscrete():
            return sum(space.nvec)
        case Dict():
            return sum(flat_size(part) for _, part in space.items)
        case Mapping():
            return sum(flat_size(space[k]) for k in sorted(space))
        case tuple() | list():
            return sum(flat_size(part) for part in space)
    raise UserError(
        f"a network cannot read a space of type {type(space).__name__}; expected Box, Discrete, MultiDiscrete or Dict"
    )


def flatten(space: Tree, x: Tree) -> Array:
    """f32 `[..., flat_size(space)]` from an element with any leading axes.

    Numbers are flattened, bytes (`uint8`) scaled to [0, 1], integers of Discrete and MultiDiscrete one-hot; a negative
    integer ("none") gives zeros.
    """
    match space:
        case Discrete():
            return jax.nn.one_hot(x, space.n, dtype=jnp.float32)
        case MultiDiscrete():
            parts = [jax.nn.one_hot(x[..., i], n, dtype=jnp.float32) for i, n in enumerate(space.nvec)]
            return jnp.concatenate(parts, axis=-1)
        case Dict():
            return jnp.concatenate([flatten(part, x[key]) for key, part in space.items], axis=-1)
        case Mapping():
            return jnp.concatenate([flatten(space[k], x[k]) for k in sorted(space)], axis=-1)
        case tuple() | list():
            return jnp.concatenate([flatten(s, part) for s, part in zip(space, x, strict=True)], axis=-1)
    lead = x.ndim - len(space.shape)
    flat: Array = x.reshape(*x.shape[:lead], math.prod(space.shape))
    return flat.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else flat.astype(jnp.float32)
