"""A study: ordinary runs, resumable, one file of evaluations and a table from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl.core.errors import ConfigError, InterruptedRunError
from marl.evaluate.records import read_evaluations
from marl.runner import study as study_module
from marl.runner.load import load_experiment, packaged_studies
from marl.runner.report import build_report
from marl.runner.study import load_study, main, run_study
from marl.runner.train import train

EXPERIMENT = """
name: tiny
seeds: [1, 2]
env: {id: probe_credit_v0}
agents: {all: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}}
dataflow: {num_envs: 4, updates_per_dispatch: 2}
stop: {env_steps: 200}
evaluate: {every: 100, episodes: 4, video: false}
checkpoint: {every: 100}
"""
STUDY = """
name: small
cost: seconds
episodes: 16
experiments: [{{experiment: {experiment}}}]
worlds: [{{id: probe_credit_v0}}]
baselines: {{random: {{algorithm: random}}}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.format(experiment=tmp_path / "tiny.yaml"))
    return path


@pytest.mark.long
def test_a_study_trains_tests_and_tabulates_once(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    assert run_study(str(study), out, notice=said.append)
    assert said == ["tiny: starting", "random: measuring", "tiny: testing"]
    records = read_evaluations(out / "small.json")
    assert sorted((r.label, r.seed) for r in records) == [("random", 0), ("tiny", 1), ("tiny", 2)]
    assert {r.kind for r in records} == {"test"}
    assert {len(r.episodes.length) for r in records} == {16}
    table = (out / "small.md").read_text()
    assert "tiny" in table
    assert "random" in table
    said.clear()
    assert run_study(str(study), out, notice=said.append)
    assert said == []


@pytest.mark.long
def test_each_world_of_a_study_has_a_file_of_its_own(study: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT.replace("{id: probe_credit_v0}", "{id: probe_memory_v0, delay: 1}"))
    worlds = "[{id: probe_memory_v0, delay: 1}, {id: probe_memory_v0, delay: 2}]"
    study.write_text(study.read_text().replace("[{id: probe_credit_v0}]", worlds))
    out = tmp_path / "out"
    assert run_study(str(study), out)
    found = {path.name: sorted({r.label for r in read_evaluations(path)}) for path in out.glob("*.json")}
    assert found == {"small-1.json": ["random-1", "tiny"], "small-2.json": ["random-2"]}
    assert build_report(sorted(out.glob("*.json")), tmp_path / "again").files["table.md"].read_text().count("###") == 2


@pytest.mark.long
def test_a_run_that_was_cut_short_goes_on(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    short = load_experiment(tmp_path / "tiny.yaml", ["stop.env_steps=100", "stop.wall_time=1h"]).config
    train(short, runs_dir=str(out / "runs"), quiet=True)
    said: list[str] = []
    assert run_study(str(study), out, notice=said.append)
    assert said[0] == "tiny: going on"
    assert min(r.env_steps for r in read_evaluations(out / "small.json") if r.label == "tiny") >= 200


def test_a_request_to_stop_ends_the_whole_study(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError("interrupted")

    monkeypatch.setattr(study_module, "train", stopped)
    said: list[str] = []
    with pytest.raises(InterruptedRunError):
        run_study(str(study), tmp_path / "out", notice=said.append)
    assert said == ["tiny: starting"]


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        (
            "[{{experiment: {tiny}}}, {{experiment: {tiny}, overrides: [stop.env_steps=400]}}]",
            "two experiments are named",
        ),
        ("[{{experiment: {tiny}, overrides: [stop.env_steps=null, stop.wall_time=1h]}}]", "has no stop.env_steps"),
    ],
)
def test_experiments_that_share_a_run_or_never_end_are_refused(
    study: Path, tmp_path: Path, experiments: str, message: str
) -> None:
    chosen = experiments.format(tiny=tmp_path / "tiny.yaml")
    study.write_text(f"{{name: small, cost: seconds, experiments: {chosen}}}")
    with pytest.raises(ConfigError, match=message):
        run_study(str(study), tmp_path / "out")


def test_packaged_studies_name_experiments_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name in packaged_studies():
        for part in load_study(name).experiments:
            load_experiment(part.experiment, part.overrides)
    assert main(["highwy", "--list"]) == 2
    assert "did you mean 'highway'" in capsys.readouterr().err
