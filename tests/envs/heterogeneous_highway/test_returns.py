"""Returns of simple drivers over many episodes, within what was measured: a change in the traffic would show here."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from marl.agents.scripted.highway import Defensive
from marl.agents.scripted.policies import Constant, Random
from marl.core.collect import collect, init_lanes
from marl.core.config import AgentConfig
from marl.envs.heterogeneous_highway.env import HeterogeneousHighway
from marl.envs.heterogeneous_highway.params import IDLE, SLOWER

pytestmark = pytest.mark.slow

EPISODES = 256


def drivers(roles):
    return {
        "random": Random(AgentConfig(), roles),
        "idle": Constant(Constant.Config(action=IDLE), roles),
        "slower": Constant(Constant.Config(action=SLOWER), roles),
        "defensive": Defensive(Defensive.Config(), roles),
    }


@pytest.mark.parametrize(
    ("scenario", "driver", "expected", "survival"),
    [
        ("mild", "random", 16.5, 20.1),
        ("mild", "idle", 50.3, 60.4),
        ("mild", "slower", 59.0, 84.3),
        ("mild", "defensive", 75.4, 84.1),
        ("chaotic", "random", 17.4, 21.1),
        ("chaotic", "idle", 45.6, 54.8),
        ("chaotic", "defensive", 75.6, 83.7),
    ],
)
def test_mean_return_is_the_measured_one(scenario, driver, expected, survival):
    env = HeterogeneousHighway(scenario=scenario)
    policies = {"all": drivers(env.roles)[driver]}

    @jax.jit
    def run(key):
        lanes = init_lanes(env, policies, {"all": ()}, jax.random.split(key, EPISODES))
        return collect(env, policies, {"all": ()}, lanes, 90, hold=True)[0].sums

    sums = run(jax.random.key(17))
    returns = np.asarray(sums.returns["vehicle"]).mean(1)
    margin = 4 * returns.std() / EPISODES**0.5
    assert abs(returns.mean() - expected) < margin
    lived = np.asarray(sums.info["survival_s"])
    assert abs(lived.mean() - survival) < 4 * lived.std() / EPISODES**0.5
    assert len(returns) == EPISODES
