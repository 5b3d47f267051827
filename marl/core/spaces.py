"""Spaces as small hashable values.

Gymnasium's spaces cannot be hashed, so they cannot be static arguments of a jitted function; they appear at the
PettingZoo and Gymnasium boundary only (`marl.interop`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True)
class Dict:
    """Several spaces by key, sorted by it; an element is a dict of arrays. For observations and states only."""

    items: tuple[tuple[str, ObservationSpace], ...]

    @classmethod
    def of(cls, spaces: Mapping[str, ObservationSpace]) -> Dict:
        """The space of a mapping, whatever its order."""
        return cls(tuple(sorted(spaces.items())))


Space: TypeAlias = Box | Discrete | MultiDiscrete  # of one array: all that an action can be
ObservationSpace: TypeAlias = "Space | Dict"
