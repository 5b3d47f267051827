"""The local placement learns too: in one batch, from data some versions old, and by gradients that arrive late."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from marl.core.collect import collect, init_lanes
from marl.dataflow.learning import trajectory_of
from marl.evaluate.protocol import Evaluator
from marl.runner.build import build_local, resolved
from marl.runner.load import config_from
from marl.runner.plan import make_plan

pytestmark = [pytest.mark.learn, pytest.mark.long]

PPO = {"algorithm": "ppo", "rollout": 16, "minibatches": 2, "hidden_sizes": [16], "learning_rate": 5e-3}
A3C = {"algorithm": "a3c", "hidden_sizes": [16], "learning_rate": 1e-2, "rmsprop_eps": 1e-3}
RUNS = {
    "ppo": (PPO, {}, 120),
    "stale ppo": ({**PPO, "correction": "vtrace"}, {"max_staleness": 3}, 120),
    "asynchronous a3c": (A3C, {"slots": 4}, 1200),
    "stale a3c": ({**A3C, "correction": "vtrace"}, {"slots": 4, "max_staleness": 3, "gradients": "batch"}, 200),
}


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(n, marks=pytest.mark.slow) for n in RUNS if n != "ppo")])
def test_credit_and_its_value_are_learnt(name: str) -> None:
    """The prize two rows later is found, and the first row is worth gamma."""
    agent, dataflow, updates = RUNS[name]
    data = {
        "name": "probe",
        "seed": 1,
        "env": {"id": "probe_credit_v0"},
        "agents": {"all": agent},
        "dataflow": {"kind": "local", "num_envs": 16, "updates_per_dispatch": updates, **dataflow},
        "stop": {"env_steps": 10**9},
    }
    plan = make_plan(config_from(data))
    local = build_local(resolved(plan), plan)
    local.dispatch(local.init(), [0])
    params, policy = local.published(local, 0), plan.policies["all"]
    result = Evaluator(plan.env, plan.policies, greedy=True).run(params, "test", 64)
    assert float(np.mean(result.returns["agent"])) > 0.99

    lanes = init_lanes(plan.jax_env, plan.policies, params, jax.random.split(jax.random.key(0), 4))
    _, rollout = collect(plan.jax_env, plan.policies, params, lanes, policy.needs.rollout, record=("all",))
    learner: Any = local.runs[0].stages["all"].learner.state
    batch = trajectory_of(policy, "all", rollout, learner.updates)
    predicted = policy.values(learner, batch)["agent"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(predicted[np.asarray(rollout.step.first)], 0.99, atol=0.05)
