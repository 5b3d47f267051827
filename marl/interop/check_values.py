"""What is wrong with an observation, a reward, a mask: in words. Importing this imports no JAX."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

SMALL = 256  # elements of an array that is kept as it is
TOLERANCE = 1e-5  # beyond a bound, relative to it: what float32 rounds


def observation_problems(space: Any, value: Any, what: str = "observation") -> Iterator[str]:
    """Every way in which a value is not of its space, each naming what was found and what was expected."""
    match space:
        case spaces.Dict():
            yield from _dict_problems(space, value, what)
        case spaces.Tuple():
            if not isinstance(value, tuple) or len(value) != len(space.spaces):
                yield f"{what} is {shown(value)}, expected a tuple of {len(space.spaces)}"
                return
            for index, (part, own) in enumerate(zip(value, space.spaces, strict=True)):
                yield from observation_problems(own, part, f"{what}[{index}]")
        case spaces.Discrete():
            first, last = int(space.start), int(space.start) + int(space.n) - 1
            try:
                fits = np.ndim(value) == 0 and first <= operator.index(value) <= last
            except TypeError:
                fits = False
            if not fits:
                yield f"{what} is {shown(value)}, expected an integer from {first} to {last}"
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            yield from _array_problems(space, value, what)


def _dict_problems(space: spaces.Dict, value: Any, what: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{what} is {shown(value)}, expected a dict with the keys {', '.join(map(str, space.spaces))}"
        return
    for key in space.spaces:
        if key not in value:
            yield f"{what} has no key '{key}'"
        elif key != "action_mask":  # masks are looked at with the actions
            yield from observation_problems(space[key], value[key], f"{what}['{key}']")
    for key in value:
        if key not in space.spaces:
            yield f"{what} has the key '{key}', which its space has not"


def _array_problems(space: Any, value: Any, what: str) -> Iterator[str]:
    expected = f"an array of {space.dtype} and shape {space.shape}"
    if not isinstance(value, np.ndarray | np.generic):
        yield f"{what} is {shown(value)}, expected {expected}"
        return
    if value.shape != space.shape:
        yield f"{what} has shape {value.shape}, expected {space.shape}"
        return
    if value.dtype != space.dtype:
        yield f"{what} has dtype {value.dtype}, expected {space.dtype}"
    if value.dtype.kind not in "fiub":
        return
    if value.dtype.kind == "f" and np.isnan(value).any():
        yield f"{what}{_at(np.isnan(value))} is NaN, expected a number"
        return
    match space:
        case spaces.Box() if (
            space.dtype == value.dtype == np.uint8 and space.low.max() == 0 and space.high.min() == 255
        ):
            return  # pictures are large, and cannot be beyond
        case spaces.Box():
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        case spaces.MultiDiscrete():
            low, high = np.asarray(space.start, np.float64), np.asarray(space.start + space.nvec - 1, np.float64)
        case _:
            low, high = np.zeros(space.shape), np.ones(space.shape)
    beyond = (value < low - _slack(low)) | (value > high + _slack(high))
    if beyond.any():
        index = tuple(np.argwhere(beyond)[0])
        bounds = f"from {low[index]:g} to {high[index]:g}"
        yield f"{what}{_at(beyond)} is {np.asarray(value)[index]:g}, expected {bounds}, as its space says"


def _slack(bound: Any) -> Any:
    return TOLERANCE * (1.0 + np.where(np.isfinite(bound), np.abs(bound), 0.0))


def _at(where: Any) -> str:
    index = np.argwhere(where)[0].tolist()
    return str(index) if index else ""


def reward_problem(value: Any) -> str | None:
    """Why a value is no reward, or None."""
    if value is None or np.ndim(value) > 0:
        return f"reward is {shown(value)}, expected a number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"reward is {shown(value)}, expected a number"
    return None if math.isfinite(number) else f"reward is {number}, expected a finite number"


def flag_problem(what: str, value: Any) -> str | None:
    """Why a value is no truth value, or None."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return None
    return f"{what} is {shown(value)}, expected True or False"


def mask_problem(value: Any, n: int) -> str | None:
    """Why a value is no mask of n actions of which one is allowed, or None."""
    mask = np.asarray(value)
    if mask.shape != (n,) or mask.dtype.kind not in "biuf":
        return f"action_mask has shape {mask.shape} and dtype {mask.dtype}, expected {n} zeros and ones"
    if not mask.any():
        return "action_mask is all zero though it is the agent's turn, expected one action that is allowed"
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two observations, rewards, dicts of them are equal. NaN equals NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    left, right = np.asarray(one), np.asarray(other)
    if left.dtype.kind in "fiub" and right.dtype.kind in "fiub":
        return np.array_equal(left, right, equal_nan=left.dtype.kind == "f" and right.dtype.kind == "f")
    return bool(np.all(left == right))


def difference(what: str, was: Any, now: Any) -> str:
    """Where two values that are not the same differ first."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        key = next(key for key in was if not same(was[key], now[key]))
        return difference(f"{what}['{key}']", was[key], now[key])
    one, other = np.asarray(was), np.asarray(now)
    if one.shape == other.shape and one.ndim and one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        index = tuple(np.argwhere(one != other)[0])
        return f"{what}{_at(one != other)} is {other[index]:.9g}, was {one[index]:.9g}"
    return f"{what} is {shown(now)}, was {shown(was)}"


def frozen_value(value: Any) -> Any:
    """A copy of an observation; of a large array, a digest."""
    if isinstance(value, dict):
        return {key: frozen_value(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(frozen_value(part) for part in value)
    if isinstance(value, np.ndarray):
        if value.size <= SMALL or value.dtype.hasobject:
            return value.copy()
        return f"a large array with the digest {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:12]}"
    return value


def shown(value: object) -> str:
    """A value in a message, cut short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
