"""What every adapter needs to write a row: numbers that are numbers, and the agents' places."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl.core.errors import WorldError

PLAIN = frozenset({float, int, np.float64, np.float32, np.int64, np.int32, bool, np.bool_})


def number(given: Any, agent: str) -> float:
    """A reward as a float, whatever it is written as. Raises: WorldError for None, text, arrays of several."""
    try:
        if given is not None and np.ndim(given) == 0:
            return float(given)
    except (TypeError, ValueError):
        pass
    raise WorldError(f"agent '{agent}': reward is {given!r}, expected a number")


def write_mask(target: Any, mask: Any, agent: str) -> None:
    """An action mask into its place `[n_actions]`. Raises: WorldError if it has another length or no mask at all."""
    given = np.asarray(mask)
    if given.shape != target.shape or given.dtype.kind not in "biuf":
        shown = "None" if mask is None else f"of shape {given.shape} and dtype {given.dtype}"
        raise WorldError(f"agent '{agent}': action_mask is {shown}, expected {target.shape[0]} zeros and ones")
    target[...] = given
    if not target.any():
        raise WorldError(f"agent '{agent}': action_mask allows no action, expected one that is allowed")


def unpacked(outcome: Any, size: int, call: str, expected: str) -> Any:
    """A tuple of the length that a call must return. Raises: WorldError if it is none."""
    if not isinstance(outcome, tuple) or len(outcome) != size:
        shown = f"a tuple of {len(outcome)}" if isinstance(outcome, tuple) else type(outcome).__name__
        raise WorldError(f"{call} returned {shown}, expected {expected}")
    return outcome


def limit_of(own: int | None, option: int | None) -> int | None:
    """The longest episode: what the world says, or what was asked for if that is shorter."""
    known = [steps for steps in (own, option) if steps is not None]
    return min(known) if known else None
