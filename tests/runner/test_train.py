"""The main job on a probe world, as a person would do it: train, look, resume, evaluate, render, load the policy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import marl
from marl.cli import main
from marl.io.arrays import read_file
from marl.io.checkpoint import list_checkpoints
from marl.io.jsonl import read_rows

pytestmark = pytest.mark.long

CONFIG = """
name: job
{seeds}
env: {{id: {env}}}
agents: {{{role}: {{algorithm: {algorithm}}}}}
dataflow: {{num_envs: 4, updates_per_dispatch: 2}}
stop: {{env_steps: {steps}}}
evaluate: {{every: 120, episodes: 8, video: true}}
checkpoint: {{every: 100, keep: 2}}
"""
SMALL_PPO = "ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]"


def write(folder: Path, **changes: object) -> Path:
    values = {"seeds": "seed: 3", "env": "probe_credit_v0", "role": "all", "algorithm": SMALL_PPO, "steps": 240}
    path = folder / "job.yaml"
    path.write_text(CONFIG.format(**{**values, **changes}))
    return path


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs" / "job").iterdir()
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    assert (
        main(["train", str(write(folder, seeds="seeds: [3, 4]")), "--runs-dir", str(folder / "runs"), "--quiet"]) == 0
    )
    return only_run(folder)


def test_a_run_folder_holds_all_that_resuming_evaluating_and_citing_need(finished: Path) -> None:
    found = {str(p.relative_to(finished)) for p in finished.rglob("*")}
    assert {"config.yaml", "meta.json", "metrics.jsonl", "checkpoints/latest"} <= found
    for seed in (3, 4):
        assert {f"seed_{seed}/{part}" for part in ("tb", "policy", "policy_best", "evaluations.json")} <= found
    assert 2 <= len(list_checkpoints(finished / "checkpoints")) <= 4  # the newest two, and each seed's best
    meta = json.loads((finished / "meta.json").read_text())
    assert meta["status"] == "done"
    assert {"versions", "machine", "commit", "config_hash", "roles"} <= set(meta)


def test_every_metrics_row_carries_its_seed_and_counts_on_without_gaps(finished: Path) -> None:
    rows = read_rows(finished / "metrics.jsonl")
    for seed in (3, 4):
        own = [row for row in rows if row["kind"] == "train" and row["seed"] == seed]
        steps = [int(row["env_steps"]) for row in own]
        assert steps == sorted(set(steps))
        assert steps[-1] >= 240
        assert [row["updates"] for row in own] == [2 * (i + 1) for i in range(len(own))]
        tags = set(own[-1])
        assert {"episode/return/agent", "loss/all/policy", "policy/all/entropy", "perf/env_steps_per_s"} <= tags
        assert any(tag.startswith("reward/agent/") for tag in tags)
    assert sum(row["kind"] == "eval" for row in rows) >= 4


def test_the_stored_config_is_complete_and_runs_again_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    again = ["train", str(finished / "config.yaml"), "--runs-dir", str(tmp_path / "runs"), "--quiet"]
    assert main(again) == 0
    other = only_run(tmp_path)
    assert (other / "config.yaml").read_text() == (finished / "config.yaml").read_text()
    newest = [list_checkpoints(run / "checkpoints")[-1] for run in (finished, other)]
    ours, theirs = (read_file(path / "arrays.bin")[0] for path in newest)
    for a, b in zip(ours, theirs, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(a.data, b.data)


def test_a_finished_run_can_be_resumed_to_a_later_stop_and_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write(tmp_path)), "--runs-dir", str(tmp_path / "runs"), "--quiet"]) == 0
    run = only_run(tmp_path)
    assert main(["resume", str(run), "stop.env_steps=400", "--quiet"]) == 0
    assert read_rows(run / "metrics.jsonl")[-1]["env_steps"] >= 400
    meta = json.loads((run / "meta.json").read_text())
    assert meta["resumed"][0]["overrides"] == ["stop.env_steps=400"]
    assert main(["resume", str(run), "agents.all.learning_rate=1"]) == 2
    assert "agents" in capsys.readouterr().err


def test_evaluate_prints_every_seed_and_stores_test_episodes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--episodes", "16", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["seeds"]) == {"3", "4"}
    assert shown["metrics"]["return/agent"]["low"] <= shown["metrics"]["return/agent"]["mean"]
    stored = json.loads((finished / "seed_3" / "evaluations.json").read_text())["evaluations"]
    tests = [e for e in stored if e["kind"] == "test"]
    assert len(tests[-1]["episodes"]["length"]) == 16
    assert {e["kind"] for e in stored} == {"test", "validation"}


def test_evaluate_says_over_how_many_seeds_and_when_these_are_few(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--episodes", "8"]) == 0
    words = "2 seeds x 8 test episodes, sampled actions; bootstrap over seeds and episodes, preliminary"
    assert words in capsys.readouterr().out


def test_scripted_policies_are_measured_by_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, algorithm="random", role="agent")
    assert main(["evaluate", str(path), "--episodes", "64", "--json", "--runs-dir", str(tmp_path / "runs")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert 0.3 < shown["metrics"]["return/agent"]["mean"] < 0.7
    assert shown["trained"] is False
    assert main(["evaluate", str(path), "--episodes", "64", "--runs-dir", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    assert "not trained: 64 test episodes, sampled actions; bootstrap over episodes\n" in text
    assert "preliminary" not in text
    assert "seed" not in text.partition("next:")[0]
    assert main(["train", str(path), "--runs-dir", str(tmp_path / "runs")]) == 2


def test_render_writes_a_film(finished: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    assert main(["render", str(finished), "-o", str(film)]) == 0
    assert film.read_bytes()[:6] in (b"GIF89a", b"GIF87a")


def test_a_loaded_policy_acts_on_numpy_arrays(finished: Path) -> None:
    policy = marl.load_policy(str(finished), seed=4)
    action, carry = policy.act(np.zeros((1, 3), np.float32))
    assert isinstance(action, np.ndarray)
    assert action.shape == (1,)
    again, _ = policy.act(np.zeros((1, 3), np.float32), carry)
    assert again.shape == (1,)


def test_loading_a_policy_imports_no_ray(finished: Path) -> None:
    code = f"import sys, marl; marl.load_policy({str(finished)!r}); print({{'ray', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_seed_is_a_user_error(finished: Path) -> None:
    with pytest.raises(marl.core.errors.UserError, match="no seed 9; it has 3, 4"):
        marl.load_policy(str(finished), seed=9)


def test_a_world_and_an_algorithm_outside_this_tree_train(
    tiny_marl_installed: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write(tmp_path, env="tiny_marl.worlds:Bandit", algorithm="tiny_marl.agents:GradientBandit")
    assert main(["train", str(path), "--runs-dir", str(tmp_path / "runs"), "--quiet"]) == 0
    named = write(tmp_path, env="tiny_bandit_v0", algorithm="tiny_gradient_bandit")
    assert main(["train", str(named), "--runs-dir", str(tmp_path / "runs"), "--quiet"]) == 0


def test_every_command_ends_with_the_next_ones_to_type(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), "--episodes", "2"]) == 0
    assert re.search(r"next:\n  marl \w+", capsys.readouterr().out)


def test_dry_run_shows_config_devices_and_memory_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write(tmp_path)), "--dry-run", "--runs-dir", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "hidden_sizes: [8]" in shown
    assert re.search(r"# devices: \['cpu:0", shown)
    assert re.search(r"# memory_mb: [0-9.]+", shown)
    assert not (tmp_path / "runs").exists()
