"""Our spaces as Gymnasium's, and actions from outside checked against them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from marl.core.errors import UserError
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete, ObservationSpace, Space


class ActionError(UserError, ValueError):
    """An action that its space does not hold: names the agent, what was given and what was expected."""


def to_gymnasium(space: ObservationSpace) -> gymnasium.spaces.Space[Any]:
    """The Gymnasium space that holds the same values. Raises: TypeError for anything but the spaces of `core`."""
    match space:
        case Box():
            return gymnasium.spaces.Box(space.low, space.high, space.shape, np.dtype(space.dtype).type)
        case Discrete():
            return gymnasium.spaces.Discrete(space.n)
        case MultiDiscrete():
            return gymnasium.spaces.MultiDiscrete(np.asarray(space.nvec, np.int64), dtype=np.int32)
        case Dict():
            return gymnasium.spaces.Dict({key: to_gymnasium(part) for key, part in space.items})
    raise TypeError(f"{space!r} is not a space of marl.core.spaces")


def to_action(space: Space, action: object, agent: str) -> NDArray[Any]:
    """`action` as an array of the space's shape and dtype. Python numbers, sequences and NumPy arrays are taken.

    Raises: ActionError if the shape, the kind of number or a value does not fit.
    """
    try:
        given = np.asarray(action)
    except ValueError:  # a ragged sequence
        given = np.asarray(None)
    if given.shape == (1,) and space.shape == ():
        given = given[0]
    whole = np.issubdtype(given.dtype, np.integer)
    fits = given.shape == space.shape
    match space:
        case Box():
            fits = fits and (whole or np.issubdtype(given.dtype, np.floating))
            if fits:  # in the space's own dtype, so that a bound that went through Python's floats is still one
                given = given.astype(space.dtype)
                fits = bool(np.all((given >= space.low) & (given <= space.high) & np.isfinite(given)))
            expected = f"numbers of shape {space.shape} within [{space.low:g}, {space.high:g}]"
        case Discrete():
            fits = fits and whole and bool(0 <= given < space.n)
            expected = f"an integer from 0 to {space.n - 1}"
        case MultiDiscrete():
            fits = fits and whole and bool(np.all((given >= 0) & (given < np.asarray(space.nvec))))
            expected = f"{len(space.nvec)} integers, each from 0 to below {list(space.nvec)}"
    if not fits:
        shown = repr(action) if len(repr(action)) <= 80 else repr(action)[:77] + "..."
        raise ActionError(f"agent '{agent}': action {shown} does not fit, expected {expected}")
    return np.asarray(given, np.dtype(space.dtype))
