"""PPO learns: what enters an update, what must not, and that shards and the joined batch give one result."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.ppo.algorithm import MAPPO, PPO
from marl.agents.ppo.config import MAPPOConfig, PPOConfig
from marl.core.errors import ShapeError
from marl.core.prng import stream
from marl.core.spaces import Box, Discrete
from marl.core.types import LearnerState, RoleSpec, Trajectory

PAIR = (RoleSpec("car", 2, Box((3,)), Discrete(3), Box((4,))),)
MIXED = (*PAIR, RoleSpec("arm", 1, Box((2,)), Box((2,), -1.0, 1.0), Box((4,))))
ONE_STEP: dict[str, Any] = {
    "epochs": 1,
    "minibatches": 1,
    "hidden_sizes": (8,),
    "gru_size": 4,
    "rollout": 6,
    "value_normalisation": "none",
}
KEY = stream(0, "update")


class Plain(NamedTuple):
    """A feed-forward learner without memory, what it did, and its compiled update."""

    algorithm: PPO
    state: LearnerState
    batch: Trajectory
    update: Any


@pytest.fixture(scope="module")
def plain(rollout: Any) -> Plain:
    algorithm = PPO(PPOConfig(**ONE_STEP, last_action=False), PAIR)
    state = rollout.draw_state(algorithm)
    return Plain(algorithm, state, rollout(algorithm, state, ends=0.3), jax.jit(algorithm.update))


def same(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def close(a: object, b: object, tolerance: float) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_an_update_keeps_structure_and_types_and_reports_what_it_did(plain: Plain) -> None:
    new, metrics = plain.update(plain.state, plain.batch, KEY)
    assert jax.tree.structure(new) == jax.tree.structure(plain.state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((new, metrics)))
    assert (int(new.updates), new.updates.dtype) == (1, jnp.int32)
    assert set(metrics) == {
        "loss/policy",
        "loss/value",
        "policy/entropy",
        "policy/approx_kl",
        "policy/clip_fraction",
        "value/explained_variance",
        "optim/grad_norm",
        "optim/critic_grad_norm",
        "optim/learning_rate",
    }
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "specs", "turns"),
    [({"layer_norm": True}, MIXED, False), ({"sharing": "role"}, PAIR, False), ({"correction": "vtrace"}, PAIR, True)],
    ids=["every agent its own", "shared", "in turns"],
)
def test_the_learner_recomputes_the_probabilities_that_acted(
    rollout: Any, options: dict[str, Any], specs: tuple[RoleSpec, ...], turns: bool
) -> None:
    """With resets, hidden states, last actions and ids in play, every ratio is 1 before the first step."""
    algorithm = PPO(PPOConfig(**ONE_STEP, recurrent=True, **options), specs)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, turns=turns)
    if turns:  # what V-trace starts from
        raw, inputs = algorithm._all_inputs(batch)
        now = algorithm._log_prob("car", algorithm.publish(state)["car"], batch, inputs["car"], raw["car"])
        np.testing.assert_allclose(now, batch.extras["car"]["log_prob"], rtol=1e-4, atol=1e-5)
    assert bool(batch.step.first[1:].any())
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    assert abs(float(metrics["policy/approx_kl"])) < 1e-6
    assert float(metrics["policy/clip_fraction"]) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("algorithm_class", [PPO, MAPPO])
def test_two_shards_make_the_step_of_the_joined_batch(rollout: Any, algorithm_class: type[PPO]) -> None:
    config = algorithm_class.Config(**ONE_STEP | {"value_normalisation": "running"})
    joined, sharded = algorithm_class(config, PAIR), algorithm_class(config, PAIR, axis="devices")
    state = rollout.draw_state(joined)
    batch = rollout(joined, state)
    expected, metrics = jax.jit(joined.update)(state, batch, KEY)

    def split(x: jax.Array, axis: int) -> jax.Array:
        return jnp.stack(jnp.split(x, 2, axis))

    halves = Trajectory(
        step=jax.tree.map(lambda x: split(x, 1), batch.step),
        action=jax.tree.map(lambda x: split(x, 1), batch.action),
        extras=jax.tree.map(lambda x: split(x, 1), batch.extras),
        carry=jax.tree.map(lambda x: split(x, 0), batch.carry),
        next_action={},
        version=split(batch.version, 0),
    )
    both, sharded_metrics = jax.jit(jax.vmap(lambda b: sharded.update(state, b, KEY), axis_name="devices"))(halves)
    for shard in (0, 1):
        close(jax.tree.map(lambda x, shard=shard: x[shard], both), expected, 1e-5)
    for name in ("loss/policy", "loss/value", "policy/entropy", "value/explained_variance"):
        np.testing.assert_allclose(sharded_metrics[name][0], metrics[name], rtol=1e-4, atol=1e-6)


def test_an_agents_update_does_not_depend_on_another_agents_reward(plain: Plain) -> None:
    batch = plain.batch
    reward = {"car": batch.step.reward["car"].at[..., 1].mul(1e3)}
    one, _ = plain.update(plain.state, batch, KEY)
    two, _ = plain.update(plain.state, batch.replace(step=batch.step.replace(reward=reward)), KEY)
    assert same(*(jax.tree.map(lambda x: x[0], state.params) for state in (one, two)))
    assert not same(one.params["critic"], two.params["critic"])


def test_rows_that_do_not_count_change_nothing(plain: Plain) -> None:
    """Actions and probabilities of dead agents, and of rows that end an episode, are not learnt from."""
    batch = plain.batch
    counts = batch.step.alive["car"][:-1] & ~batch.step.last[:-1, :, None]
    assert 0 < int(counts.sum()) < counts.size
    noisy = batch.replace(
        extras={"car": {"log_prob": jnp.where(counts, batch.extras["car"]["log_prob"], -9.0)}},
        action={"car": jnp.where(counts, batch.action["car"], 0)},
    )
    assert same(plain.update(plain.state, batch, KEY)[0], plain.update(plain.state, noisy, KEY)[0])


def test_a_move_that_was_not_made_changes_nothing(rollout: Any) -> None:
    """Where agents take turns, what was drawn for those that wait is in no loss, no ratio and no last action."""
    algorithm = PPO(PPOConfig(**ONE_STEP, correction="vtrace"), PAIR)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, turns=True)
    acts = batch.step.acting["car"][:-1]
    noisy = batch.replace(
        extras={"car": {"log_prob": jnp.where(acts, batch.extras["car"]["log_prob"], -9.0)}},
        action={"car": jnp.where(acts, batch.action["car"], 0)},
    )
    update = jax.jit(algorithm.update)
    assert same(update(state, batch, KEY)[0], update(state, noisy, KEY)[0])


@pytest.fixture(scope="module")
def stale(rollout: Any) -> Plain:
    """A learner with V-trace and a batch that other parameters acted."""
    algorithm = PPO(PPOConfig(**ONE_STEP, last_action=False, correction="vtrace"), PAIR)
    state = rollout.draw_state(algorithm)
    older = state.replace(params=jax.tree.map(lambda leaf: 0.5 * leaf, state.params))
    return Plain(algorithm, state, rollout(algorithm, older, ends=0.0), jax.jit(algorithm.update))


def test_vtrace_measures_the_step_from_the_parameters_at_its_start(stale: Plain, plain: Plain) -> None:
    _, corrected = stale.update(stale.state, stale.batch, KEY)
    _, plainly = plain.update(stale.state, stale.batch, KEY)
    assert float(corrected["policy/clip_fraction"]) == 0.0
    assert float(plainly["policy/clip_fraction"]) > 0.1
    assert (stale.algorithm.needs.max_staleness, plain.algorithm.needs.max_staleness) == (64, 0)


def test_vtrace_forgets_what_the_present_parameters_would_never_do(stale: Plain) -> None:
    """An action that the old policy was sure of and the new one rules out: nothing is learnt from what it brought."""
    batch = stale.batch
    sure = {"car": {"log_prob": batch.extras["car"]["log_prob"].at[2].set(60.0)}}
    paid = batch.step.replace(reward={"car": batch.step.reward["car"].at[3].set(100.0)})
    one, _ = stale.update(stale.state, batch.replace(extras=sure), KEY)
    two, _ = stale.update(stale.state, batch.replace(extras=sure, step=paid), KEY)
    close(one.params["critic"], two.params["critic"], 1e-6)
    three, _ = stale.update(stale.state, batch.replace(step=paid), KEY)
    assert not same(two.params["critic"], three.params["critic"])


def test_minibatches_must_divide_the_data(plain: Plain, rollout: Any) -> None:
    for options, message in (({}, "24 rows"), ({"recurrent": True}, "4 sequences")):
        algorithm = PPO(PPOConfig(**ONE_STEP | {"minibatches": 5, "last_action": False} | options), PAIR)

        def shapes(key: jax.Array, algorithm: PPO = algorithm) -> Any:
            state = algorithm.init(key)
            carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (4, *x.shape)), algorithm.initial_carry())
            return algorithm.update(state, plain.batch.replace(carry=carry), key)

        with pytest.raises(ShapeError, match=f"minibatches: 5 does not divide the {message}"):
            jax.eval_shape(shapes, KEY)


def test_hyper_parameters_are_numbers_of_the_state(plain: Plain) -> None:
    still = plain.state.replace(hyper={**plain.state.hyper, "learning_rate": jnp.float32(0.0)})
    new, metrics = plain.update(still, plain.batch, KEY)
    assert same(new.params, still.params)
    assert float(metrics["optim/learning_rate"]) == 0.0
    made = jax.eval_shape(lambda k: plain.algorithm.init(k, {"clip": 0.1}), KEY)
    assert jax.tree.structure(made) == jax.tree.structure(plain.state)


def test_the_learning_rate_falls_to_zero_at_the_given_step() -> None:
    config = PPOConfig(learning_rate_schedule="linear", schedule_env_steps=1000)
    shares = [float(PPO(config, PAIR).schedule(jnp.float32(steps))) for steps in (0, 750, 1000, 2000)]
    assert shares == [1.0, 0.25, 0.0, 0.0]
    assert float(PPO(PPOConfig(), PAIR).schedule(jnp.float32(750))) == 1.0


def test_team_reward_gives_every_agent_the_sum(plain: Plain) -> None:
    algorithm = MAPPO(MAPPOConfig(**ONE_STEP, team_reward=True), PAIR)
    own, team = plain.batch.step.reward["car"][1:], algorithm._rewards(plain.batch.step)["car"]
    np.testing.assert_allclose(team[..., 0], own.sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(team[..., 0], team[..., 1])


def test_the_better_action_becomes_likely(rollout: Any) -> None:
    """A bandit: action 2 pays 1, the others nothing."""
    config = PPOConfig(rollout=8, epochs=4, minibatches=2, hidden_sizes=(8,), learning_rate=0.03, last_action=False)
    algorithm = PPO(config, PAIR)
    state = rollout.draw_state(algorithm)
    step = jax.jit(algorithm.update)
    steps = rollout(algorithm, state, rows=8, lanes=8, ends=0.0).step
    for i in range(12):
        batch = rollout.act(algorithm, state, steps, seed=i)
        paid = jnp.concatenate([jnp.zeros((1, 8, 2)), (batch.action["car"] == 2).astype(jnp.float32)])
        state, _ = step(state, batch.replace(step=steps.replace(reward={"car": paid})), stream(0, "update", i))
    assert float((batch.action["car"] == 2).mean()) > 0.8
