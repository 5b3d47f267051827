"""Spaces as small hashable values.

Gymnasium's spaces cannot be hashed, so they cannot be static arguments of a jitted function; they appear at the
PettingZoo and Gymnasium boundary only (`marl.interop`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of one shape with the same bounds for every element. `dtype` is a numpy dtype name."""

    shape: tuple[int, ...]
    low: float = -math.inf
    high: float = math.inf
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Integers 0 .. n-1, as int32 scalars."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: str = "int32"


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, element i in 0 .. nvec[i]-1, as int32."""

    nvec: tuple[int, ...]
    dtype: str = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)


Space: TypeAlias = Box | Discrete | MultiDiscrete
