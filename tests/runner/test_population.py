"""Random search as a person would use it, and what cannot be searched, or cannot be asked of a search."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marl
from marl.cli import main
from marl.io.faults import reset_faults
from marl.io.jsonl import read_rows
from marl.io.metrics import Row
from marl.runner.build import resolved
from marl.runner.load import config_from, load_experiment
from marl.runner.plan import Plan, make_plan
from marl.runner.populations import build_population

SEARCH = {"algorithm": "random_search", "population": 40, "candidates": 4, "candidate_episodes": 4, "hidden_sizes": [8]}
CARTPOLE = """
name: search
env: {id: "gymnasium:CartPole-v1"}
agents:
  all: {algorithm: random_search, population: 40, candidates: 4, candidate_episodes: 4, hidden_sizes: [8]}
dataflow: {num_envs: 16}
stop: {env_steps: 6000}
evaluate: {every: 3000, episodes: 8, video: false}
checkpoint: {every: 1000}
"""


def plan_of(world: str, agents: Any = None, **dataflow: Any) -> Plan:
    data = {
        "name": "search",
        "env": {"id": world},
        "agents": agents or {"all": SEARCH},
        "dataflow": dataflow,
        "stop": {"env_steps": 1},
    }
    return make_plan(config_from(data))


# ---- the main job --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that SIGTERM stopped in its second generation, and that was resumed."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "search.yaml").write_text(CARTPOLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MARL_FAULT", "metrics.write:1:term")
        assert main(["train", "search.yaml", "--quiet"]) == 130
        patch.delenv("MARL_FAULT")
        reset_faults()
        (run,) = (folder / "runs" / "search").iterdir()
        assert main(["resume", str(run), "--quiet"]) == 0
    return run


def train_rows(run: Path) -> list[Row]:
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.long
@pytest.mark.learn
def test_the_best_of_a_few_hundred_networks_is_far_better_than_one_at_random(finished: Path) -> None:
    rows = train_rows(finished)
    assert [row["updates"] for row in rows] == list(range(1, len(rows) + 1))  # no generation twice, none left out
    anyone = float(np.mean([row["ga/all/mean"] for row in rows]))
    best = json.loads((finished / "evaluations.json").read_text())["evaluations"][-1]["episodes"]["returns"]
    assert anyone < 40
    assert np.mean(list(best.values())) > 4 * anyone
    assert [row["ga/all/best_so_far"] for row in rows] == sorted(row["ga/all/best_so_far"] for row in rows)


@pytest.mark.long
def test_generations_are_counted_exactly_and_told_in_full(finished: Path) -> None:
    rows = train_rows(finished)
    for row in rows:
        assert row["episode/count"] == 40 + 4 * 4
        assert {"ga/all/best", "ga/all/mean", "ga/all/median", "ga/all/env_steps"} <= set(row)
    total = 0
    for row in rows:
        total += round(row["episode/count"] * row["episode/length"])
        assert row["env_steps"] == total
    assert total == sum(int(row["ga/all/env_steps"]) for row in rows)


@pytest.mark.long
def test_what_was_found_is_a_policy_like_any_other(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = marl.load_policy(str(finished))
    action, _ = policy.act(np.zeros((1, 4), np.float32))
    assert action.shape == (1,)
    assert main(["evaluate", str(finished), "--episodes", "2", "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :])["metrics"]["length"]["mean"] > 20


# ---- placements ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_fused_and_local_play_the_same_search() -> None:
    logs = []
    plan = plan_of("probe_roles_v0", num_envs=8)  # one for both, so that its programs are compiled once
    for kind in ("fused", "local"):
        config = plan_of("probe_roles_v0", kind=kind, num_envs=8).config
        run = build_population(resolved(dataclasses.replace(plan, config=config)), plan, "all").init()
        logs.append([run.dispatch(run, [0])[1] for _ in range(2)])
        run.close()
    for one, other in zip(*logs, strict=True):
        assert one.metrics == other.metrics
        assert one.returns == other.returns


@pytest.mark.parametrize(
    ("dataflow", "slots"),
    [
        ({}, 1),
        ({"workers": 1}, 4),
        ({"workers": 2}, 4),
        ({"workers": 4}, 4),
        ({"workers": 8}, 8),
        ({"workers": 2, "slots": 2}, 2),
        ({"kind": "ray", "actors": 1}, 4),
        ({"kind": "ray", "actors": 4}, 4),
    ],
)
def test_tasks_are_as_large_whether_one_or_four_processes_play(dataflow: dict[str, Any], slots: int) -> None:
    found = resolved(plan_of("gymnasium:CartPole-v1", **dataflow)).dataflow
    assert found.slots == slots  # type: ignore[union-attr]
    assert found.updates_per_dispatch == 1


def test_the_example_of_the_guide_is_a_search(repository: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (repository / "docs/guides/populations.md").read_text(), re.DOTALL)
    (tmp_path / "example.yaml").write_text(text)
    plan = make_plan(load_experiment(str(tmp_path / "example.yaml")).config)
    assert plan.population == "all"
    assert resolved(plan).dataflow.slots == 4  # type: ignore[union-attr]


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "agents", "dataflow", "words"),
    [
        (
            "probe_roles_v0",
            {"leader": SEARCH, "follower": {"algorithm": "ppo"}},
            {},
            "'follower' learns by gradients beside the population of 'leader'",
        ),
        (
            "probe_roles_v0",
            {"leader": SEARCH, "follower": SEARCH},
            {},
            "'follower' is searched for, too beside the population of 'leader'",
        ),
        ("gymnasium:CartPole-v1", None, {"max_staleness": 1}, "dataflow.max_staleness: 1 means nothing"),
        ("gymnasium:CartPole-v1", None, {"gradients": "asynchronous"}, "dataflow.gradients: asynchronous means"),
        ("gymnasium:CartPole-v1", None, {"kind": "ray", "inference": "served"}, "dataflow.inference: served means"),
        ("gymnasium:CartPole-v1", None, {"kind": "ray", "learners": 2}, "dataflow.learners: 2 means nothing"),
        ("gymnasium:CartPole-v1", None, {"workers": 3}, "3 processes cannot share 32 lanes evenly"),
        ("cartpole_v0", None, {"kind": "rllib"}, "RLlib does not train the population of 'all'"),
        ("cartpole_v0", {"all": {**SEARCH, "candidates": 50}}, {}, "50 candidates of 40 individuals"),
        ("cartpole_v0", {"all": {**SEARCH, "sigma": 0.1}}, {}, "sigma"),
    ],
)
def test_what_a_search_cannot_do_is_a_mistake_of_the_user(
    world: str, agents: Any, dataflow: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "name": "bad",
        "env": {"id": world},
        "agents": agents or {"all": SEARCH},
        "dataflow": dataflow,
        "stop": {"env_steps": 100},
        "runs_dir": str(tmp_path / "runs"),
        "compilation_cache": False,
    }
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    assert main(["train", str(path), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert str(path) in message
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()
