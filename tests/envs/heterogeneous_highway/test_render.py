"""Pictures of the road."""

from __future__ import annotations

import jax
import numpy as np

from marl.envs.heterogeneous_highway.env import HeterogeneousHighway
from marl.envs.heterogeneous_highway.render import COLOURS, PICTURE_WIDTH


def test_picture_shows_every_kind_of_vehicle_and_is_the_same_size_all_along():
    env = HeterogeneousHighway(scenario="chaotic")
    params = env.default_params
    state, _ = env.reset(jax.random.key(3), params)
    picture = env.render(state, params)
    height, width, depth = picture.shape
    assert (width, depth, picture.dtype) == (PICTURE_WIDTH, 3, np.uint8)
    assert height % 2 == 0  # video encoders want even sizes
    for colour in COLOURS.values():
        road = picture[30:, 140:]
        assert (road == np.asarray(colour)).all(-1).sum() > 50
    moved = state.replace(x=state.x + 800.0 * np.arange(55) / 55)
    assert env.render(moved, params).shape == picture.shape


def test_a_crash_is_marked():
    env = HeterogeneousHighway()
    params = env.default_params
    state, _ = env.reset(jax.random.key(0), params)
    before = env.render(state, params)
    after = env.render(state.replace(crashed=state.crashed.at[0].set(True)), params)
    assert (before != after).any(-1).sum() > 60
