"""Learning on Ray, with actions inferred in the actors and by a policy server. Returns are of fresh test episodes with
sampled actions, unless it says greedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.collect import collect, init_lanes
from marl.dataflow.learning import trajectory_of, unpack
from marl.evaluate.protocol import Evaluator
from marl.runner.build import build_evaluator, build_ray, resolved
from marl.runner.load import config_from, load_experiment
from marl.runner.plan import make_plan

from .spread import played

pytestmark = [pytest.mark.learn, pytest.mark.ray, pytest.mark.slow]

PPO = {"algorithm": "ppo", "rollout": 16, "epochs": 4, "minibatches": 2, "hidden_sizes": [16], "learning_rate": 5e-3}


def test_credit_and_its_value_are_learnt() -> None:
    """The prize two rows later is found, and the first row is worth gamma."""
    data = {
        "name": "probe",
        "seed": 1,
        "env": {"id": "probe_credit_v0"},
        "agents": {"all": PPO},
        "dataflow": {"kind": "ray", "num_envs": 16, "actors": 2, "updates_per_dispatch": 120},
        "stop": {"env_steps": 10**9},
    }
    plan = make_plan(config_from(data))
    placement = build_ray(resolved(plan), plan)
    try:
        placement.dispatch(placement.init(), [0])
        params = placement.published(placement, 0)
        trainer = placement.snapshot(placement)["runs"][0]["trainer"]
    finally:
        placement.close()
    found = Evaluator(plan.jax_env, plan.policies, greedy=True).run(params, "test", 64)
    assert float(np.mean(found.returns["agent"])) > 0.99

    policy: Any = plan.policies["all"]
    learner = unpack(trainer["stages"]["all"]["learner"]["state"], policy.init(jax.random.key(0)), "learner")
    lanes = init_lanes(plan.jax_env, plan.policies, params, jax.random.split(jax.random.key(0), 4))
    _, rollout = collect(plan.jax_env, plan.policies, params, lanes, policy.needs.rollout, record=("all",))
    predicted = policy.values(learner, trajectory_of(policy, "all", rollout, learner.updates))["agent"]
    np.testing.assert_allclose(predicted[np.asarray(rollout.step.first)], 0.99, atol=0.05)


def trained(repository: Path, name: str, **dataflow: Any) -> float:
    """The mean return of one agent in 100 test episodes, after the training that an experiment's file describes."""
    asked = load_experiment(str(repository / "experiments" / name)).config
    changed = {"kind": "ray", "num_envs": asked.dataflow.num_envs, "actors": 2, **dataflow}
    overrides = [f"dataflow={changed}", "seed=1"]
    plan = make_plan(load_experiment(str(repository / "experiments" / name), overrides).config)
    config = resolved(plan)
    placement = build_ray(config, plan)
    try:
        placement.init()
        steps = 0
        while steps < (config.stop.env_steps or 0):
            _, result = placement.dispatch(placement, [steps])
            steps += int(result.env_steps[0])
        params = placement.published(placement, 0)
    finally:
        placement.close()
    found = build_evaluator(config, plan).run(params, "test", 100)
    return float(np.mean(found.returns["agent"]))


@pytest.mark.parametrize("inference", ["inline", "served"])
def test_gymnasium_s_cart_and_pole_is_solved(repository: Path, inference: str) -> None:
    assert trained(repository, "gymnasium/cartpole_ppo.yaml", inference=inference) >= 475.0


@pytest.mark.skipif(
    importlib.util.find_spec("mpe2") is None, reason="needs mpe2: scripts/test --all, or pip install -e '.[worlds]'"
)
@pytest.mark.parametrize("inference", ["inline", "served"])
def test_simple_spread_is_learnt_half_of_the_way_to_a_driver_with_assignments(repository: Path, inference: str) -> None:
    random, driver = (played(greedy) for greedy in (False, True))
    assert trained(repository, "pettingzoo/simple_spread_ippo.yaml", inference=inference) >= (random + driver) / 2
