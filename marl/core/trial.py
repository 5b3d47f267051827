"""A world put on trial: a few episodes played at random, made once for all the checks of `core.conformance`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marl.core.env import AnyEnvironment
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete, ObservationSpace, Space
from marl.core.types import ByRole, RoleSpec, TimeStep, Tree

MAX_ROWS = 1000  # an episode of a world without max_steps is watched for so many rows
TOLERANCE = 1e-4  # between two compiled forms of one function, absolute or relative


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode: T+1 rows (leaves in NumPy) with the T actions between them, and the world state behind every row."""

    rows: list[TimeStep]
    actions: list[ByRole]
    states: list[Tree]


class Trial:
    """A world under test, with what several checks need, each made once and when first asked for."""

    def __init__(self, env: AnyEnvironment, episodes: int, seed: int) -> None:
        self.env = env
        self.count = episodes
        self.seed = seed
        self.reset = jax.jit(env.reset)
        self.step = jax.jit(env.step)

    @functools.cached_property
    def roles(self) -> tuple[RoleSpec, ...]:
        return self.env.roles

    @functools.cached_property
    def params(self) -> Tree:
        return self.env.default_params

    @functools.cached_property
    def episodes(self) -> list[Episode]:
        return [self.play(self.seed + index) for index in range(self.count)]

    @property
    def rows(self) -> Iterator[tuple[str, TimeStep]]:
        """Every row of every episode with the words that name it."""
        for index, episode in enumerate(self.episodes):
            for t, row in enumerate(episode.rows):
                yield f"episode {index} row {t}", row

    @property
    def transitions(self) -> Iterator[tuple[str, TimeStep, TimeStep]]:
        """Every two rows that follow each other, with the words that name the second."""
        for index, episode in enumerate(self.episodes):
            for t in range(1, len(episode.rows)):
                yield f"episode {index} row {t}", episode.rows[t - 1], episode.rows[t]

    def play(self, seed: int) -> Episode:
        """One episode by uniformly random allowed actions."""
        random = np.random.default_rng(seed)
        keys = jax.random.split(jax.random.key(seed), 2)
        state, row = self.reset(keys[0], self.params)
        episode = Episode([jax.device_get(row)], [], [state])
        limit = MAX_ROWS if self.env.max_steps is None else self.env.max_steps + 1
        for t in range(limit):
            if episode.rows[-1].last:
                break
            action = self.random_actions(episode.rows[-1], random)
            state, row = self.step(jax.random.fold_in(keys[1], t), state, action, self.params)
            episode.actions.append(action)
            episode.states.append(state)
            episode.rows.append(jax.device_get(row))
        return episode

    def random_actions(self, row: TimeStep, random: np.random.Generator) -> ByRole:
        """Actions for everybody, allowed ones where there is a mask."""
        return {role.name: _sample(role, (row.action_mask or {}).get(role.name), random) for role in self.roles}


def _sample(role: RoleSpec, mask: NDArray[np.bool_] | None, random: np.random.Generator) -> NDArray[Any]:
    space, shape = role.action_space, (role.size, *role.action_space.shape)
    match space:
        case Box():
            low, high = max(space.low, -1e3), min(space.high, 1e3)
            return np.asarray(random.uniform(low, high, shape), space.dtype)
        case Discrete():
            weights = np.ones((role.size, space.n)) if mask is None else np.asarray(mask, np.float64)
            # Where a mask allows nothing the check of masks says so; play goes on.
            weights = np.where(weights.sum(-1, keepdims=True) > 0, weights, 1.0)
            return np.asarray((weights * random.uniform(0.5, 1.0, weights.shape)).argmax(-1), np.int32)
        case MultiDiscrete():
            return np.asarray(random.integers(0, np.asarray(space.nvec), shape), np.int32)


def arrays(what: str, space: ObservationSpace, tree: Tree = None) -> Iterator[tuple[str, Space, Any]]:
    """Every array that a space asks for, with its name, its own space, and what `tree` has there (None if nothing)."""
    if not isinstance(space, Dict):
        yield what, space, tree
        return
    for key, part in space.items:
        yield from arrays(f"{what} '{key}'", part, tree.get(key) if isinstance(tree, dict) else None)


def leaves(tree: Tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differences(one: Tree, other: Tree, tolerance: float = TOLERANCE) -> Iterator[str]:
    """Paths of the leaves that differ: floats by more than `tolerance`, absolute or relative; everything else at
    all."""
    wanted, given = leaves(one), leaves(other)
    if wanted.keys() != given.keys():
        yield from sorted(wanted.keys() ^ given.keys())
        return
    for path, leaf in wanted.items():
        a, b = _plain(leaf), _plain(given[path])
        if np.issubdtype(a.dtype, np.floating) and tolerance:
            same = a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            same = np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating))
        if not same:
            yield path


def _plain(leaf: Any) -> NDArray[Any]:
    typed_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed_key else leaf)


def take(tree: Tree, index: int, axis: int) -> Tree:
    return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, index, axis, keepdims=False), tree)
