"""Worlds as PettingZoo sees them: its own API tests, whole episodes, and every message a user can meet."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test

import marl.envs
from marl.core.errors import UserError
from marl.interop.pettingzoo import ParallelEnv

WORLDS = sorted(name for name in marl.envs.REGISTRY.names())

# What PettingZoo's test says about observations that are tiny, unbounded or zero on purpose, and roles that differ.
EXPECTED_WARNINGS = (
    "ignore:Agent's (minimum|maximum) observation space value is",
    "ignore:Observation is a single number",
    "ignore:Observation numpy array is all zeros",
    "ignore:Observations are different shapes",
    "ignore:Agents have different observation space sizes",
    "ignore:The observation contains negative numbers",
)


def world(name: str) -> marl.envs.World:
    found: marl.envs.World = getattr(marl.envs, name)
    return found


def play(env: ParallelEnv, seed: int | None, choose: int = 0) -> list[Any]:
    """Everything one episode of random allowed actions gives back. choose: seed of the actions."""
    random = np.random.default_rng(choose)
    observations, infos = env.reset(seed=seed)
    seen: list[Any] = [(observations, infos)]
    while env.agents:
        actions = {}
        for agent in env.agents:
            space = env.action_space(agent)
            assert isinstance(space, gymnasium.spaces.Discrete)
            mask = seen[-1][-1][agent].get("action_mask", np.ones(space.n))
            actions[agent] = int(random.choice(np.flatnonzero(mask)))
        seen.append(env.step(actions))
    return seen


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.env
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.filterwarnings(*EXPECTED_WARNINGS)
def test_pettingzoo_accepts_every_world_in_both_forms(name: str) -> None:
    parallel_api_test(world(name).parallel_env(render_mode="rgb_array"), num_cycles=60)
    api_test(world(name).env(render_mode="rgb_array"), num_cycles=60)


@pytest.mark.env
@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_fixes_whole_episodes_and_what_follows_them(name: str) -> None:
    one, other = world(name).parallel_env(), world(name).parallel_env()
    assert_same(play(one, 7), play(other, 7))
    assert_same(play(one, None, 1), play(other, None, 1))
    assert_same(play(one, 7), play(other, 7))


def test_other_seeds_and_later_episodes_differ() -> None:
    env = world("cartpole_v0").parallel_env()
    starts = [env.reset(seed=seed)[0]["cart_0"].tolist() for seed in (0, 1, None, None)]
    assert len({tuple(start) for start in starts}) == 4


def test_two_environments_without_a_seed_differ() -> None:
    starts = [world("cartpole_v0").parallel_env().reset()[0]["cart_0"].tolist() for _ in range(2)]
    assert starts[0] != starts[1]


def test_agents_are_named_by_role_and_place() -> None:
    env = world("probe_roles_v0").parallel_env()
    assert env.possible_agents == ["leader_0", "follower_0", "follower_1"]
    assert env.agents == []
    assert env.observation_space("leader_0").shape == (2,)
    assert env.action_space("follower_1").n == 3
    assert env.action_space("follower_1") is env.action_space("follower_1")
    assert env.metadata["name"] == str(env) == "probe_roles_v0"
    assert env.metadata["is_parallelizable"]


def test_the_list_of_agents_shrinks_when_one_leaves_early() -> None:
    env = world("probe_truncation_v0").parallel_env(steps=4, leave=2)
    env.reset(seed=0)
    seen = []
    while env.agents:
        observations, rewards, terminated, truncated, infos = env.step(dict.fromkeys(env.agents, 0))
        assert observations.keys() == rewards.keys() == terminated.keys() == truncated.keys() == infos.keys()
        seen.append((sorted(rewards), truncated.get("agent_1"), list(env.agents)))
    assert seen == [
        (["agent_0", "agent_1"], False, ["agent_0", "agent_1"]),
        (["agent_0", "agent_1"], True, ["agent_0"]),
        (["agent_0"], None, ["agent_0"]),
        (["agent_0"], None, []),
    ]


def test_masks_and_named_numbers_are_in_the_infos() -> None:
    env = world("probe_memory_v0").parallel_env(delay=1)
    _, infos = env.reset(seed=0)
    assert infos["agent_0"]["action_mask"].tolist() == [1, 0, 0]
    assert infos["agent_0"]["action_mask"].dtype == np.int8
    _, _, _, _, infos = env.step({"agent_0": env.action_space("agent_0").sample(infos["agent_0"]["action_mask"])})
    assert infos["agent_0"]["action_mask"].tolist() == [0, 1, 1]
    assert infos["agent_0"]["reward/agent/recall"] == 0.0


def test_the_adapter_plays_the_pure_world() -> None:
    env = world("cartpole_v0").parallel_env()
    raw = world("cartpole_v0").raw()
    key, own = jax.random.split(jax.random.key(3))
    state, row = raw.reset(own, raw.default_params)
    observations, _ = env.reset(seed=3)
    np.testing.assert_allclose(observations["cart_0"], row.obs["cart"][0], rtol=1e-6)
    _, own = jax.random.split(key)
    _, row = raw.step(own, state, {"cart": np.asarray([1], np.int32)}, raw.default_params)
    observations, rewards, *_ = env.step({"cart_0": 1})
    np.testing.assert_allclose(observations["cart_0"], row.obs["cart"][0], rtol=1e-5)
    assert rewards == {"cart_0": 1.0}


def test_state_is_the_global_state() -> None:
    env = world("probe_coordination_v0").parallel_env()
    with pytest.raises(UserError, match="has not been reset"):
        env.state()
    observations, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.state(), [observations["agent_0"][0], observations["agent_1"][0]])
    assert env.state_space.contains(env.state())
    without = world("probe_value_v0").parallel_env()
    without.reset(seed=0)
    with pytest.raises(UserError, match="has no global state"):
        without.state()


def test_parameters_can_be_changed_for_one_episode() -> None:
    env = world("probe_value_v0").parallel_env()

    def paid(options: dict[str, Any] | None) -> float:
        env.reset(seed=0, options=options)
        return env.step({"agent_0": 0})[1]["agent_0"]

    assert paid({"params": {"prize": 3}}) == 3.0
    assert paid(None) == 1.0
    with pytest.raises(UserError, match="unknown parameter 'price'; did you mean 'prize'"):
        env.reset(options={"params": {"price": 3.0}})
    with pytest.raises(UserError, match="expected numbers of shape"):
        env.reset(options={"params": {"prize": [1.0, 2.0]}})
    with pytest.raises(UserError, match="expected a mapping"):
        env.reset(options={"params": 3.0})


def test_pictures_need_a_render_mode_and_a_reset() -> None:
    with pytest.raises(UserError, match="expected 'rgb_array' or None"):
        world("cartpole_v0").parallel_env(render_mode="human")
    with pytest.raises(UserError, match="render_mode='rgb_array'"):
        world("cartpole_v0").parallel_env().render()
    env = world("cartpole_v0").parallel_env(render_mode="rgb_array")
    with pytest.raises(UserError, match="has not been reset"):
        env.render()
    env.reset(seed=0)
    picture = env.render()
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    env.close()


def test_step_says_what_is_wrong_with_the_actions() -> None:
    env = world("probe_roles_v0").parallel_env()
    with pytest.raises(UserError, match="call reset before step"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(UserError, match="agent 'follower_0' is alive and has no action"):
        env.step({"leader_0": 0})
    with pytest.raises(UserError, match="unknown agent 'folower_0'; did you mean 'follower_0'"):
        env.step({"folower_0": 0})
    with pytest.raises(ValueError, match=r"agent 'follower_1': action 3 does not fit, expected an integer from 0 to 2"):
        env.step({"leader_0": 0, "follower_0": 0, "follower_1": 3})
    env.step({"leader_0": np.int64(0), "follower_0": np.asarray(2), "follower_1": 0})
    with pytest.raises(UserError, match="call reset before step"):
        env.step({"leader_0": 0})


@pytest.mark.parametrize("seed", [-1, 2**32, "zero", 1.5])
def test_a_seed_that_does_not_fit_is_refused(seed: Any) -> None:
    with pytest.raises(UserError, match="expected an integer from 0"):
        world("probe_value_v0").parallel_env().reset(seed=seed)


def test_options_that_do_not_fit_are_explained() -> None:
    with pytest.raises(UserError, match="probe_truncation_v0: unknown option 'step'; did you mean 'steps'"):
        world("probe_truncation_v0").parallel_env(step=4)
    with pytest.raises(UserError, match="option 'steps' is 0: Input should be greater than or equal to 2"):
        world("probe_truncation_v0").env(steps=0)
    with pytest.raises(UserError, match="leave must be smaller than steps"):
        world("probe_truncation_v0").parallel_env(leave=8)


def test_making_an_environment_again_compiles_nothing() -> None:
    one, other = (world("probe_credit_v0").parallel_env() for _ in range(2))
    assert one.world is other.world
    assert one._step is other._step
    assert world("probe_memory_v0").parallel_env(delay=2).world is not world("probe_memory_v0").parallel_env().world


def test_a_row_of_results_belongs_to_the_user() -> None:
    env = world("cartpole_v0").parallel_env()
    observations, _ = env.reset(seed=0)
    before = observations["cart_0"].copy()
    observations["cart_0"][:] = 9.0
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again["cart_0"], before)


def test_every_registered_world_is_an_attribute_of_the_package() -> None:
    from marl.envs import cartpole_v0

    assert repr(cartpole_v0) == "<world cartpole_v0>"
    assert set(WORLDS) <= set(dir(marl.envs))
    assert cartpole_v0.raw.__name__ == "CartPole"


def test_a_mistyped_world_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="has no world 'cartpol_v0'; did you mean 'cartpole_v0'"):
        marl.envs.cartpol_v0  # noqa: B018
    with pytest.raises(ImportError):
        from marl.envs import cartpol_v0  # noqa: F401


def test_naming_worlds_imports_neither_jax_nor_pettingzoo() -> None:
    program = (
        "import sys; from marl.envs import cartpole_v0; import marl.envs; dir(marl.envs); repr(cartpole_v0);"
        "print([m for m in ('jax', 'pettingzoo', 'gymnasium', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
