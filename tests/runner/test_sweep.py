"""A sweep: ordinary runs over a grid, ranked by validation, stopped and begun again at will."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from marl import cli
from marl.core.errors import ConfigError, UserError
from marl.evaluate.records import Episodes, Evaluation, write_evaluations
from marl.runner import sweep as sweep_module
from marl.runner.runs import create_run_folder, list_runs
from marl.runner.sweep_grid import make_sweep, outcome, trial_name
from marl.runner.trial import run_trial

EXPERIMENT = """
name: tiny
seed: 1
env: {id: probe_credit_v0}
agents: {all: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}}
dataflow: {kind: fused, num_envs: 4, updates_per_dispatch: 2}
stop: {env_steps: 200}
evaluate: {every: 100, episodes: 4, video: false}
checkpoint: {every: 100}
"""
RATES = "agents.all.learning_rate=[1e-3, 3e-4]"


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return str(tmp_path / "tiny.yaml")


def fake_run(out: Path, name: str, returns: Sequence[float], *, seed: int = 1, status: str = "done") -> Path:
    """A run folder with one validation of two episodes for each return, as `marl train` leaves it."""
    run = create_run_folder(out / "runs", name)
    (run / "meta.json").write_text(json.dumps({"status": status, "seeds": [seed]}))
    (run / "config.yaml").write_text("")
    records = [
        Evaluation.model_validate(
            {
                "label": name,
                "algorithm": "ppo",
                "env": {"id": "probe_credit_v0"},
                "seed": seed,
                "env_steps": 100 * (index + 1),
                "kind": kind,
                "greedy": False,
                "episodes": Episodes(
                    seed_index=(0, 1),
                    returns={"agent": ((value - 1,), (value + 1,)), "other": ((0.0,), (0.0,))},
                    length=(1, 1),
                    agent_steps=(1, 1),
                ),
                "commit": "",
                "config_hash": "0",
                "time": float(index),
            }
        )
        for index, value in enumerate(returns)
        for kind in ("validation", "test" if index == 0 else "validation")
    ]
    write_evaluations(run / "evaluations.json", records)
    return run


def test_every_combination_is_a_trial_with_a_name_that_says_it(experiment: str) -> None:
    sweep = make_sweep(experiment, [RATES, "seed=[1,2]", "stop.env_steps=300", "agents.all.hidden_sizes=[[8, 8]]"])
    assert [trial.name for trial in sweep.trials] == [
        "tiny-learning_rate-0.001-seed-1-hidden_sizes-8x8",
        "tiny-learning_rate-0.001-seed-2-hidden_sizes-8x8",
        "tiny-learning_rate-0.0003-seed-1-hidden_sizes-8x8",
        "tiny-learning_rate-0.0003-seed-2-hidden_sizes-8x8",
    ]
    assert sweep.trials[0].values == {"agents.all.learning_rate": 0.001, "seed": 1, "agents.all.hidden_sizes": [8, 8]}
    assert sweep.trials[0].overrides[0] == "stop.env_steps=300"
    assert sweep.fixed == ("stop.env_steps=300",)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1"], "nothing to sweep"),
        (["seed=[]"], "an empty list"),
        (["seed=[1,2]", "seed=[3]"], "given twice"),
        (["seed=[1,1]"], "two combinations are the same"),
        (["seed=[1,-2]"], "seed"),
        (["env.id=[probe_credit_v0,no_world]"], "no_world"),
        (["seed=[" + ",".join(map(str, range(101))) + "]", "stop.env_steps=[1,2,3,4,5,6,7,8,9,10]"], "1,010 combin"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_before_it_begins(
    experiment: str, overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_sweep(experiment, overrides)
    assert cli.main(["sweep", experiment, *overrides, "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_stay_names_and_differ() -> None:
    names = [trial_name("x", {"a.b": value}) for value in ("p/q", "p_q", "y" * 80, "y" * 81, None, True)]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 64 and "/" not in name for name in names)


def test_trials_are_ranked_by_their_last_validation_and_not_by_tests(experiment: str, tmp_path: Path) -> None:
    sweep = make_sweep(experiment, [RATES])
    fake_run(tmp_path, sweep.trials[0].name, [90.0, 2.0])
    row = outcome(sweep.trials[0], tmp_path)
    assert (row["return"], row["best"], row["env_steps"], row["seeds"]) == (1.0, 45.0, 200, 1)
    assert outcome(sweep.trials[0], tmp_path, role="agent")["return"] == 2.0
    assert outcome(sweep.trials[1], tmp_path)["status"] == "not begun"
    with pytest.raises(UserError, match="no such role; expected one of agent, other"):
        outcome(sweep.trials[0], tmp_path, role="driver")


def test_a_sweep_tabulates_what_its_trials_did_and_does_not_repeat_them(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def train(name: str, overrides: Sequence[str], out: Path, environment: Any = None) -> int:
        ran.append(name)
        if name.endswith("0.0003") and len(ran) == 2:
            return 1
        fake_run(out, name, [3.0 if name.endswith("0.0003") else 1.0])
        return 0

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sweep_module, "run_trial", train)
    monkeypatch.setattr(sweep_module, "check_trials", lambda path, trials: None)
    out = tmp_path / "out"
    command = ["sweep", experiment, RATES, "-o", str(out)]
    assert cli.main(command) == 1
    assert "tiny-learning_rate-0.0003.log" in capsys.readouterr().out
    assert [row["status"] for row in json.loads((out / "sweep.json").read_text())["trials"]] == ["done", "failed"]
    assert cli.main(command) == 0
    assert ran == ["tiny-learning_rate-0.001", "tiny-learning_rate-0.0003", "tiny-learning_rate-0.0003"]
    rows = json.loads((out / "sweep.json").read_text())["trials"]
    assert [row["agents.all.learning_rate"] for row in rows] == [0.0003, 0.001]  # the better one first
    assert (out / "sweep.md").read_text().count("\n| tiny-") == 2
    assert cli.main(command) == 0
    assert len(ran) == 3
    assert cli.main(["sweep", experiment, "seed=[1,2]", "-o", str(out)]) == 2
    assert "holds another sweep" in capsys.readouterr().err


@pytest.mark.long
def test_a_trial_that_cannot_be_built_stops_the_sweep_before_it_begins(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["sweep", experiment, "agents.all.learning_rate=[1e-3,fast]", "-o", str(out)]) == 2
    assert "trial tiny-learning_rate-fast: command line: agents.all.learning_rate" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.long
def test_a_trial_is_a_process_that_leaves_a_run_and_a_log(experiment: str, tmp_path: Path) -> None:
    (trial,) = make_sweep(experiment, ["seed=[5]"]).trials
    (tmp_path / "config.yaml").write_text(EXPERIMENT)
    assert run_trial(trial.name, trial.overrides, tmp_path) == 0
    (run,) = list_runs(tmp_path / "runs")
    assert (run.name, run.status, run.meta["seeds"]) == ("tiny-seed-5", "done", [5])
    assert "run folder:" in (tmp_path / "logs" / "tiny-seed-5.log").read_text()
    assert run_trial(trial.name, trial.overrides, tmp_path) == 0  # done is done
    assert len(list_runs(tmp_path / "runs")) == 1


def sweep_process(*arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "marl.cli", "sweep", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.ray
def test_trials_run_side_by_side_and_leave_nothing_behind(experiment: str, tmp_path: Path) -> None:
    with sweep_process(experiment, "seed=[1,2]", "--workers", "2", "-o", str(tmp_path / "out")) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [run.status for run in list_runs(tmp_path / "out" / "runs")] == ["done", "done"]
    assert not (tmp_path / "out" / ".tune").exists()
    assert "Tuner.restore" not in output


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.ray
@pytest.mark.parametrize(("workers", "number"), [("1", signal.SIGTERM), ("2", signal.SIGINT), ("2", signal.SIGKILL)])
def test_a_sweep_that_ends_early_leaves_checkpoints_and_goes_on(
    workers: str, number: signal.Signals, experiment: str, tmp_path: Path, interruptible: None
) -> None:
    endless = ["stop.env_steps=1_000_000_000", "evaluate.every=1_000_000_000", "checkpoint.every=1_000_000_000"]
    out = tmp_path / "out"
    with sweep_process(experiment, "seed=[1,2]", *endless, "--workers", workers, "-o", str(out)) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("runs/*/*/metrics.jsonl"))) < int(workers) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), output
    while any(run.status == "running" for run in list_runs(out / "runs")) and time.monotonic() < deadline:
        time.sleep(0.2)
    runs = list_runs(out / "runs")
    assert [run.status for run in runs] == ["interrupted"] * int(workers)
    assert all(list((run.path / "checkpoints").glob("ckpt-*")) for run in runs)
    time.sleep(1)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(out).encode() not in entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
