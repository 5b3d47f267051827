"""The worlds that people use, through the adapters: the same as when they are driven as their makers say."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from marl.core.host_rows import RowBlock, RowSpec
from marl.interop import worlds
from marl.interop.host_spaces import MASK, decoder
from marl.interop.random_play import play, random_actions
from marl.interop.worlds import make_world

# By module: a package that it needs beside PettingZoo, options that keep it short, roles with their sizes.
WORLDS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "mpe2.simple_spread_v3": ("mpe2", {}, {"agent": 3}),
    "mpe2.simple_adversary_v3": ("mpe2", {}, {"adversary": 1, "agent": 2}),
    "mpe2.simple_crypto_v3": ("mpe2", {}, {"eve": 1, "alice_bob": 2}),
    "classic.tictactoe_v3": ("pygame", {}, {"player": 2}),
    "classic.connect_four_v3": ("pygame", {}, {"player": 2}),
    "classic.leduc_holdem_v4": ("rlcard", {}, {"player": 2}),
    "sisl.multiwalker_v9": ("Box2D", {"max_cycles": 40}, {"walker": 3}),
    "sisl.pursuit_v5": ("scipy", {"max_cycles": 10}, {"pursuer": 8}),
    "sisl.waterworld_v4": ("pettingzoo.sisl.waterworld", {"max_cycles": 20}, {"pursuer": 2}),
    "butterfly.pistonball_v6": ("pymunk", {"max_cycles": 5, "n_pistons": 4}, {"piston": 4}),
    "butterfly.knights_archers_zombies_v11": ("pymunk", {"max_cycles": 120}, {"archer_knight": 4}),
}


def needs(module: str) -> None:
    """Skip where a world's package is not installed."""
    if importlib.util.find_spec(module) is None:
        why = "PettingZoo 1.26 dropped it: pip install pettingzoo==1.25.0 'pymunk<7'" if "waterworld" in module else ""
        pytest.skip(why or f"needs {module}: scripts/test --all, or pip install -e '.[worlds]'")


@pytest.mark.parametrize("name", WORLDS)
def test_a_released_world_is_the_same_through_the_adapter(name: str) -> None:
    """Observations, rewards and ends of two whole episodes, by the same seeds and actions."""
    package, options, roles = WORLDS[name]
    needs(package)
    world: Any = make_world(f"pettingzoo:{name}", options)
    assert {role.name: role.size for role in world.roles} == roles
    env, _ = worlds.raw(f"pettingzoo:{name}", options)
    block = RowBlock(RowSpec.of(world), 1)
    row, action = block.host_row(0), block.lane_actions(0)
    random = np.random.default_rng(0)
    for seed in (3, 4):
        world.reset(seed, row)
        ours: dict[str, float] = dict.fromkeys(world.cast.place, 0.0)
        given: list[dict[str, Any]] = []
        last, observed = False, []
        while not last:
            observed.append(_observed(world, row))
            random_actions(world, row, random, action)
            given.append({role: array.copy() for role, array in action.items()})
            last = world.step(action, row)
            for agent, (role, at) in world.cast.place.items():
                ours[agent] += float(row.reward[role][at])
        raw = _turns if world.turn_based else _at_once
        theirs = raw(env, world, seed, given, observed if "archer" not in str(roles) else [])
        for agent, value in theirs.items():
            assert ours[agent] == pytest.approx(value, rel=1e-5, abs=1e-5), agent


def _observed(world: Any, row: Any) -> dict[str, Any]:
    """Flat observations of the agents that are there."""
    return {
        agent: np.asarray(row.obs[role][at], np.float64).ravel()
        for agent, (role, at) in world.cast.place.items()
        if row.alive[role][at]
    }


def _own(world: Any, agent: str, given: dict[str, Any]) -> Any:
    """The action of an agent as its world wants it."""
    role, at = world.cast.place[agent]
    return decoder(world.cast.action_spaces[agent])(given[role])[at]


def _same(seen: Any, ours: Any) -> None:
    plain = seen["observation"] if isinstance(seen, dict) and MASK in seen else seen
    np.testing.assert_allclose(np.asarray(plain, np.float64).ravel(), ours, rtol=1e-6)


def _at_once(env: Any, world: Any, seed: int, given: list[Any], observed: list[Any]) -> dict[str, float]:
    total = dict.fromkeys(env.possible_agents, 0.0)
    observations, _ = env.reset(seed=seed)
    for t, actions in enumerate(given):
        for agent, ours in (observed[t] if observed else {}).items():
            _same(observations[agent], ours)
        observations, rewards, *_ = env.step({agent: _own(world, agent, actions) for agent in env.agents})
        for agent, reward in rewards.items():
            total[agent] += reward
    assert not env.agents, "the episode has as many steps as through the adapter"
    return total


def _turns(env: Any, world: Any, seed: int, given: list[Any], observed: list[Any]) -> dict[str, float]:
    total = dict.fromkeys(env.possible_agents, 0.0)
    env.reset(seed=seed)
    turn = 0
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, _ = env.last()
        total[agent] += reward
        if terminated or truncated:
            env.step(None)
            continue
        _same(observation, observed[turn][agent])
        env.step(_own(world, agent, given[turn]))
        turn += 1
    assert turn == len(given)
    return total


@pytest.mark.filterwarnings("ignore:The system font")
@pytest.mark.parametrize("name", WORLDS)
def test_a_released_world_draws_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, options, _ = WORLDS[name]
    needs(package)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    world = make_world(f"pettingzoo:{name}", options, render=True)
    world.reset(0, RowBlock(RowSpec.of(world), 1).host_row(0))
    picture = world.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.std() > 0


def test_a_game_of_atari_is_grey_frames_in_a_stack() -> None:
    needs("ale_py")
    world = make_world("gymnasium:ALE/Pong-v5", {"max_steps": 40, "frame_stack": 3, "size": 42})
    (role,) = world.roles
    assert role.observation_space.shape == (42, 42, 3)  # type: ignore[union-attr]
    assert world.max_steps == 40
    assert list(play(world, 0, episodes=2, limit=40)) == []
    block = RowBlock(RowSpec.of(world), 1)
    row, action = block.host_row(0), block.lane_actions(0)
    frames = []
    for seed in (5, 6, 5):  # actions stick at random: the seed says when
        world.reset(seed, row)
        for step in range(30):
            action["agent"][:] = 2 + step // 3 % 2
            world.step(action, row)
        frames.append(row.obs["agent"].copy())
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])


def test_a_game_of_atari_can_be_had_as_it_is() -> None:
    needs("ale_py")
    world = make_world("gymnasium:ALE/Pong-v5", {"preprocessing": "none", "obs_type": "ram"})
    assert world.roles[0].observation_space.shape == (128,)  # type: ignore[union-attr]
