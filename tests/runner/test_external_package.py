"""A world and an algorithm outside this tree are found by their path and by the entry points of their package."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import marl.agents
import marl.envs
from marl.core.algorithm import Algorithm
from marl.core.collect import collect, init_lanes
from marl.core.conformance import check_environment
from marl.core.env import Environment
from marl.core.errors import UnknownNameError, UserError
from marl.core.types import Trajectory


def test_a_path_names_a_class_outside_the_tree(tiny_marl: Path) -> None:
    world = marl.envs.REGISTRY.resolve("tiny_marl.worlds:Bandit")
    algorithm = marl.agents.REGISTRY.resolve("tiny_marl.agents:GradientBandit")
    assert (world.__module__, algorithm.__module__) == ("tiny_marl.worlds", "tiny_marl.agents")
    env = world(best=2)
    assert isinstance(env, Environment)
    assert isinstance(algorithm(algorithm.Config(), env.roles), Algorithm)


def test_entry_points_are_names_like_any_other(tiny_marl_installed: tuple[Path, Path]) -> None:
    assert "tiny_bandit_v0" in marl.envs.REGISTRY.names()
    assert "tiny_gradient_bandit" in marl.agents.REGISTRY.names()
    assert marl.envs.REGISTRY.resolve("tiny_bandit_v0").__name__ == "Bandit"
    assert marl.agents.REGISTRY.resolve("tiny_gradient_bandit").__name__ == "GradientBandit"
    with pytest.raises(UnknownNameError, match="did you mean 'tiny_bandit_v0'"):
        marl.envs.REGISTRY.resolve("tiny_bandit_v1")


def test_the_entry_points_are_gone_with_the_package(tiny_marl: Path) -> None:
    assert "tiny_bandit_v0" not in marl.envs.REGISTRY.names()


def test_a_world_from_an_entry_point_is_shown_to_pettingzoo(tiny_marl_installed: tuple[Path, Path]) -> None:
    from marl.envs import tiny_bandit_v0  # type: ignore[attr-defined]

    env = tiny_bandit_v0.parallel_env(pullers=1)
    env.reset(seed=0)
    assert env.step({"puller_0": 1})[1] == {"puller_0": 1.0}


def test_the_world_outside_the_tree_conforms(tiny_marl: Path) -> None:
    findings = check_environment(marl.envs.REGISTRY.resolve("tiny_marl.worlds:Bandit")())
    assert [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tiny_marl.worlds:Bandito", "did you mean 'Bandit'"),
        ("tiny_marl.world:Bandit", "no module named 'tiny_marl.world'"),
        ("tiny_marl.worlds:", "is not of the form package.module:Name"),
    ],
)
def test_a_mistyped_path_is_explained(tiny_marl: Path, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        marl.envs.REGISTRY.resolve(target)


def test_the_algorithm_outside_the_tree_learns_in_the_actor_loop(tiny_marl: Path) -> None:
    env = marl.envs.REGISTRY.resolve("tiny_marl.worlds:Bandit")(best=2)
    kind = marl.agents.REGISTRY.resolve("tiny_marl.agents:GradientBandit")
    algorithm = kind(kind.Config(), env.roles)
    learner = algorithm.init(jax.random.key(0))

    def acting(state: object) -> dict[str, object]:
        return {"puller": algorithm.publish(state)}

    @jax.jit
    def advance(learner, lanes):  # type: ignore[no-untyped-def]
        lanes, seen = collect(
            env, {"puller": algorithm}, acting(learner), lanes, algorithm.needs.rollout, record=("puller",)
        )
        batch = Trajectory(
            step=seen.step,
            action=seen.action,
            extras=seen.extras["puller"],
            carry=seen.carry["puller"],
            next_action=seen.next_action,
            version=jnp.zeros(16, jnp.int32),
        )
        learner, _ = algorithm.update(learner, batch, jax.random.key(0))
        return learner, lanes

    lanes = init_lanes(env, {"puller": algorithm}, acting(learner), jax.random.split(jax.random.key(1), 16))
    for _ in range(40):
        learner, lanes = advance(learner, lanes)
    chance = jax.nn.softmax(algorithm.publish(learner)["puller"])[:, 2]
    assert (chance > 0.9).all()
