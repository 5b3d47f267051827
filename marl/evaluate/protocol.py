"""The evaluation protocol: whole episodes on held-out seeds that every method meets alike.

Episode i of a stream (`validation` for choosing checkpoints, `test` for reporting) always starts from the same key,
whatever the training seed, the method or the number of episodes: so methods can be compared episode by episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.algorithm import Policy
from marl.core.collect import Lane, collect, init_lanes
from marl.core.env import AnyEnvironment
from marl.core.errors import UserError
from marl.core.prng import stream
from marl.core.types import EpisodeResult, Key, Tree

Stream: TypeAlias = Literal["validation", "test"]


def episode_keys(name: Stream, first: int, count: int) -> Key:
    """Keys of episodes `first` .. `first + count - 1` of a stream, `[count]`."""
    base = stream(0, "evaluation", name)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(first, first + count, dtype=jnp.uint32))


class Evaluator:
    """Plays whole episodes, one a lane, in one compiled call.

    env, policies: policies by name; together they play every role.  greedy: take the mode instead of sampling.
    Raises: UserError if the world has no limit on its episodes (`max_steps` None).
    """

    def __init__(self, env: AnyEnvironment, policies: Mapping[str, Policy], *, greedy: bool) -> None:
        if env.max_steps is None:
            raise UserError("this world has no max_steps, so evaluation cannot know when its episodes are over")
        self.env = env
        self.policies = dict(policies)
        self.greedy = greedy
        self._run = jax.jit(self._episodes)

    def _episodes(self, params: dict[str, Tree], keys: Key) -> EpisodeResult:
        assert self.env.max_steps is not None
        lanes = init_lanes(self.env, self.policies, params, keys, explore=not self.greedy)
        lanes, _ = collect(
            self.env, self.policies, params, lanes, self.env.max_steps, explore=not self.greedy, hold=True
        )
        return lanes.sums

    def run(self, params: Mapping[str, Tree], name: Stream, episodes: int, first: int = 0) -> EpisodeResult:
        """Results of `episodes` episodes, leaves numpy `[episodes, ...]`. params: by policy name, as published."""
        result = self._run(dict(params), episode_keys(name, first, episodes))
        return jax.tree.map(np.asarray, result)  # type: ignore[no-any-return]


class EpisodePlayer:
    """Plays one episode row by row, so that its world states can be drawn. Numbers equal those of `Evaluator`."""

    def __init__(self, env: AnyEnvironment, policies: Mapping[str, Policy], *, greedy: bool) -> None:
        self.env = env
        self.policies = dict(policies)
        explore = not greedy
        self._start = jax.jit(lambda params, keys: init_lanes(env, self.policies, params, keys, explore=explore))
        self._next = jax.jit(
            lambda params, lanes: collect(env, self.policies, params, lanes, 1, explore=explore, hold=True)[0]
        )

    def frames(self, params: Mapping[str, Tree], name: Stream, episode: int) -> tuple[list[Any], EpisodeResult]:
        """The frames of a held-out episode (first to last row) and its result."""
        lanes: Lane = self._start(dict(params), episode_keys(name, episode, 1))
        frames = [self._draw(lanes)]
        while not bool(lanes.step.last[0]):
            lanes = self._next(dict(params), lanes)
            frames.append(self._draw(lanes))
        return frames, jax.tree.map(lambda x: np.asarray(x)[0], lanes.sums)

    def _draw(self, lanes: Lane) -> Any:
        axis = self.env.lane_axis
        world = jax.tree.map(lambda x: jnp.take(x, 0, axis=axis), lanes.world)
        return self.env.render(world, self.env.default_params)
