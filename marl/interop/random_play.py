"""Random play of host worlds through their rows. Importing this imports no JAX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.host import HostRow, HostWorld
from marl.core.host_rows import RowBlock, RowSpec
from marl.core.spaces import Box, Discrete, MultiDiscrete

WIDE = 10.0  # how far actions without bounds are drawn


def random_actions(world: HostWorld, row: HostRow, random: np.random.Generator, into: dict[str, NDArray[Any]]) -> None:
    """Uniform actions by role `[n, ...]`, of those that the masks allow."""
    for role in world.roles:
        for agent in range(role.size):
            match role.action_space:
                case Discrete(n=n) if role.name in row.action_mask:
                    into[role.name][agent] = random.choice(np.flatnonzero(row.action_mask[role.name][agent]))
                case Discrete(n=n):
                    into[role.name][agent] = random.integers(n)
                case MultiDiscrete(nvec=nvec):
                    into[role.name][agent] = random.integers(nvec)
                case Box(shape=shape, low=low, high=high):
                    into[role.name][agent] = random.uniform(max(low, -WIDE), min(high, WIDE), shape)


def play(world: HostWorld, seed: int, episodes: int = 2, limit: int = 1000) -> Iterator[str]:
    """Play episodes; in words, every number in their rows that is not finite. Raises: whatever the world raises."""
    block = RowBlock(RowSpec.of(world), 1)
    row, actions = block.host_row(0), block.lane_actions(0)
    random = np.random.default_rng(seed)
    for episode in range(episodes):
        world.reset(seed + episode, row)
        for step in range(limit):
            random_actions(world, row, random, actions)
            last = world.step(actions, row)
            for path, array in block.step.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    yield f"seed {seed + episode}, step {step + 1}: {'/'.join(path)} is not finite"
            if last:
                break
