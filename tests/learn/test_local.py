"""Learning in worlds in Python, and on the debugging ladder, through the local dataflow.

Returns are of fresh test episodes with sampled actions, unless it says greedy.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.collect import collect, init_lanes
from marl.dataflow.learning import trajectory_of
from marl.dataflow.local import Local
from marl.evaluate.protocol import Evaluator
from marl.runner.build import build_evaluator, build_local, resolved
from marl.runner.load import config_from, load_experiment
from marl.runner.plan import Plan, make_plan

from .spread import played

pytestmark = [pytest.mark.learn, pytest.mark.long]

SMALL = {"rollout": 16, "epochs": 4, "minibatches": 2, "hidden_sizes": [16], "learning_rate": 5e-3}


# ---- the debugging ladder, in JAX worlds ---------------------------------------------------------------------------


def climbed(env: str, agents: dict[str, Any], updates: int) -> tuple[Plan, Local]:
    """A plan, and its run after so many updates."""
    data = {
        "name": "probe",
        "seed": 1,
        "env": {"id": env},
        "agents": agents,
        "dataflow": {"kind": "local", "num_envs": 16, "slots": 2, "updates_per_dispatch": updates},
        "stop": {"env_steps": 10**9},
    }
    plan = make_plan(config_from(data))
    local = build_local(resolved(plan), plan)
    local.dispatch(local.init(), [0])
    return plan, local


def values(plan: Plan, local: Local) -> tuple[Any, Any]:
    """What the critic says of the rows of one fresh rollout `[T, B, n]`, and those rows."""
    policy: Any = plan.policies["all"]
    lanes = init_lanes(plan.jax_env, plan.policies, local.published(local, 0), jax.random.split(jax.random.key(0), 4))
    _, rollout = collect(plan.jax_env, plan.policies, local.published(local, 0), lanes, 16, record=("all",))
    learner = local.runs[0].stages["all"].learner.state
    return policy.values(learner, trajectory_of(policy, "all", rollout, learner.updates))["agent"], rollout.step


@pytest.mark.slow
def test_the_critic_learns_a_constant_value() -> None:
    predicted, step = values(*climbed("probe_value_v0", {"all": {"algorithm": "ppo", **SMALL}}, 40))
    np.testing.assert_allclose(predicted[np.asarray(step.first)], 1.0, atol=0.05)


@pytest.mark.slow
def test_truncation_bootstraps_and_termination_does_not() -> None:
    """Reward 1 a step for ever is worth 1 / (1 - gamma) = 2, though no episode lasts that long."""
    ppo = {"algorithm": "ppo", **SMALL, "gamma": 0.5, "agent_id": False, "last_action": False}
    predicted, step = values(*climbed("probe_truncation_v0", {"all": ppo}, 150))
    alive = np.asarray(step.alive["agent"]) & ~np.asarray(step.last)[..., None]
    np.testing.assert_allclose(predicted[alive], 2.0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "agents"),
    [
        ("probe_coordination_v0", {"all": {"algorithm": "mappo", **SMALL}}),
        ("probe_roles_v0", {role: {"algorithm": "ppo", **SMALL} for role in ("leader", "follower")}),
    ],
)
def test_several_agents_and_several_learners_reach_the_best_return(env: str, agents: dict[str, Any]) -> None:
    plan, local = climbed(env, agents, 100)
    found = Evaluator(plan.jax_env, plan.policies, greedy=True).run(local.published(local, 0), "test", 64)
    assert min(float(np.mean(returns)) for returns in found.returns.values()) >= 0.95


# ---- worlds in Python ----------------------------------------------------------------------------------------------


def trained(repository: Path, name: str, *overrides: str, episodes: int = 100) -> list[float]:
    """By seed, the mean return of one agent, after the training that an experiment's file describes."""
    plan = make_plan(load_experiment(str(repository / "experiments" / name), overrides).config)
    config = resolved(plan)
    local = build_local(config, plan)
    steps = 0
    local.init()
    while steps < (config.stop.env_steps or 0):
        _, result = local.dispatch(local, [steps])
        steps += int(result.env_steps.min())
    evaluator = build_evaluator(config, plan)
    found = [evaluator.run(local.published(local, index), "test", episodes) for index in range(len(local.seeds))]
    local.close()
    return [float(np.mean(result.returns["agent"])) for result in found]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("a3c", marks=pytest.mark.slow)])
def test_gymnasium_s_cart_and_pole_is_solved_in_every_seed(repository: Path, algorithm: str) -> None:
    found = trained(repository, f"gymnasium/cartpole_{algorithm}.yaml")
    assert len(found) == 3
    assert min(found) >= 475.0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mpe2") is None, reason="needs mpe2: scripts/test --all, or pip install -e '.[worlds]'"
)
@pytest.mark.parametrize("algorithm", ["ippo", "mappo"])
def test_simple_spread_is_learnt_half_of_the_way_to_a_driver_with_assignments(repository: Path, algorithm: str) -> None:
    random, driver = (played(greedy) for greedy in (False, True))
    assert driver > random + 15.0
    found = trained(repository, f"pettingzoo/simple_spread_{algorithm}.yaml", "seed=1")
    assert min(found) >= (random + driver) / 2
