"""Values in units of the returns' running mean and deviation (PopArt, van Hasselt et al. 2016).

Moments have the shape `[G, K]` of the critic's groups and outputs; values are `[G, T, L, K]`.
"""

from __future__ import annotations

from typing import Any

from marl.core.stats import RunningMoments
from marl.core.types import Array, Tree


def normalise(moments: RunningMoments, value: Array) -> Array:
    """(v - mean) / std."""
    return (value - moments.mean[:, None, None]) / moments.std[:, None, None]


def denormalise(moments: RunningMoments, value: Array) -> Array:
    """v * std + mean."""
    return value * moments.std[:, None, None] + moments.mean[:, None, None]


def rescale_head(params: Tree, old: RunningMoments, new: RunningMoments) -> Tree:
    """Parameters of a critic whose denormalised outputs under `new` are those of `params` under `old`."""
    head: dict[str, Any] = params["head"]
    scale = old.std / new.std
    bias = head["bias"] * scale + (old.mean - new.mean) / new.std
    return {**params, "head": {**head, "kernel": head["kernel"] * scale[:, None, :], "bias": bias}}
