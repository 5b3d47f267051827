"""Gymnasium's spaces as ours, and the values between them. Importing this imports no JAX.

Three differences are bridged here. Our `Box` has one low and one high for all its elements; our `Discrete` starts at 0;
an action of ours is one array. Observations keep their values, actions are mapped.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl.core.errors import UserError, WorldError
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete, ObservationSpace, Space
from marl.interop.pictures import Pictures

Foreign: TypeAlias = gymnasium.spaces.Space[Any]
Write: TypeAlias = Callable[[Any], None]  # puts one observation into its place in the row
Decode: TypeAlias = Callable[[NDArray[Any]], list[Any]]  # a role's actions `[n, ...]` as the world wants them, by agent

MASK, INNER = "action_mask", "observation"
AS_THEY_ARE = Pictures()
USABLE = "Discrete, MultiDiscrete, MultiBinary, Box"


def observation_space(space: Foreign, agent: str, pictures: Pictures = AS_THEY_ARE) -> ObservationSpace:
    """What the rows hold of an agent's observations. Raises: UserError naming agent and space if we cannot hold them.

    Numbers become float32, but images (uint8 from 0 to 255) stay bytes. MultiBinary is MultiDiscrete of twos; arrays of
    more than one axis of these are flattened. Tuple is Dict with the keys "0", "1", ...  pictures: what is done to
    those.
    """
    match space:
        case spaces.Box() if pictures.changes(space):
            return Box(pictures.shape(_shape(space)), 0.0, 255.0, "uint8")
        case spaces.Box():
            return _box(space)
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case spaces.MultiBinary():
            return MultiDiscrete((2,) * math.prod(space.shape))
        case spaces.Dict() | spaces.Tuple():
            return Dict.of({key: observation_space(part, agent, pictures) for key, part in _parts(space)})
    raise UserError(f"agent '{agent}': observations of {_kind(space)} cannot be used; expected {USABLE}, Dict or Tuple")


def action_space(space: Foreign, agent: str) -> Space:
    """What a policy draws for an agent. Raises: UserError naming agent and space if no policy could.

    A Box whose elements have different bounds is drawn from [-1, 1]; a Dict or Tuple of Discretes is MultiDiscrete.
    """
    match space:
        case spaces.Box():
            low, high = _bounds(space)
            if low is not None and high is not None and low == high:
                raise UserError(f"agent '{agent}': the action space {space} has one action only; expected low < high")
            return (
                Box(_shape(space), low, high)
                if low is not None and high is not None and _is_finite(space)
                else _scaled(space)
            )
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case spaces.MultiBinary():
            return MultiDiscrete((2,) * math.prod(space.shape))
        case spaces.Dict() | spaces.Tuple():
            parts = [part for _, part in _parts(space)]
            if parts and all(isinstance(part, spaces.Discrete) for part in parts):
                return MultiDiscrete(tuple(int(part.n) for part in parts))
    raise UserError(
        f"agent '{agent}': actions of {_kind(space)} cannot be used; expected {USABLE}, or a Dict or Tuple of Discretes"
    )


def split_mask(space: Foreign, action: Foreign) -> tuple[Foreign, bool]:
    """The space without its action mask, and whether it had one: a Dict with the key "action_mask" beside others. If
    only "observation" is left, that alone is the observation."""
    if not isinstance(space, spaces.Dict) or MASK not in space.spaces or not isinstance(action, spaces.Discrete):
        return space, False
    rest = {key: part for key, part in space.spaces.items() if key != MASK}
    if set(rest) == {INNER}:
        return rest[INNER], True
    return (spaces.Dict(rest), True) if rest else (space, False)


def writer(
    space: Foreign, target: Any, agent: str, what: str = "observation", pictures: Pictures = AS_THEY_ARE
) -> Write:
    """A function that checks an observation of `agent` and writes it into `target`: a view of the agent's place in the
    row, or a dict of such views by key. It raises WorldError if form or kind of number is not as the space says."""
    match space:
        case spaces.Box() if pictures.changes(space):
            whole = np.zeros(space.shape, np.uint8)
            return _picture_writer(
                _array_writer(space.shape, space.dtype, None, whole, agent, what), whole, target, pictures
            )
        case spaces.Box():
            return _array_writer(space.shape, space.dtype, None, target, agent, what)
        case spaces.Discrete():
            return _integer_writer(space, target, agent, what)
        case spaces.MultiDiscrete():
            start = np.asarray(space.start)
            return _array_writer(space.shape, space.dtype, start if start.any() else None, target, agent, what)
        case spaces.MultiBinary():
            return _array_writer(space.shape, np.dtype(np.int8), None, target, agent, what)
        case spaces.Dict() | spaces.Tuple():
            return _parts_writer(space, target, agent, what, pictures)
    raise UserError(f"agent '{agent}': {what} of {_kind(space)} cannot be used")


def decoder(space: Foreign) -> Decode:
    """A function from a role's actions to one action an agent, as the world's own space has them."""
    match space:
        case spaces.Discrete():
            start = int(space.start)
            return lambda a: [x + start for x in a.tolist()]
        case spaces.MultiDiscrete():
            return _whole_decoder(space.shape, np.dtype(space.dtype), np.asarray(space.start))
        case spaces.MultiBinary():
            return _whole_decoder(space.shape, np.dtype(space.dtype), None)
        case spaces.Box():
            return _box_decoder(space)
        case spaces.Tuple():
            starts = [int(part.start) for _, part in _parts(space)]
            return lambda a: [tuple(x + s for x, s in zip(row, starts, strict=True)) for row in a.tolist()]
        case spaces.Dict():
            named = [(key, int(part.start)) for key, part in _parts(space)]
            return lambda a: [{k: x + s for x, (k, s) in zip(row, named, strict=True)} for row in a.tolist()]
    raise UserError(f"actions of {_kind(space)} cannot be used")


def place(tree: Any, index: int) -> Any:
    """The views of one agent in an array `[n, ...]`, or in a dict of them."""
    return {key: place(part, index) for key, part in tree.items()} if isinstance(tree, dict) else tree[index, ...]


def fill(tree: Any, value: float) -> None:
    """Set every array of a tree of views to one value."""
    if isinstance(tree, dict):
        for part in tree.values():
            fill(part, value)
    else:
        tree[...] = value


def _parts(space: spaces.Dict | spaces.Tuple) -> list[tuple[str, Any]]:
    if isinstance(space, spaces.Dict):
        return [(str(key), part) for key, part in space.spaces.items()]
    return [(str(index), part) for index, part in enumerate(space.spaces)]


def _kind(space: object) -> str:
    return f"space {type(space).__name__}"


def _shape(space: Foreign) -> tuple[int, ...]:
    return tuple(int(n) for n in space.shape or ())


def _bounds(space: spaces.Box) -> tuple[float | None, float | None]:
    """The bounds that all elements have, None where they differ."""
    low, high = np.unique(space.low), np.unique(space.high)
    return (float(low[0]), float(high[0])) if low.size == high.size == 1 else (None, None)


def _box(space: spaces.Box) -> Box:
    low, high = _bounds(space)
    if space.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return Box(_shape(space), 0.0, 255.0, "uint8")
    return Box(_shape(space), -math.inf if low is None else low, math.inf if high is None else high)


def _scaled(space: spaces.Box) -> Box:
    """For a Box whose bounds differ from element to element: scaled if all are finite, else drawn without bounds and
    clipped."""
    return Box(_shape(space), -1.0, 1.0) if _is_finite(space) else Box(_shape(space))


def _is_finite(space: spaces.Box) -> bool:
    return bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


def _box_decoder(space: spaces.Box) -> Decode:
    low, high, dtype = space.low, space.high, np.dtype(space.dtype)
    whole = np.issubdtype(dtype, np.integer)

    def clipped(given: NDArray[Any]) -> list[Any]:
        if whole:
            given = np.rint(given)
        return list(np.clip(given, low, high).astype(dtype))  # a copy: the given array is written over later

    if None not in _bounds(space) or not _is_finite(space):
        return clipped
    middle, half = (high.astype(np.float64) + low) / 2, (high.astype(np.float64) - low) / 2
    return lambda given: clipped(middle + half * given)


def _whole_decoder(shape: tuple[int, ...], dtype: np.dtype[Any], start: NDArray[Any] | None) -> Decode:
    def decode(given: NDArray[Any]) -> list[Any]:
        actions = given.astype(dtype).reshape(len(given), *shape)
        return list(actions if start is None else actions + start)

    return decode


_KINDS = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}  # numpy's letters: what an array of each kind may be given


def _array_writer(
    shape: tuple[int, ...], dtype: Any, start: NDArray[Any] | None, target: NDArray[Any], agent: str, what: str
) -> Write:
    expected = np.dtype(dtype)
    kinds = _KINDS.get(expected.kind, expected.kind)
    view = target.reshape(shape)  # flattened in the row where the world's own array has several axes of integers
    assert np.shares_memory(view, target) or not target.size

    def write(given: Any) -> None:
        if given.__class__ is not np.ndarray:
            given = _as_array(given, shape, expected, agent, what)
        if given.shape != shape:
            raise WorldError(f"agent '{agent}': {what} has shape {given.shape}, expected {shape}")
        if given.dtype is not expected and given.dtype.kind not in kinds:
            raise WorldError(f"agent '{agent}': {what} has dtype {given.dtype}, expected {expected}")
        view[...] = given if start is None else given - start

    return write


def _as_array(given: Any, shape: tuple[int, ...], expected: np.dtype[Any], agent: str, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except ValueError:  # a ragged sequence
        array = np.asarray(None)
    if given is None or array.dtype.kind not in "fiub":
        raise WorldError(f"agent '{agent}': {what} is {_shown(given)}, expected an array {shape} of {expected}")
    return array


def _integer_writer(space: spaces.Discrete[Any], target: NDArray[Any], agent: str, what: str) -> Write:
    start, n = int(space.start), int(space.n)

    def write(given: Any) -> None:
        try:
            value = operator.index(given) - start
        except TypeError:
            value = -1
        if not 0 <= value < n:
            last = start + n - 1
            raise WorldError(f"agent '{agent}': {what} is {_shown(given)}, expected an integer from {start} to {last}")
        target[...] = value

    return write


def _picture_writer(check: Write, whole: NDArray[np.uint8], target: NDArray[Any], pictures: Pictures) -> Write:
    shrunk = pictures.shrink(whole.shape)

    def write(given: Any) -> None:
        check(given)  # into `whole`
        target[...] = shrunk(whole)

    return write


def _parts_writer(
    space: spaces.Dict | spaces.Tuple, target: dict[str, Any], agent: str, what: str, pictures: Pictures
) -> Write:
    named = isinstance(space, spaces.Dict)
    keys: list[Any] = list(space.spaces) if isinstance(space, spaces.Dict) else list(range(len(space.spaces)))
    parts = [
        (key, writer(space[key], target[str(key)], agent, f"{what}[{key!r}]", pictures))  # its own writer for each key
        for key in keys
    ]

    def write(given: Any) -> None:
        try:
            for key, put in parts:
                put(given[key])
        except (KeyError, IndexError, TypeError) as error:
            expected = f"a dict with the keys {', '.join(map(str, keys))}" if named else f"a tuple of {len(keys)}"
            raise WorldError(f"agent '{agent}': {what} is {_shown(given)}, expected {expected}") from error

    return write


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
