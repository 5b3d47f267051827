"""A3C: the loss of a segment by hand, the shared RMSProp by hand, and gradients that arrive late."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from marl.agents.a3c.algorithm import A3C
from marl.agents.a3c.config import A3CConfig
from marl.agents.a3c.rmsprop import limited, norms, rmsprop
from marl.core.algorithm import GradientAlgorithm
from marl.core.prng import stream
from marl.core.spaces import Box, Discrete, MultiDiscrete
from marl.core.types import LearnerState, RoleSpec, TimeStep, Trajectory

PAIR = (RoleSpec("car", 2, Box((3,)), Discrete(3)),)
MIXED = (
    *PAIR,
    RoleSpec("arm", 1, Box((2,)), Box((2,), -1.0, 1.0)),
    RoleSpec("hand", 2, Discrete(3), MultiDiscrete((2, 3))),
)
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "gru_size": 4, "rollout": 6, "learning_rate": 0.05, "rmsprop_eps": 1e-3}
KEY = stream(0, "update")


class Plain(NamedTuple):
    algorithm: A3C
    state: LearnerState
    batch: Trajectory
    gradient: Any
    apply: Any


@pytest.fixture(scope="module")
def plain(rollout: Any) -> Plain:
    algorithm = A3C(A3CConfig(**SMALL), PAIR)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, ends=0.2)
    return Plain(algorithm, state, batch, jax.jit(algorithm.gradient), jax.jit(algorithm.apply))


def same(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def close(a: object, b: object, tolerance: float) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_it_gives_gradients_of_short_segments(plain: Plain) -> None:
    assert isinstance(plain.algorithm, GradientAlgorithm)
    needs = A3C(A3CConfig(), PAIR).needs
    assert (needs.rollout, needs.gradients, needs.max_staleness) == (20, True, 0)
    assert A3C(A3CConfig(correction="vtrace"), PAIR).needs.max_staleness == 64


def test_an_update_is_a_gradient_applied(plain: Plain) -> None:
    new, metrics = jax.jit(plain.algorithm.update)(plain.state, plain.batch, KEY)
    grads, worker = plain.gradient(plain.algorithm.publish(plain.state), plain.batch, KEY)
    assert same(new, plain.apply(plain.state, grads))
    assert same(metrics, worker)
    assert jax.tree.structure(new) == jax.tree.structure(plain.state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((new, metrics)))
    assert (int(new.updates), new.updates.dtype) == (1, jnp.int32)
    assert set(metrics) == {
        "loss/policy",
        "loss/value",
        "policy/entropy",
        "value/explained_variance",
        "optim/grad_norm",
    }
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())


# ---- the loss -------------------------------------------------------------------------------------------------------


def segment(**changes: Any) -> TimeStep:
    """Three steps of one agent in one lane; rewards 1, 2, 4."""
    rows: dict[str, Any] = {
        "reward": [0.0, 1.0, 2.0, 4.0],
        "terminated": [False] * 4,
        "truncated": [False] * 4,
        "alive": [True] * 4,
    }
    rows |= {name: changes.pop(name) for name in list(changes) if name in rows}
    flags = {"first": [True, False, False, False], "last": [False] * 4} | changes
    return TimeStep(
        obs={"a": jnp.asarray([[0.1], [0.2], [0.3], [0.4]], jnp.float32)[:, None, None]},
        **{name: {"a": jnp.asarray(x)[:, None, None]} for name, x in rows.items()},
        **{name: jnp.asarray(x)[:, None] for name, x in flags.items()},
    )


@pytest.fixture(scope="module")
def one(rollout: Any) -> Any:
    """By correction: a learner of one agent with a Gaussian of one number, its state, and its compiled gradient."""
    spec, made = (RoleSpec("a", 1, Box((1,)), Box((1,))),), {}
    options: dict[str, Any] = {"hidden_sizes": (2,), "last_action": False, "agent_id": False, "gamma": 0.5}
    for correction in ("none", "vtrace"):
        algorithm = A3C(A3CConfig(**options, correction=correction, value_coef=1.0, entropy_coef=0.01), spec)
        made[correction] = (algorithm, rollout.draw_state(algorithm), jax.jit(algorithm.gradient))
    return made


def acted(steps: TimeStep, log_prob: Any) -> Trajectory:
    raw = jnp.asarray([0.5, -0.3, 0.2], jnp.float32)[:, None, None, None]
    extras = {"a": {"raw": raw, "log_prob": jnp.asarray(log_prob, jnp.float32)[:, None, None]}}
    return Trajectory(steps, {"a": raw}, extras, (), {}, jnp.zeros(1, jnp.int32))


def by_hand(algorithm: A3C, params: Any, batch: Trajectory, targets: list[float], weights: list[float]) -> Any:
    """Gradient of the formula in the paper, with targets and importance weights given as numbers, a step at a time."""
    obs = batch.step.obs["a"][:, 0, 0]

    def forward(networks: Any, kind: str, row: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf[0], networks[kind]["a"])
        return (
            jnp.tanh(row @ own["torso"]["Dense_0"]["kernel"] + own["torso"]["Dense_0"]["bias"]) @ own["head"]["kernel"]
            + own["head"]["bias"]
        )

    def loss(networks: Any) -> Any:
        total = jnp.zeros(())
        log_std = networks["actor"]["a"]["log_std"][0, 0]
        for t, (target, weight) in enumerate(zip(targets, weights, strict=True)):
            if weight == 0.0:
                continue
            mean = forward(networks, "actor", obs[t])[0]
            value = forward(networks, "critic", obs[t])[0]
            z = (batch.extras["a"]["raw"][t, 0, 0, 0] - mean) / jnp.exp(log_std)
            log_prob = -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)
            entropy = log_std + 0.5 * math.log(2 * math.pi * math.e)
            advantage = target - jax.lax.stop_gradient(value)
            total += -log_prob * advantage + 0.5 * (target - value) ** 2 - 0.01 * entropy
        return total

    return jax.grad(loss)({"actor": params["actor"], "critic": params["critic"]})


def values(algorithm: A3C, state: LearnerState, batch: Trajectory) -> Any:
    return np.asarray(algorithm.values(state, batch)["a"])[:, 0, 0]


def test_returns_go_to_the_end_of_the_segment_and_on_with_the_value_there(one: Any) -> None:
    algorithm, state, gradient = one["none"]
    batch = acted(segment(), [-9.0, -9.0, -9.0])
    v = values(algorithm, state, batch)
    targets = [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * v[3])), 2 + 0.5 * (4 + 0.5 * v[3]), 4 + 0.5 * v[3]]
    params = algorithm.publish(state)
    close(gradient(params, batch, KEY)[0], by_hand(algorithm, params, batch, targets, [1, 1, 1]), 1e-5)


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_returns_stop_where_the_episode_ends(one: Any, how: str) -> None:
    """Row 2 is the last; the step from it to the next episode's first row does not count."""
    algorithm, state, gradient = one["none"]
    steps = segment(
        **{how: [False, False, True, False]},
        alive=[True, True, False, True],
        reward=[0.0, 1.0, 2.0, 0.0],
        first=[True, False, False, True],
        last=[False, False, True, False],
    )
    batch = acted(steps, [-9.0, -9.0, -9.0])
    v = values(algorithm, state, batch)
    after = v[2] if how == "truncated" else 0.0
    targets = [1 + 0.5 * (2 + 0.5 * after), 2 + 0.5 * after, 99.0]
    params = algorithm.publish(state)
    close(gradient(params, batch, KEY)[0], by_hand(algorithm, params, batch, targets, [1, 1, 0]), 1e-5)


def test_vtrace_on_what_the_same_parameters_did_is_the_one_step_advantage_of_the_same_targets(one: Any) -> None:
    algorithm, state, gradient = one["vtrace"]
    params = algorithm.publish(state)
    batch = acted(segment(), [0.0, 0.0, 0.0])
    raw, inputs = algorithm._all_inputs(batch)
    own = algorithm._policy("a", params["actor"]["a"], batch, inputs["a"]).log_prob(raw["a"][None, :, :, 0])
    batch = acted(segment(), own[0, :, 0])
    v = values(algorithm, state, batch)
    targets = [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * v[3])), 2 + 0.5 * (4 + 0.5 * v[3]), 4 + 0.5 * v[3]]
    close(gradient(params, batch, KEY)[0], by_hand(algorithm, params, batch, targets, [1, 1, 1]), 1e-4)
    unlikely = acted(segment(), own[0, :, 0] + 60.0)  # the old parameters were sure of what the new ones rule out
    critic = gradient(params, unlikely, KEY)[0]["critic"]
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(critic)) < 1e-6


def test_a_role_with_one_network_is_learnt_at_the_pace_of_one_agent(rollout: Any) -> None:
    """The mean over agents and lanes, not the sum: twice the same lanes give the same gradient."""
    algorithm = A3C(A3CConfig(**SMALL, sharing="role", agent_id=False), PAIR)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state)
    twice = batch.replace(
        step=jax.tree.map(lambda x: jnp.concatenate([x, x], 1), batch.step),
        action=jax.tree.map(lambda x: jnp.concatenate([x, x], 1), batch.action),
        extras=jax.tree.map(lambda x: jnp.concatenate([x, x], 1), batch.extras),
        carry=jax.tree.map(lambda x: jnp.concatenate([x, x]), batch.carry),
    )
    params, gradient = algorithm.publish(state), jax.jit(algorithm.gradient)
    close(gradient(params, batch, KEY)[0], gradient(params, twice, KEY)[0], 1e-5)


def test_rows_that_do_not_count_change_nothing(plain: Plain) -> None:
    batch = plain.batch
    counts = batch.step.alive["car"][:-1] & ~batch.step.last[:-1, :, None]
    other = (batch.action["car"] + 1) % 3
    # Last actions are inputs of the row after; those of rows before a `first` are forgotten.
    forgotten = ~counts & batch.step.first[1:, :, None]
    assert forgotten.any()
    noisy = batch.replace(action={"car": jnp.where(forgotten, other, batch.action["car"])})
    params = plain.algorithm.publish(plain.state)
    assert same(plain.gradient(params, batch, KEY)[0], plain.gradient(params, noisy, KEY)[0])


def test_an_agents_gradient_does_not_depend_on_another_agents_reward(plain: Plain) -> None:
    batch, params = plain.batch, plain.algorithm.publish(plain.state)
    reward = {"car": batch.step.reward["car"].at[..., 1].mul(1e3)}
    one, _ = plain.gradient(params, batch, KEY)
    two, _ = plain.gradient(params, batch.replace(step=batch.step.replace(reward=reward)), KEY)
    assert same(*(jax.tree.map(lambda x: x[0], grads) for grads in (one, two)))
    assert not same(one, two)


@pytest.mark.long
@pytest.mark.parametrize(
    ("specs", "turns"),
    [pytest.param(MIXED, False, marks=pytest.mark.slow), (PAIR, True)],
    ids=["all at once", "in turns"],
)
def test_every_action_space_learns_with_memory(rollout: Any, specs: tuple[RoleSpec, ...], turns: bool) -> None:
    """V-trace finds the probabilities that acted, and every part of every network has a gradient."""
    algorithm = A3C(A3CConfig(**SMALL, recurrent=True, correction="vtrace"), specs)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, turns=turns)

    def found(params: Any, batch: Trajectory) -> Any:
        raw, inputs = algorithm._all_inputs(batch)
        grouped = {n: jnp.moveaxis(raw[n], 2, 0) for n in algorithm.roles}
        now = {
            n: algorithm._policy(n, params["actor"][n], batch, inputs[n]).log_prob(grouped[n]) for n in algorithm.roles
        }
        return algorithm.gradient(params, batch, KEY), now

    (grads, metrics), now = jax.jit(found)(algorithm.publish(state), batch)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    assert all(np.isfinite(value) for value in metrics.values())
    for role in algorithm.roles:
        old = jnp.moveaxis(batch.extras[role]["log_prob"], 2, 0)
        np.testing.assert_allclose(now[role], old, rtol=1e-3, atol=1e-4, err_msg=role)


def test_a_recurrent_critic_goes_on_from_where_the_last_segment_ended(rollout: Any) -> None:
    """Its state is carried by actors: two segments are valued like one that is as long as both."""
    algorithm = A3C(A3CConfig(**SMALL, recurrent=True, last_action=False), PAIR)
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, lanes=3)
    params, half = algorithm.publish(state), 3

    def one_lane(steps: TimeStep) -> Any:
        carry = initial = algorithm.initial_carry()
        for t in range(half):
            step = jax.tree.map(lambda x, t=t: x[t], steps)
            carry = jax.tree.map(lambda fresh, old, first=step.first: jnp.where(first, fresh, old), initial, carry)
            carry, _, _ = algorithm.act(params, carry, step, KEY, explore=False)
        return carry

    carry = jax.jit(jax.vmap(one_lane, in_axes=1))(batch.step)
    rest = batch.replace(
        step=jax.tree.map(lambda x: x[half:], batch.step),
        action=jax.tree.map(lambda x: x[half:], batch.action),
        carry=carry,
    )
    whole, second = (jax.jit(algorithm.values)(state, b)["car"] for b in (batch, rest))
    assert not batch.step.first[half].all()
    np.testing.assert_allclose(second, whole[half:], rtol=1e-5, atol=1e-6)


def test_two_shards_give_the_gradient_of_the_joined_batch(plain: Plain) -> None:
    sharded = A3C(plain.algorithm.config, PAIR, axis="devices")
    params = plain.algorithm.publish(plain.state)

    def split(x: jax.Array, axis: int) -> jax.Array:
        return jnp.stack(jnp.split(x, 2, axis))

    batch = plain.batch
    halves = Trajectory(
        step=jax.tree.map(lambda x: split(x, 1), batch.step),
        action=jax.tree.map(lambda x: split(x, 1), batch.action),
        extras=jax.tree.map(lambda x: split(x, 1), batch.extras),
        carry=jax.tree.map(lambda x: split(x, 0), batch.carry),
        next_action={},
        version=split(batch.version, 0),
    )
    both = jax.jit(jax.vmap(lambda b: sharded.gradient(params, b, KEY), axis_name="devices"))(halves)
    joined = plain.gradient(params, batch, KEY)
    for shard in (0, 1):
        close(jax.tree.map(lambda x, shard=shard: x[shard], both), joined, 1e-4)


# ---- the optimiser --------------------------------------------------------------------------------------------------


def test_rmsprop_by_hand_on_a_quadratic() -> None:
    """f(x) = x^2 from x = 1 with rate 0.1, decay 0.9, eps 0.01: two steps, numbers worked out apart from the code."""
    x, g = jnp.asarray([1.0]), jnp.asarray([0.0])
    x, g = rmsprop(x, g, 2.0 * x, jnp.float32(0.1), 0.9, 0.01)
    # d = 2, g = 0.1 * 4 = 0.4, x = 1 - 0.2 / sqrt(0.41)
    np.testing.assert_allclose((g[0], x[0]), (0.4, 0.687652), rtol=1e-5)
    x, g = rmsprop(x, g, 2.0 * x, jnp.float32(0.1), 0.9, 0.01)
    # d = 1.375305, g = 0.36 + 0.189146 = 0.549146, x = 0.687652 - 0.1375305 / sqrt(0.559146)
    np.testing.assert_allclose((g[0], x[0]), (0.549146, 0.503729), rtol=1e-5)


def test_two_workers_with_the_same_start_make_two_steps_by_the_same_gradient() -> None:
    """K = 2 at x = 1: both push d = 2; the second arrives one version late and is applied as it is."""
    x, g, late = jnp.asarray([1.0]), jnp.asarray([0.0]), jnp.asarray([2.0])
    for _ in range(2):
        x, g = rmsprop(x, g, late, jnp.float32(0.1), 0.9, 0.01)
    # g = 0.4, then 0.76; x = 1 - 0.2 / sqrt(0.41) - 0.2 / sqrt(0.77)
    np.testing.assert_allclose((g[0], x[0]), (0.76, 0.459730), rtol=1e-5)


def test_a_late_gradient_is_applied_as_it_is(plain: Plain) -> None:
    old = plain.algorithm.publish(plain.state)
    grads, _ = plain.gradient(old, plain.batch, KEY)
    once = plain.apply(plain.state, grads)
    again, _ = plain.gradient(old, plain.batch, KEY)  # taken at the old parameters though a version has passed
    assert same(grads, again)
    twice = plain.apply(once, again)
    d, g1 = np.asarray(grads["actor"]["car"]["head"]["bias"]), np.asarray(once.opt["actor"]["car"]["head"]["bias"])
    np.testing.assert_allclose(g1, 0.01 * d**2, rtol=1e-5)
    g2 = 0.99 * g1 + 0.01 * d**2
    before = np.asarray(once.params["actor"]["car"]["head"]["bias"])
    np.testing.assert_allclose(
        twice.params["actor"]["car"]["head"]["bias"], before - 0.05 * d / np.sqrt(g2 + 1e-3), rtol=1e-5, atol=1e-6
    )


def test_a_gradient_is_limited_by_the_norm_of_actor_and_critic_together() -> None:
    grads = {
        "actor": {"a": {"w": jnp.asarray([[3.0], [0.3]])}},
        "critic": {"a": {"w": jnp.asarray([[4.0], [0.4]])}},
    }
    np.testing.assert_allclose(norms(grads)["a"], [5.0, 0.5])
    short = limited(grads, 1.0)
    np.testing.assert_allclose(short["actor"]["a"]["w"], [[0.6], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(short["critic"]["a"]["w"], [[0.8], [0.4]], rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, grads)
    assert same(limited(nothing, 1.0), nothing)


def test_the_limit_holds_where_gradients_arrive(plain: Plain) -> None:
    """A worker pushes what it found; the step is that of the limited gradient."""
    grads, metrics = plain.gradient(plain.algorithm.publish(plain.state), plain.batch, KEY)
    bound = A3C(A3CConfig(**SMALL | {"max_grad_norm": 0.01}), PAIR)
    new = jax.jit(bound.apply)(plain.state, grads)
    np.testing.assert_allclose(metrics["optim/grad_norm"], np.mean(norms(grads)["car"]), rtol=1e-5)
    used = jax.tree.map(lambda g: jnp.sqrt(g / 0.01), new.opt)
    np.testing.assert_allclose(norms(used)["car"], [0.01, 0.01], rtol=1e-4)


def test_the_learning_rate_falls_to_zero_at_the_given_step(plain: Plain) -> None:
    config = A3CConfig(**SMALL, learning_rate_schedule="linear", schedule_env_steps=1000)
    late = plain.state.replace(env_steps=jnp.float32(1000))
    grads, _ = plain.gradient(plain.algorithm.publish(plain.state), plain.batch, KEY)
    assert same(jax.jit(A3C(config, PAIR).apply)(late, grads).params, plain.state.params)


def test_hyper_parameters_are_numbers_of_the_state(plain: Plain) -> None:
    still = plain.state.replace(hyper={**plain.state.hyper, "learning_rate": jnp.float32(0.0)})
    grads, _ = plain.gradient(plain.algorithm.publish(still), plain.batch, KEY)
    assert same(plain.apply(still, grads).params, still.params)
    short = plain.state.replace(hyper={**plain.state.hyper, "gamma": jnp.float32(0.0)})
    assert not same(grads, plain.gradient(plain.algorithm.publish(short), plain.batch, KEY)[0])


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"rollout": 0},
        {"rmsprop_eps": 0},
        {"rmsprop_decay": 1.0},
        {"gae_lambda": 0.9},
        {"correction": "on"},
    ):
        with pytest.raises(ValidationError):
            A3CConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match="schedule_env_steps"):
        A3CConfig(learning_rate_schedule="linear")
