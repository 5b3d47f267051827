"""Gauges show numbers by kind of part, and nothing outside Ray."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from marl.dataflow.ray_metrics import Gauges, metric_name


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("perf/env_steps_per_s", "marl_perf_env_steps_per_s"),
        ("flow/bottleneck/Learner", "marl_flow_bottleneck_learner"),
        ("loss/agent-0/", "marl_loss_agent_0"),
    ],
)
def test_names_are_those_that_stores_of_metrics_take(tag: str, name: str) -> None:
    assert metric_name(tag) == name


def test_outside_ray_nothing_is_shown_and_ray_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert Gauges("actor").set({"perf/env_steps_per_s": 1.0}) == 0
    assert "ray" not in sys.modules


def test_a_number_has_one_gauge_tagged_by_kind_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys, self.values = name, tag_keys, []
            made.append(self)

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def set(self, value: float) -> None:
            self.values.append(value)

    ray = types.ModuleType("ray")
    ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    metrics = types.ModuleType("ray.util.metrics")
    metrics.Gauge = Gauge  # type: ignore[attr-defined]
    for name, module in (("ray", ray), ("ray.util", types.ModuleType("ray.util")), ("ray.util.metrics", metrics)):
        monkeypatch.setitem(sys.modules, name, module)
    gauges = Gauges("actor")
    assert gauges.set({"flow/queue_depth": 3, "x": float("nan"), "name": "text", "flag": True}) == 1
    assert gauges.set({"flow/queue_depth": 4}) == 1
    (gauge,) = made
    assert (gauge.name, gauge.tag_keys, gauge.tags) == ("marl_flow_queue_depth", ("role_kind",), {"role_kind": "actor"})
    assert gauge.values == [3.0, 4.0]
