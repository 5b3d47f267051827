"""Weight initialisers."""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from marl.core.types import Array, Key


class Initialiser(Protocol):
    """Draws an array, as Flax's initialisers do."""

    def __call__(self, key: Key, shape: Any, dtype: Any = ...) -> Array: ...


def orthogonal(gain: float = 1.0) -> Initialiser:
    """A matrix `[..., out]` with orthonormal rows or columns (whichever are fewer), times `gain` (Saxe et al. 2014).

    Gram-Schmidt on a Gaussian matrix, each row projected twice, instead of JAX's QR: on a CPU with few threads two
    batched QR calls in one program wait for each other's workers for ever (seen with jaxlib 0.10.2 on 2 cores).
    """

    def init(key: Key, shape: Any, dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        few, many = min(rows, columns), max(rows, columns)
        drawn = jax.random.normal(key, (few, many), dtype)

        def one(i: Array, done: Array) -> Array:
            row = drawn[i]
            for _ in range(2):
                row = row - (done @ row) @ done
            return done.at[i].set(row / jnp.linalg.norm(row))

        matrix = jax.lax.fori_loop(0, few, one, jnp.zeros((few, many), dtype))
        if rows > columns:
            matrix = matrix.T
        weights: Array = gain * matrix.reshape(shape)
        return weights

    return init
