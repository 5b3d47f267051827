"""PPO and A3C climb the debugging ladder: each probe has a known answer, to be reached through the dataflow.

A failing rung says what is broken: value (critic), credit (targets over time), memory (recurrence and its reset),
coordination (several agents, central critic), roles (routing of roles, masks), truncation (bootstrapping), cartpole.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from marl.core.collect import collect, init_lanes
from marl.dataflow.learning import trajectory_of
from marl.evaluate.protocol import Evaluator
from marl.runner.build import build_fused, resolved
from marl.runner.load import config_from
from marl.runner.plan import Plan, make_plan

pytestmark = pytest.mark.learn

SMALL = {"rollout": 16, "epochs": 4, "minibatches": 2, "hidden_sizes": [16], "learning_rate": 5e-3}
A3C = {"algorithm": "a3c", "hidden_sizes": [16], "learning_rate": 1e-2, "rmsprop_eps": 1e-3}


def trained(env: dict[str, Any], agents: dict[str, Any], updates: int, num_envs: int = 16) -> tuple[Plan, Any, Any]:
    """The plan, the fused run and its state after `updates` updates."""
    data = {
        "name": "probe",
        "seed": 1,
        "env": env,
        "agents": agents,
        "dataflow": {"num_envs": num_envs, "updates_per_dispatch": updates},
        "stop": {"env_steps": 10**9},
    }
    plan = make_plan(config_from(data))
    fused = build_fused(resolved(plan), plan)
    state, _ = fused.dispatch(fused.init(), [0])
    return plan, fused, state


def returns(plan: Plan, fused: Any, state: Any, episodes: int = 64) -> dict[str, float]:
    """Mean greedy return by role on held-out episodes."""
    result = Evaluator(plan.env, plan.policies, greedy=True).run(fused.published(state, 0), "test", episodes)
    return {role: float(np.mean(values)) for role, values in result.returns.items()}


def values(plan: Plan, fused: Any, state: Any) -> tuple[Any, Any]:
    """What the critic says of the rows of one fresh rollout `[T, B, n]`, and those rows."""
    policy = plan.policies["all"]
    params = fused.published(state, 0)
    lanes = init_lanes(plan.env, plan.policies, params, jax.random.split(jax.random.key(0), 4))
    _, rollout = collect(plan.env, plan.policies, params, lanes, policy.needs.rollout, record=("all",), keep_state=True)
    learner = jax.tree.map(lambda x: x[0], state.learners["all"])
    return policy.values(learner, trajectory_of(policy, "all", rollout, learner.updates)), rollout.step  # type: ignore[attr-defined]


def test_the_critic_learns_a_constant_value() -> None:
    plan, fused, state = trained({"id": "probe_value_v0"}, {"all": {"algorithm": "ppo", **SMALL}}, 40)
    predicted, step = values(plan, fused, state)
    np.testing.assert_allclose(predicted["agent"][np.asarray(step.first)], 1.0, atol=0.05)


def test_credit_reaches_back_two_steps() -> None:
    assert returns(*trained({"id": "probe_credit_v0"}, {"all": {"algorithm": "ppo", **SMALL}}, 30))["agent"] > 0.99


def test_truncation_bootstraps_and_termination_does_not() -> None:
    """Reward 1 a step for ever is worth 1 / (1 - gamma), though no episode lasts that long."""
    ppo = {"algorithm": "ppo", **SMALL, "gamma": 0.8, "agent_id": False, "last_action": False}
    plan, fused, state = trained({"id": "probe_truncation_v0"}, {"all": ppo}, 150)
    predicted, step = values(plan, fused, state)
    alive = np.asarray(step.alive["agent"]) & ~np.asarray(step.last)[..., None]
    np.testing.assert_allclose(predicted["agent"][alive], 1 / (1 - 0.8), rtol=0.06)


@pytest.mark.parametrize(("recurrent", "low", "high"), [(True, 0.95, 1.0), (False, 0.0, 0.75)])
def test_memory_needs_a_recurrent_policy(recurrent: bool, low: float, high: float) -> None:
    ppo = {"algorithm": "ppo", **SMALL, "recurrent": recurrent, "gru_size": 16, "rollout": 20, "last_action": False}
    found = returns(*trained({"id": "probe_memory_v0"}, {"all": ppo}, 120, 32), 256)["agent"]
    assert low <= found <= high


@pytest.mark.parametrize("algorithm", ["ippo", "mappo"])
def test_two_agents_coordinate(algorithm: str) -> None:
    ppo = {"algorithm": algorithm, **SMALL}
    assert returns(*trained({"id": "probe_coordination_v0"}, {"all": ppo}, 80, 32))["agent"] > 0.95


def test_two_roles_learn_by_themselves_and_masks_are_kept() -> None:
    agents = {role: {"algorithm": "ppo", **SMALL} for role in ("leader", "follower")}
    found = returns(*trained({"id": "probe_roles_v0"}, agents, 60))
    assert min(found.values()) > 0.98


def test_a_group_plays_several_roles_with_one_learner() -> None:
    agents = {"team": {"algorithm": "mappo", "group": ["leader", "follower"], **SMALL}}
    found = returns(*trained({"id": "probe_roles_v0"}, agents, 60))
    assert min(found.values()) > 0.98


def test_cartpole_balances() -> None:
    ppo = {
        "algorithm": "ppo",
        "rollout": 64,
        "learning_rate": 1e-3,
        "hidden_sizes": [32, 32],
        "value_normalisation": "running",
    }
    assert returns(*trained({"id": "cartpole_v0"}, {"all": ppo}, 120, 16), 32)["cart"] > 400


@pytest.mark.slow
def test_a3c_learns_a_constant_value() -> None:
    predicted, step = values(*trained({"id": "probe_value_v0"}, {"all": A3C}, 60))
    np.testing.assert_allclose(predicted["agent"][np.asarray(step.first)], 1.0, atol=0.05)


def test_a3c_finds_credit_and_values_it() -> None:
    plan, fused, state = trained({"id": "probe_credit_v0"}, {"all": A3C}, 200)
    assert returns(plan, fused, state)["agent"] > 0.99
    predicted, step = values(plan, fused, state)
    np.testing.assert_allclose(predicted["agent"][np.asarray(step.first)], 0.99, atol=0.05)


@pytest.mark.slow
def test_a3c_bootstraps_from_truncated_rows() -> None:
    a3c = {**A3C, "gamma": 0.8, "agent_id": False, "last_action": False}
    predicted, step = values(*trained({"id": "probe_truncation_v0"}, {"all": a3c}, 300))
    alive = np.asarray(step.alive["agent"]) & ~np.asarray(step.last)[..., None]
    np.testing.assert_allclose(predicted["agent"][alive], 1 / (1 - 0.8), atol=0.05)


@pytest.mark.slow
def test_a3c_remembers_with_a_recurrent_policy() -> None:
    a3c = {**A3C, "recurrent": True, "gru_size": 16, "last_action": False}
    assert returns(*trained({"id": "probe_memory_v0"}, {"all": a3c}, 400, 32), 256)["agent"] > 0.95


@pytest.mark.slow
def test_a3c_learns_two_roles_with_one_learner() -> None:
    agents = {"team": {**A3C, "group": ["leader", "follower"]}}
    found = returns(*trained({"id": "probe_roles_v0"}, agents, 150))
    assert min(found.values()) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["none", "role"])
def test_a3c_coordinates_two_agents(sharing: str) -> None:
    assert (
        returns(*trained({"id": "probe_coordination_v0"}, {"all": {**A3C, "sharing": sharing}}, 150, 32))["agent"]
        > 0.95
    )


@pytest.mark.slow
def test_a3c_balances_cartpole() -> None:
    a3c = {"algorithm": "a3c", "learning_rate": 3e-3, "rmsprop_eps": 1e-3}
    assert returns(*trained({"id": "cartpole_v0"}, {"all": a3c}, 1500, 16), 32)["cart"] > 450
