"""The one actor loop: next-step reset, carry reset, committed actions, independence of lanes."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.scripted.policies import Random
from marl.core.collect import Lane, Rollout, collect, init_lanes
from marl.core.config import AgentConfig
from marl.core.types import ByRole, DataNeeds, Key, RoleSpec, TimeStep, Tree
from marl.envs.probe.cartpole import CartPole
from marl.envs.probe.truncation import Truncation


class Counter:
    """A policy whose carry counts the rows it has acted on in this episode; random action, the carry as extras."""

    Config: ClassVar[type[AgentConfig]] = AgentConfig

    def __init__(self, roles: tuple[RoleSpec, ...], *, commit: bool = False) -> None:
        self.specs = roles
        self.roles = tuple(spec.name for spec in roles)
        self.needs = DataNeeds(rollout=1, commit_action=commit)

    def initial_carry(self) -> Tree:
        return jnp.zeros((), jnp.int32)

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        actions = {s.name: jax.random.randint(key, (s.size,), 0, s.action_space.n) for s in self.specs}  # type: ignore[union-attr]
        return carry + 1, actions, {"seen": carry, "params": params}


def rollout_of(env: Any, policy: Any, lanes: int, length: int, **options: Any) -> tuple[Lane, Rollout]:
    policies, params = {"p": policy}, {"p": jnp.zeros((), jnp.int32)}
    start = init_lanes(env, policies, params, jax.random.split(jax.random.key(3), lanes))
    return jax.jit(lambda s: collect(env, policies, params, s, length, record=("p",), **options))(start)


@pytest.fixture(scope="module")
def cartpole() -> Rollout:
    env = CartPole()
    return rollout_of(env, Counter(env.roles), 4, 120)[1]


def test_every_last_row_is_followed_by_a_first_row_with_reward_0(cartpole: Rollout) -> None:
    first, last = np.asarray(cartpole.step.first), np.asarray(cartpole.step.last)
    assert first[0].all()
    assert last.sum() > 5
    np.testing.assert_array_equal(first[1:], last[:-1])
    assert (np.asarray(cartpole.step.reward["cart"])[first] == 0).all()


def test_the_row_after_a_transition_is_its_true_successor(cartpole: Rollout) -> None:
    """Every transition is stepped again by hand from the recorded observation, which is CartPole's whole state."""
    env = CartPole()
    obs, last = np.asarray(cartpole.step.obs["cart"]), np.asarray(cartpole.step.last)
    action = np.asarray(cartpole.action["cart"])
    state, _ = env.reset(jax.random.key(0), env.default_params)
    params = env.default_params
    step = jax.jit(lambda x, a: env.step(jax.random.key(0), state.replace(motion=x), {"cart": a}, params)[1])
    checked = 0
    for t in range(0, 120, 7):
        for lane in range(4):
            if not last[t, lane]:
                after = step(obs[t, lane, 0], action[t, lane])
                np.testing.assert_allclose(np.asarray(after.obs["cart"])[0], obs[t + 1, lane, 0], rtol=1e-6)
                checked += 1
    assert checked > 50


def test_the_carry_is_reset_at_first_rows(cartpole: Rollout) -> None:
    first = np.asarray(cartpole.step.first)[:-1]
    seen = np.asarray(cartpole.extras["p"]["seen"])
    expected = np.zeros(4, int)
    for t in range(len(seen)):
        expected = np.where(first[t], 0, expected)
        np.testing.assert_array_equal(seen[t], expected)
        expected = expected + 1


def test_finished_episodes_report_their_own_length_and_return(cartpole: Rollout) -> None:
    finished = np.asarray(cartpole.finished)
    last = np.asarray(cartpole.step.last)
    np.testing.assert_array_equal(finished, last[1:])
    lengths = np.asarray(cartpole.episode.length)[finished]
    np.testing.assert_array_equal(np.asarray(cartpole.episode.returns["cart"])[finished][:, 0], lengths)
    starts = [np.flatnonzero(np.asarray(cartpole.step.first)[:, lane]) for lane in range(4)]
    for lane in range(4):
        ends = np.flatnonzero(last[:, lane])
        expected = ends - starts[lane][: len(ends)]
        got = np.asarray(cartpole.episode.length)[:, lane][finished[:, lane]]
        np.testing.assert_array_equal(got, expected)


def test_an_agent_that_left_early_does_not_count_as_acting() -> None:
    env = Truncation(steps=6, leave=2)
    _, rollout = rollout_of(env, Counter(env.roles), 1, 6)
    assert int(np.asarray(rollout.episode.length)[5, 0]) == 6
    assert int(np.asarray(rollout.episode.agent_steps)[5, 0]) == 6 + 2


def test_a_lane_does_not_depend_on_who_shares_the_batch() -> None:
    env = CartPole()
    policy = Random(Random.Config(), env.roles)
    keys = jax.random.split(jax.random.key(3), 4)

    def run(part: Any) -> Rollout:
        policies, params = {"p": policy}, {"p": ()}
        return collect(env, policies, params, init_lanes(env, policies, params, part), 30, record=("p",))[1]

    together, alone = run(keys), run(keys[2:3])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        if a.ndim > 1:
            np.testing.assert_array_equal(np.asarray(a)[:, 2:3], np.asarray(b))


def test_hold_stops_a_lane_at_the_end_of_its_episode() -> None:
    env = CartPole()
    after, _ = rollout_of(env, Counter(env.roles), 8, 200, hold=True)
    assert np.asarray(after.step.last).all()
    lengths = np.asarray(after.sums.length)
    assert lengths.min() >= 8
    assert lengths.max() < 200
    np.testing.assert_array_equal(np.asarray(after.sums.returns["cart"])[:, 0], lengths)


def test_a_committed_action_is_the_one_executed_in_the_next_rollout() -> None:
    """SARSA's a': drawn at row T of one trajectory, executed at row 0 of the next, after the update."""
    env = CartPole()
    policies = {"p": Counter(env.roles, commit=True)}
    lanes = init_lanes(env, policies, {"p": jnp.int32(0)}, jax.random.split(jax.random.key(1), 3))
    promised = None
    for version in range(12):
        lanes, rollout = collect(env, policies, {"p": jnp.int32(version)}, lanes, 2, record=("p",))
        action = np.asarray(rollout.action["cart"])
        if promised is not None:
            np.testing.assert_array_equal(action[0], promised)
            acted = np.asarray(rollout.extras["p"]["params"])[0]
            assert (acted == version - 1).all(), "a' comes from the old parameters"
        promised = np.asarray(rollout.next_action["cart"])


def test_a_world_with_its_lane_axis_last_gives_the_same_numbers() -> None:
    class LanesLast(CartPole):
        lane_axis = -1

    plain = rollout_of(CartPole(), Counter(CartPole().roles), 4, 40)[1]
    turned = rollout_of(LanesLast(), Counter(CartPole().roles), 4, 40)[1]
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(turned), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_policies_do_not_see_the_global_state_unless_it_is_kept() -> None:
    env = CartPole()
    rollout = rollout_of(env, Counter(env.roles), 2, 3)[1]
    assert rollout.step.state is None
    assert rollout.step.info is None
