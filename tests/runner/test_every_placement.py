"""Every registered algorithm in every registered world, and in two in Python, in every placement: three updates, a
checkpoint, resume, evaluation, and what the run folder must hold; or one line that says why not, and exit code 2.

New worlds and algorithms are covered as soon as they are registered.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marl import agents, envs
from marl.cli import main
from marl.core.errors import UserError
from marl.dataflow.ray_session import Session, SessionOptions
from marl.io.checkpoint import list_checkpoints
from marl.io.jsonl import read_rows
from marl.runner.build import resolved
from marl.runner.load import load_experiment
from marl.runner.plan import make_plan

pytestmark = [pytest.mark.long, pytest.mark.ray]

WORLD = Path(__file__).parent / "local" / "hide_v0.py"
IN_PYTHON = ("pettingzoo:hide_v0.py", "gymnasium:CartPole-v1")
PLACEMENTS = {
    "fused": "kind: fused, num_envs: 4, updates_per_dispatch: 1",
    "local": "kind: local, num_envs: 4, slots: 2, updates_per_dispatch: 1",
    "ray": "kind: ray, num_envs: 4, slots: 2, actors: 2, updates_per_dispatch: 1",
    "rllib": "kind: rllib, num_env_runners: 1, envs_per_runner: 4",
}
# What is small enough for a test, by option name; an algorithm takes those that it has.
SMALL = {
    "rollout": 4,
    "epochs": 1,
    "minibatches": 1,
    "hidden_sizes": [8],
    "population": 4,
    "episodes": 1,
    "train_batch_size": 16,
    "minibatch_size": 8,
}
CHEAP = ("probe_credit_v0", ("fused", "local", "ray"))  # where what is refused is tested by default, and one run on Ray


def algorithms() -> list[str]:
    """One name for each class that learns."""
    found: dict[Any, str] = {}
    for name in agents.REGISTRY.names():
        made = agents.REGISTRY.resolve(name)
        if hasattr(made, "update") or hasattr(made, "ask") or hasattr(made, "trained_by"):
            found.setdefault(made, name)
    return list(found.values())


def triples() -> list[Any]:
    worlds = [*envs.REGISTRY.names(), *IN_PYTHON]

    def default(algorithm: str, world: str, placement: str) -> bool:
        runs = (algorithm, placement) == ("ippo", "ray") or algorithm.startswith("rllib/")
        return world == CHEAP[0] and placement in CHEAP[1] and runs

    product = itertools.product(algorithms(), worlds, PLACEMENTS)
    return [pytest.param(*triple, marks=() if default(*triple) else pytest.mark.slow) for triple in product]


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """Runs of this module join one cluster; what has to be started for each are its own processes."""
    session = Session(SessionOptions(cpus=16, object_store_bytes=200 * 2**20))
    yield
    session.close()


def experiment(algorithm: str, world: str, placement: str) -> str:
    make = agents.REGISTRY.resolve(algorithm)
    options = {name: value for name, value in SMALL.items() if name in make.Config.model_fields}
    return (
        f"name: triple\nenv: {{id: '{world}'}}\nagents: {{all: {json.dumps({'algorithm': algorithm, **options})}}}\n"
        f"dataflow: {{{PLACEMENTS[placement]}}}\nstop: {{env_steps: 30}}\n"
        "evaluate: {every: 16, episodes: 2, video: false}\ncheckpoint: {every: 16}\n"
    )


def why_not(path: str) -> str | None:
    """Why this experiment cannot run, in words; None if it can."""
    try:
        resolved(make_plan(load_experiment(path).config))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("algorithm", "world", "placement"), triples())
@pytest.mark.usefixtures("_cluster")
def test_a_triple_trains_resumes_and_is_evaluated_or_says_why_not(
    algorithm: str,
    world: str,
    placement: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if placement == "rllib" and importlib.util.find_spec("torch") is None:
        pytest.skip("RLlib's learners need torch: extra rllib-torch")
    monkeypatch.chdir(tmp_path)
    shutil.copy(WORLD, tmp_path)
    (tmp_path / "triple.yaml").write_text(experiment(algorithm, world, placement))
    reason = why_not("triple.yaml")
    code = main(["train", "triple.yaml"])
    said = capsys.readouterr().err
    if reason is not None:
        assert code == 2
        assert reason in said
        assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
        assert not (tmp_path / "runs").exists()
        return
    assert code == 0, said
    (run,) = (tmp_path / "runs" / "triple").iterdir()
    rows = read_rows(run / "metrics.jsonl")
    trained = [row for row in rows if row["kind"] == "train"]
    assert trained[-1]["env_steps"] >= 30
    before = trained[-1]["updates"]
    assert before >= 1
    assert main(["resume", str(run), f"stop.env_steps={trained[-1]['env_steps'] + 16}"]) == 0
    rows = read_rows(run / "metrics.jsonl")
    assert [row["env_steps"] for row in rows] == sorted(row["env_steps"] for row in rows)
    assert rows[-1]["updates"] > before
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    folder = {path.name for path in run.iterdir()}
    assert {"config.yaml", "meta.json", "metrics.jsonl", "evaluations.json", "tb", "checkpoints", "policy"} <= folder
    assert json.loads((run / "meta.json").read_text())["status"] == "done"
    assert list_checkpoints(run / "checkpoints")
