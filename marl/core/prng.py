"""Named key streams: a key depends on the run's seed and a path of names, never on the order of asking."""

from __future__ import annotations

import zlib

import jax

from marl.core.types import Key

_INTEGER = 0x6D61726C  # folded before an integer, so that 3 and "3" are different parts


def stream(seed: int, *path: str | int) -> Key:
    """The key of a purpose, such as `stream(0, "lanes", "hider", 3)`.

    Names are hashed with CRC-32, the same in every process and Python version; integers are folded as they are.
    Purposes in use: init, lanes, update, validation, test, and a role's or policy's name below them.

    Args: seed: any non-negative integer.  path: names and non-negative integers, from the general to the particular.
    Raises: ValueError for a negative integer.
    """
    key = _fold_integer(jax.random.key(0), seed)
    for part in path:
        if isinstance(part, str):
            key = jax.random.fold_in(key, zlib.crc32(part.encode()))
        else:
            key = _fold_integer(jax.random.fold_in(key, _INTEGER), part)
    return key


def _fold_integer(key: Key, value: int) -> Key:
    """Folds in 32 bits at a time, most significant last; small integers take one step."""
    if value < 0:
        raise ValueError(f"a key stream needs non-negative integers, got {value}")
    key = jax.random.fold_in(key, value & 0xFFFFFFFF)
    return key if value < 2**32 else _fold_integer(key, value >> 32)
