"""Named key streams: a key depends on the run's seed and a path of names, never on the order of asking."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

from marl.core.types import Array, Key

_INTEGER = 0x6D61726C  # folded before an integer, so that 3 and "3" are different parts


def stream(seed: int, *path: str | int) -> Key:
    """The key of a purpose, such as `stream(0, "lanes", "hider", 3)`.

    Names are hashed with CRC-32, the same in every process and Python version; integers are folded as they are.
    Purposes in use: init, lanes, update, validation, test, and a role's or policy's name below them.

    Args: seed: any non-negative integer.  path: names and non-negative integers, from the general to the particular.
    Raises: ValueError for a negative integer.
    """
    key = _fold_integer(jax.random.key(0, impl="threefry2x32"), seed)
    for part in path:
        if isinstance(part, str):
            key = jax.random.fold_in(key, zlib.crc32(part.encode()))
        else:
            key = _fold_integer(jax.random.fold_in(key, _INTEGER), part)
    return key


def permutation(key: Key, n: int) -> Array:
    """A random order of the indices 0 .. n-1, int32 `[n]`.

    Up to 16,384 indices it sorts one word an index, random high bits above the index itself, which on a CPU takes a
    ninth of the time of `jax.random.permutation`; the rare equal random parts (18 bits or more) keep their order.
    """
    index_bits = max(n - 1, 1).bit_length()
    if index_bits > 14:
        return jax.random.permutation(key, n)
    low = (1 << index_bits) - 1
    index = jnp.arange(n, dtype=jnp.int32)
    high = jax.lax.bitcast_convert_type(jax.random.bits(key, (n,), jnp.uint32), jnp.int32) & ~low
    return jax.lax.sort(high | index, is_stable=False) & low


def _threefry(key_1: Array, key_2: Array, x_1: Array, x_2: Array) -> tuple[Array, Array]:
    """Threefry 2x32 with 20 rounds, written out (Salmon et al. 2011). All uint32, of shapes that broadcast."""
    keys = (key_1, key_2, key_1 ^ key_2 ^ np.uint32(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    x_1, x_2 = x_1 + key_1, x_2 + key_2
    for group in range(5):
        for left in rotations[group % 2]:
            x_1 = x_1 + x_2
            x_2 = x_1 ^ ((x_2 << np.uint32(left)) | (x_2 >> np.uint32(32 - left)))
        x_1 = x_1 + keys[(group + 1) % 3]
        x_2 = x_2 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x_1, x_2


# On a CPU, JAX runs its generator as a loop of many small operations, and a small world spends most of its time there:
# in a scan over rows of 8 lanes, a split and two draws took 4.7 us, written out 0.9 us. The bits are the same.
mlir.register_lowering(threefry2x32_p, mlir.lower_fun(_threefry, multiple_results=True), platform="cpu")


def _fold_integer(key: Key, value: int) -> Key:
    """Folds in 32 bits at a time, least significant first; small integers take one step."""
    if value < 0:
        raise ValueError(f"a key stream needs non-negative integers, got {value}")
    key = jax.random.fold_in(key, value & 0xFFFFFFFF)
    return key if value < 2**32 else _fold_integer(key, value >> 32)
