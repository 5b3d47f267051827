"""What a learner meets: episodes, rewards, metrics, options."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from marl.envs.heterogeneous_highway.env import HeterogeneousHighway
from marl.envs.heterogeneous_highway.params import AGGRESSIVE, CONTROLLED, DEFENSIVE, HighwayConfig
from marl.envs.heterogeneous_highway.sensing import observe
from marl.envs.heterogeneous_highway.state import agent_ids, spawn

LANES, DURATION = 12, 30


def player(env):
    """A compiled function from actions `[T, LANES, 5]` to (states, rows), which go on after `last`."""
    params = env.default_params

    @jax.jit
    def run(actions):
        state, _ = jax.vmap(lambda k: env.reset(k, params))(jax.random.split(jax.random.key(0), LANES))

        def body(state, action):
            state, row = jax.vmap(lambda s, a: env.step(None, s, {"vehicle": a}, params))(state, action)
            return state, (state, row)

        return jax.lax.scan(body, state, actions)[1]

    return lambda actions: jax.tree.map(np.asarray, run(actions))


@pytest.fixture(scope="module")
def chaotic():
    return player(HeterogeneousHighway(scenario="chaotic", duration=DURATION))


@pytest.fixture(scope="module")
def actions():
    return jax.random.randint(jax.random.key(5), (DURATION, LANES, 5), 0, 5)


@pytest.fixture(scope="module")
def played(chaotic, actions):
    return chaotic(actions)


def until_last(rows):
    """Mask `[T, LANES]` of the rows that belong to the episode."""
    ended_before = np.cumsum(rows.last, 0) - rows.last
    return ended_before == 0


def test_reward_terms_sum_to_the_reward(played):
    _, rows = played
    terms = {name: value for name, value in rows.info.items() if name.startswith("reward/vehicle/")}
    assert set(terms) == {f"reward/vehicle/{t}" for t in ("collision", "right_lane", "high_speed", "offset")}
    np.testing.assert_allclose(sum(terms.values()), rows.reward["vehicle"].mean(-1), atol=1e-6)


def test_rewards_stay_in_the_unit_interval_and_stop_at_the_end_of_an_agent(played):
    states, rows = played
    reward = rows.reward["vehicle"]
    assert reward.min() >= -1e-6
    assert reward.max() <= 1
    over = np.concatenate([np.zeros((1, LANES, 5), bool), states.ended[:-1]])
    assert over.any()
    assert (reward[over] == 0).all()
    crash_rows = states.crashed[:, :, list(agent_ids(HighwayConfig()))] & ~over
    assert (reward[crash_rows] < 0.34).all()  # what is left of a step that ended in a crash


def test_crashed_agents_are_terminated_and_the_others_truncated_at_the_time_limit(played):
    states, rows = played
    crashed = states.crashed[:, :, list(agent_ids(HighwayConfig()))]
    mask = until_last(rows)
    died = crashed & ~np.concatenate([np.zeros((1, LANES, 5), bool), crashed[:-1]])  # an end is an event of one row
    np.testing.assert_array_equal(rows.terminated["vehicle"][mask], died[mask])
    np.testing.assert_array_equal(rows.alive["vehicle"][mask], ~crashed[mask])
    assert not rows.truncated["vehicle"][:-1].any()
    np.testing.assert_array_equal(rows.truncated["vehicle"][-1], ~crashed[-1])
    assert (rows.last[-1] | (rows.last.sum(0) > 0)).all()
    early = rows.last & mask
    early[-1] = False
    assert crashed[early].all()


def test_time_limit_can_be_a_termination(actions):
    _, rows = player(HeterogeneousHighway(duration=2, time_limit="terminated"))(actions[:2])
    assert not rows.truncated["vehicle"].any()
    assert rows.terminated["vehicle"][-1].all()


def test_metrics_are_those_of_the_episode(played):
    states, rows = played
    agents = list(agent_ids(HighwayConfig()))
    for lane in range(LANES):
        end = int(np.argmax(rows.last[:, lane]))
        crashed = states.crashed[: end + 1, lane][:, agents]
        lived = (~crashed).sum(0)
        sums = {name: float(value[: end + 1, lane].sum()) for name, value in rows.info.items()}
        np.testing.assert_allclose(sums["survival_s"], lived.mean(), rtol=1e-5)
        np.testing.assert_allclose(sums["success"], (~crashed[-1]).mean() if end == DURATION - 1 else 0, atol=1e-6)
        background = np.delete(states.crashed[end, lane], agents)
        assert sums["crashed_background"] == background.sum()
        speeds = states.speed[: end + 1, lane][:, agents]
        mean = [speeds[:n, i].mean() if n else 0.0 for i, n in enumerate(lived)]
        np.testing.assert_allclose(sums["speed_mps"], np.mean(mean), rtol=1e-5)


def test_the_action_of_a_crashed_agent_changes_nothing(chaotic, played, actions):
    states, _ = played
    over = np.concatenate([np.zeros((1, LANES, 5), bool), states.ended[:-1]])
    other = np.where(over, (np.asarray(actions) + 1) % 5, actions)
    assert (other != np.asarray(actions)).any()
    again, _ = chaotic(jnp.asarray(other))
    for name in ("x", "y", "speed", "target_lane"):
        np.testing.assert_array_equal(getattr(again, name), getattr(states, name))


@pytest.mark.long
def test_a_batch_of_batches_is_the_same_road(actions):
    """Two seeds with two lanes each run as four lanes would."""
    env = HeterogeneousHighway()
    params = env.default_params

    @jax.jit
    def both(keys, actions):
        def step(state, action):
            return env.step(None, state, {"vehicle": action}, params)

        def nested(leaf):
            return leaf.reshape(2, 2, *leaf.shape[1:])

        state, _ = jax.vmap(lambda k: env.reset(k, params))(keys)
        flat = jax.vmap(step)(state, actions)
        return jax.tree.map(nested, flat), jax.vmap(jax.vmap(step))(*jax.tree.map(nested, (state, actions)))

    flat, nested = both(jax.random.split(jax.random.key(2), 4), actions[0, :4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-6), flat, nested)


def test_a_platoon_is_strung_out_as_specified():
    config = HighwayConfig(scenario="chaotic")
    params = HeterogeneousHighway(scenario="chaotic").default_params
    state = jax.jit(jax.vmap(lambda k: spawn(k, params, config)))(jax.random.split(jax.random.key(0), 400))
    agents, x = list(agent_ids(config)), np.asarray(state.x)
    assert agents == [0, 11, 22, 33, 44]
    assert (np.asarray(state.kind)[:, agents] == CONTROLLED).all()
    gaps, unit = np.diff(x, axis=1), np.exp(-1)
    controlled = np.isin(np.arange(1, 55), agents)
    assert gaps[:, controlled].min() >= 2 * 37 * unit * 0.9 - 1e-3
    assert gaps[:, controlled].max() <= 2 * 37 * unit * 1.1 + 1e-3
    assert gaps[:, ~controlled].min() >= 33 * unit * 0.9 - 1e-3
    assert gaps[:, ~controlled].max() <= 36 * unit * 1.1 + 1e-3
    assert abs(x[:, 0].mean() - 4 * 74 * unit) < 1
    kinds = np.asarray(state.kind)[:, ~np.isin(np.arange(55), agents)]
    for kind in (AGGRESSIVE, DEFENSIVE):
        assert abs((kinds == kind).mean() - 0.3) < 0.02
    assert abs(np.asarray(state.target_lane).mean() - 3.5) < 0.1
    exponent, everyone = np.asarray(state.exponent), np.asarray(state.kind)
    assert (exponent[everyone == AGGRESSIVE] == 4).all()
    assert exponent[everyone == DEFENSIVE].max() <= 4 < exponent.max() <= 4.5
    assert (np.asarray(state.timer) < np.asarray(params.drivers.delay)[everyone]).all()


def test_default_observation_saturates_and_the_option_does_not(scene):
    x = [500, 520, 495, 480, 690, 800, 500]
    y = [12, 16, 12, 12, 0, 4, 8]
    state = scene(x, y, speed=[25, 20, 28, 22, 21, 21, 25], target_lane=[4, 4, 3, 3, 0, 1, 2], dtype=np.float32)
    options = {"controlled_vehicles": 1, "background_vehicles": 6}
    rows = np.asarray(observe(state, HighwayConfig(**options)))[0, :, :, 0]
    assert rows.shape == (15, 5)
    np.testing.assert_allclose(rows[0], [1, 1, 0.12, 1, 0], atol=1e-6)  # own speed and place cannot be told
    np.testing.assert_allclose(rows[1], [1, 0, -0.04, 0, 0], atol=1e-6)  # beside: nearest along the road
    np.testing.assert_allclose(rows[2], [1, -0.05, 0, 0.15, 0], atol=1e-6)  # 5 m behind
    np.testing.assert_allclose(rows[3], [1, 0.2, 0.04, -0.25, 0], atol=1e-6)
    np.testing.assert_allclose(rows[4], [1, 1, -0.12, -0.2, 0], atol=1e-6)  # 190 m ahead
    assert not rows[5:].any()  # 20 m behind and 300 m ahead are not seen
    rows = np.asarray(observe(state, HighwayConfig(observation="unsaturated", **options)))[0, :, :, 0]
    np.testing.assert_allclose(rows[0], [1, 0, 12 / 28, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(rows[4], [1, 0.95, -12 / 28, -4 / 30, 0], atol=1e-6)
    assert np.abs(rows).max() <= 1


@pytest.mark.parametrize(("controlled", "background"), [(1, 0), (2, 5)])
def test_other_numbers_of_vehicles_work(controlled, background):
    env = HeterogeneousHighway(controlled_vehicles=controlled, background_vehicles=background, lanes=3)
    params = env.default_params

    @jax.jit
    def play_a_step(key):
        state, _ = env.reset(key, params)
        return env.step(key, state, {"vehicle": jnp.zeros(controlled, jnp.int32)}, params)[1]

    row = play_a_step(jax.random.key(0))
    assert row.obs["vehicle"].shape == (controlled, 15, 5)
    assert row.state.shape == env.roles[0].state_space.shape == (5 * (controlled + background),)
    assert (np.asarray(row.obs["vehicle"])[:, 0, 0] == 1).all()


@pytest.mark.parametrize("option", [{"scenario": "wild"}, {"lanes": 0}, {"duration": 0}, {"politeness": 0.1}])
def test_bad_options_are_refused(option):
    with pytest.raises(pydantic.ValidationError):
        HeterogeneousHighway(**option)


def test_parameters_can_differ_between_lanes():
    """Domain randomisation: `vmap` over parameters."""
    env = HeterogeneousHighway(duration=3)
    params = env.default_params
    shares = jnp.asarray([0.0, 0.5], jnp.float32)
    both = jax.vmap(lambda share: params.replace(aggressive=share, defensive=share))(shares)
    both = both.replace(collision=jnp.asarray([-1.0, -3.0], jnp.float32))

    @jax.jit
    @jax.vmap
    def play_a_step(params):
        state, _ = env.reset(jax.random.key(3), params)
        return env.step(None, state, {"vehicle": jnp.ones(5, jnp.int32)}, params)

    state, row = play_a_step(both)
    kinds = np.asarray(state.kind)
    assert (kinds[0] < AGGRESSIVE).all()
    assert (np.delete(kinds[1], list(agent_ids(env.config))) >= AGGRESSIVE).all()
    np.testing.assert_allclose(row.info["reward/vehicle/offset"], [1 / 1.5, 3 / 3.5], rtol=1e-6)
