"""A local run that cannot fit into memory is refused before it begins."""

from __future__ import annotations

import pytest

from marl.core.errors import ConfigError
from marl.runner import memory
from marl.runner.build import resolved
from marl.runner.load import config_from
from marl.runner.plan import make_plan


def plan(num_envs: int, rollout: int = 10) -> object:
    data = {
        "name": "x",
        "env": {"id": "gymnasium:CartPole-v1"},
        "agents": {"all": {"algorithm": "ppo", "rollout": rollout}},
        "dataflow": {"num_envs": num_envs},
        "stop": {"env_steps": 1},
    }
    return make_plan(config_from(data))


def test_more_lanes_and_longer_rollouts_need_more() -> None:
    small, wide, long = plan(8), plan(16), plan(8, rollout=21)
    bytes_of = [memory.local_bytes(p.config, p) for p in (small, wide, long)]  # type: ignore[attr-defined,arg-type]
    assert bytes_of[1] == bytes_of[2] == 2 * bytes_of[0] > 0


def test_what_does_not_fit_is_refused_with_the_key_and_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**12)
    with pytest.raises(ConfigError, match=r"dataflow.num_envs: 8 lanes with rollouts of 10 rows need .* are free"):
        resolved(plan(8))  # type: ignore[arg-type]
