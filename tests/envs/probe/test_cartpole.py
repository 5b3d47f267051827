"""Our CartPole and Gymnasium's, step by step from the same states."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.envs.probe.cartpole import CartPole, CartPoleParams, CartPoleState, advance

CONSTANTS = {"gravity_mps2": 9.8, "cart_kg": 1.0, "pole_kg": 0.1, "half_pole_m": 0.5, "force_n": 10.0}


def peer_transitions(seed: int, controlled: bool) -> list[tuple[Any, int, Any, float, bool, bool]]:
    """An episode of the peer: (motion, action, next motion, reward, terminated, truncated), motions in float64.

    controlled: by a rule that keeps the pole up, else at random.
    """
    peer = gymnasium.make("CartPole-v1")
    random = np.random.default_rng(seed)
    peer.reset(seed=seed)
    seen, over = [], False
    while not over:
        motion = np.asarray(peer.unwrapped.state, np.float64)  # type: ignore[attr-defined]
        rule = motion @ [0.1, 0.3, 1.0, 0.5] > 0
        action = int(rule) if controlled else int(random.integers(2))
        _, reward, terminated, truncated, _ = peer.step(action)
        after = np.asarray(peer.unwrapped.state, np.float64)  # type: ignore[attr-defined]
        seen.append((motion, action, after, float(reward), terminated, truncated))
        over = terminated or truncated
    return seen


@pytest.fixture(scope="module")
def peer() -> list[tuple[Any, int, Any, float, bool, bool]]:
    """Ten random episodes, which fall, and one that lasts to the end."""
    return [row for seed in range(10) for row in peer_transitions(seed, False)] + peer_transitions(0, True)


def test_motion_is_the_peers_to_1e_5_in_float32(peer: Any) -> None:
    before = np.stack([row[0] for row in peer]).astype(np.float32)
    action = np.asarray([row[1] for row in peer], np.int32)
    ours = jax.jit(jax.vmap(advance, in_axes=(0, 0, None)))(before, action, CartPole().default_params)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, np.stack([row[2] for row in peer]), rtol=0, atol=1e-5)


def test_motion_is_the_peers_to_1e_9_in_float64(peer: Any) -> None:
    with jax.enable_x64(True):
        params = CartPoleParams(**{name: jnp.asarray(value, jnp.float64) for name, value in CONSTANTS.items()})
        before = jnp.asarray(np.stack([row[0] for row in peer]))
        action = jnp.asarray([row[1] for row in peer], jnp.int32)
        ours = jax.jit(jax.vmap(advance, in_axes=(0, 0, None)))(before, action, params)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, np.stack([row[2] for row in peer]), rtol=0, atol=1e-9)


def test_rewards_and_ends_are_the_peers(peer: Any) -> None:
    env = CartPole()
    length, t = [], 0
    for row in peer:  # steps made before each transition
        length.append(t)
        t = 0 if row[4] or row[5] else t + 1
    state = CartPoleState(motion=np.stack([row[0] for row in peer]).astype(np.float32), t=np.asarray(length, np.int32))
    actions = {"cart": np.asarray([[row[1]] for row in peer], np.int32)}
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0, 0, None)))
    _, ours = step(jax.random.key(0), state, actions, env.default_params)
    assert ours.reward["cart"][:, 0].tolist() == [row[3] for row in peer]
    assert ours.terminated["cart"][:, 0].tolist() == [row[4] for row in peer]
    assert ours.truncated["cart"][:, 0].tolist() == [row[5] for row in peer]
    assert peer[-1][5], "the controlled episode is meant to last to the end"
    assert sum(row[4] for row in peer) == 10


def test_the_constants_are_the_peers() -> None:
    peer: Any = gymnasium.make("CartPole-v1").unwrapped
    wanted = (peer.gravity, peer.masscart, peer.masspole, peer.length, peer.force_mag)
    ours = dataclasses.astuple(CartPole().default_params)
    np.testing.assert_allclose([float(x) for x in ours], wanted, rtol=1e-7)
    spec = gymnasium.spec("CartPole-v1")
    assert CartPole().max_steps == spec.max_episode_steps


def test_first_states_are_uniform_in_the_peers_range() -> None:
    env = CartPole()
    keys = jax.random.split(jax.random.key(0), 4096)
    state, row = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, env.default_params)
    motion = np.asarray(state.motion)
    np.testing.assert_array_equal(motion, row.obs["cart"][:, 0])
    assert (np.abs(motion) <= 0.05).all()
    # A mean over 4096 draws has a deviation of 0.05 / sqrt(3 * 4096) = 4.5e-4.
    np.testing.assert_allclose(motion.mean(0), 0.0, atol=2.3e-3)
    np.testing.assert_allclose(motion.std(0), 0.05 / np.sqrt(3.0), rtol=0.03)
    assert np.abs(np.corrcoef(motion.T) - np.eye(4)).max() < 0.08


def test_the_picture_shows_the_cart_where_it_is() -> None:
    env = CartPole()
    for x in (-1.2, 0.0, 1.2):
        state = CartPoleState(motion=np.asarray([x, 0, 0, 0], np.float32), t=np.asarray(0, np.int32))
        dark = np.argwhere((env.render(state, env.default_params) == (40, 44, 52)).all(-1))
        assert dark[:, 1].mean() == pytest.approx(220 + 200 * x / 2.4, abs=1.0)
