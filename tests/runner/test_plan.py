from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl.core.errors import ConfigError
from marl.runner.load import config_from, load_experiment, packaged_experiments, resolved_yaml
from marl.runner.plan import MisfitError, make_plan


def config(agents: dict[str, Any], env: dict[str, Any] | None = None) -> Any:
    return config_from(
        {"name": "x", "env": env or {"id": "probe_roles_v0"}, "agents": agents, "stop": {"env_steps": 1}}
    )


def test_each_role_has_its_policy_in_the_order_of_the_file() -> None:
    plan = make_plan(config({"follower": {"algorithm": "random"}, "leader": {"algorithm": "ippo"}}))
    assert list(plan.policies) == ["follower", "leader"]
    assert plan.policies["leader"].roles == ("leader",)
    assert plan.learners == ("leader",)


def test_all_and_group_give_one_policy_several_roles() -> None:
    for agents in (
        {"all": {"algorithm": "random"}},
        {"team": {"algorithm": "random", "group": ["leader", "follower"]}},
    ):
        plan = make_plan(config(agents))
        (policy,) = plan.policies.values()
        assert policy.roles == ("leader", "follower")


def test_policy_with_a_checkpoint_does_not_learn(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    agents = {
        "leader": {"algorithm": "ippo", "checkpoint": str(tmp_path / "policy")},
        "follower": {"algorithm": "ippo"},
    }
    plan = make_plan(config(agents))
    assert plan.learners == ("follower",)
    assert plan.frozen == {"leader": tmp_path / "policy"}


def test_plan_writes_every_option_out() -> None:
    plan = make_plan(config({"all": {"algorithm": "ippo", "preset": "paper"}}, {"id": "cartpole_v0"}))
    options = plan.config.agents["all"].options
    assert options["epochs"] == 15
    assert options["hidden_sizes"] == [64, 64]


@pytest.mark.parametrize("name", packaged_experiments())
def test_plan_of_a_written_out_config_is_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    plan = make_plan(load_experiment(name).config)
    path.write_text(resolved_yaml(plan.config))
    assert make_plan(load_experiment(path).config).config == plan.config


def test_axis_reaches_every_policy() -> None:
    plan = make_plan(config({"all": {"algorithm": "ippo"}}, {"id": "cartpole_v0"}))
    assert plan.with_axis("data").policies["all"] is not plan.policies["all"]


def test_policy_that_cannot_play_in_this_world_is_refused() -> None:
    with pytest.raises(MisfitError, match=r"^agents\.all: action: 7 is not an action of role 'cart'"):
        make_plan(config({"all": {"algorithm": "scripted/constant", "action": 7}}, {"id": "cartpole_v0"}))


def test_role_named_twice_is_refused() -> None:
    agents = {"team": {"algorithm": "random", "group": ["leader", "leader"]}, "follower": {"algorithm": "random"}}
    with pytest.raises(ConfigError, match="role 'leader' is already played by 'team'"):
        make_plan(config(agents))
