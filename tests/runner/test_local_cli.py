"""The main job in worlds in Python, as a person would do it, from a file of one's own to a film of what was learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imageio.v2 as imageio
import jax
import numpy as np
import pytest

import marl
from marl.cli import main
from marl.io.checkpoint import list_checkpoints, load_arrays, read_header
from marl.io.faults import reset_faults
from marl.io.jsonl import read_rows
from marl.io.metrics import Row

pytestmark = pytest.mark.long

WORLD = Path(__file__).parent / "local" / "hide_v0.py"
PPO = "{algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}"
CONFIG = """
name: job
seeds: [3, 4]
env: {{id: "{id}"}}
agents: {{{agents}}}
dataflow: {{num_envs: 8, {dataflow}}}
stop: {{env_steps: {steps}}}
evaluate: {{every: 2000, episodes: 8}}
checkpoint: {{every: 1000, keep: 2}}
"""
MIXED = f"hider: {PPO}, seeker: {{algorithm: random}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("job")
    shutil.copy(WORLD, made)
    return made


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def write(folder: Path, name: str, **changes: object) -> str:
    values = {"id": "pettingzoo:hide_v0.py", "agents": MIXED, "dataflow": "updates_per_dispatch: 2", "steps": 5000}
    text = CONFIG.format(**{**values, **changes}).replace("name: job", f"name: {name}")
    (folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def only_run(folder: Path, name: str) -> Path:
    (run,) = (folder / "runs" / name).iterdir()
    return run


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """A run of 5,000 env steps that SIGTERM stopped in the middle, and that was resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = write(folder, "job")
        patch.setenv("MARL_FAULT", "metrics.write:30:term")
        assert main(["train", config, "--quiet"]) == 130
        patch.delenv("MARL_FAULT")
        reset_faults()
        run = only_run(folder, "job")
        assert json.loads((run / "meta.json").read_text())["status"] == "interrupted"
        (stopped_at, _) = read_header(list_checkpoints(run / "checkpoints")[-1])["progress"]["env_steps"]
        assert 0 < stopped_at < 5000
        assert main(["resume", str(run), "--quiet"]) == 0
    return run


def train_rows(run: Path, seed: int) -> list[Row]:
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train" and row["seed"] == seed]


def test_a_run_that_was_stopped_goes_on_without_gap_or_duplicate(finished: Path) -> None:
    assert json.loads((finished / "meta.json").read_text())["status"] == "done"
    for seed in (3, 4):
        rows = train_rows(finished, seed)
        steps = [int(row["env_steps"]) for row in rows]
        assert steps == sorted(set(steps))
        assert steps[-1] >= 5000
        assert [row["updates"] for row in rows] == [2 * (i + 1) for i in range(len(rows))]
        tags = set(rows[-1])
        assert {"episode/return/hider", "episode/return/seeker", "loss/hider/policy", "flow/policy_lag"} <= tags
        assert not any("seeker" in tag for tag in tags if tag.startswith(("loss/", "policy/")))
        assert sum(row["kind"] == "eval" and row["seed"] == seed for row in read_rows(finished / "metrics.jsonl")) == 3


def test_what_the_rows_count_adds_up(finished: Path) -> None:
    """Every episode of this world has six steps of three agents."""
    for seed in (3, 4):
        last = train_rows(finished, seed)[-1]
        assert last["flow/agent_steps"] == 3 * last["env_steps"]
        assert 0 <= int(last["env_steps"]) - 6 * int(last["flow/episodes"]) <= 8 * 6


def test_evaluate_report_and_render_know_worlds_in_python(
    finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--episodes", "16", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    means = {role: shown["metrics"][f"return/{role}"]["mean"] for role in ("hider", "seeker")}
    # Each of the two hiders is found or not in each of six rounds.
    assert 2 * means["hider"] + means["seeker"] == pytest.approx(12.0)
    assert main(["render", str(finished), "-o", "film.gif"]) == 0
    film = imageio.mimread("film.gif")
    assert len(film) == 7
    assert film[0].shape[:2] == (16, 48)
    assert main(["report", "job", "-o", "report"]) == 0
    assert (folder / "report" / "report.html").is_file()


def test_evaluation_plays_the_same_episodes_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        assert main(["evaluate", str(finished), "--episodes", "8", "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out)["metrics"])
    assert shown[0] == shown[1]


def test_a_loaded_policy_acts_for_every_role(finished: Path) -> None:
    policy = marl.load_policy(str(finished), seed=4)
    obs = {"hider": np.zeros((2, 4), np.float32), "seeker": np.zeros((1, 3), np.float32)}
    actions, _ = policy.act(obs)
    assert {role: a.shape for role, a in actions.items()} == {"hider": (2,), "seeker": (1,)}


def test_a_frozen_role_plays_what_a_run_learned_and_does_not_change(finished: Path, folder: Path) -> None:
    frozen = PPO.replace("{", f"{{checkpoint: {finished}, ")
    config = write(folder, "frozen", agents=f"hider: {frozen}, seeker: {PPO}", steps=300)
    assert main(["train", config, "seeds=null", "seed=5", "evaluate.every=null", "--quiet"]) == 0
    run = only_run(folder, "frozen")
    own, theirs = (load_arrays(place / "policy")[0] for place in (run, finished / "seed_3"))
    for ours, before in zip(jax.tree.leaves(own["hider"]), jax.tree.leaves(theirs["hider"]), strict=True):
        np.testing.assert_array_equal(ours, before)
    tags = set(train_rows(run, 5)[-1])
    assert "loss/seeker/policy" in tags
    assert "loss/hider/policy" not in tags


def test_a_dry_run_says_what_runs_where_and_trains_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder, "dry", dataflow="workers: 2")
    assert main(["train", config, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "slots: 4" in text
    assert "8 lanes in 4 slots x 2 seeds, worlds in 2 processes, inference on cpu:0, learner on cpu:0" in text
    assert "# devices: ['cpu:0 (cpu)']" in text
    assert not (folder / "runs" / "dry").exists()


def test_a_run_that_does_not_repeat_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(
        folder,
        "late",
        dataflow="workers: 1, max_staleness: 1",
        agents=MIXED.replace("ppo,", "ppo, correction: vtrace,"),
    )
    assert main(["train", config, "--dry-run"]) == 0
    assert "; not reproducible: what arrives first is learned from first" in capsys.readouterr().out


def test_check_prints_the_whole_experiment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(folder, "checked"), "dataflow.workers=2"]) == 0
    text = capsys.readouterr().out
    for part in ("kind: local", "slots: 4", "gradients: batch", "2 hider, 1 seeker; learning: hider"):
        assert part in text


def test_roles_by_hand_are_played_and_the_console_says_what_runs_where(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = f"first: {PPO}, second: {{algorithm: scripted/constant, action: 2}}, seeker: {PPO}"
    config = write(folder, "roles", agents=agents, steps=200)
    roles = "env.roles={first: [hider_0], second: [hider_1], seeker: [seeker]}"
    assert main(["train", config, roles, "seeds=[1]", "evaluate.every=null"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "8 lanes in 1 slots x 1 seeds, worlds in this process, inference on cpu:0, learner on cpu:0; repro" in text
    assert "the bottleneck is: " in text
    meta = json.loads((only_run(folder, "roles") / "meta.json").read_text())
    assert meta["roles"] == {"first": 1, "second": 1, "seeker": 1}


def test_a_gymnasium_world_goes_the_same_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder, "cart", id="gymnasium:CartPole-v1", agents=f"all: {PPO}", dataflow="workers: 1")
    one = ["seeds=null", "seed=1", "evaluate.video=false"]
    assert main(["train", config, *one, "stop.env_steps=600", "evaluate.every=null", "--quiet"]) == 0
    run = only_run(folder, "cart")
    assert main(["resume", str(run), "stop.env_steps=1200", "--quiet"]) == 0
    steps = [int(row["env_steps"]) for row in train_rows(run, 1)]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 1200
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "8", "--greedy", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["metrics"]
    assert shown["return/agent"]["mean"] == shown["length"]["mean"]
    action, _ = marl.load_policy(str(run)).act(np.zeros((1, 4), np.float32))
    assert action.shape == (1,)


def test_a_world_that_cannot_be_drawn_trains_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = (
        WORLD.read_text()
        .replace("def render(", "def paint(")
        .replace("self, render_mode: str | None = None, ", "self, ")
    )
    (folder / "dark.py").write_text(dark.replace("        self.render_mode = render_mode\n", ""))
    config = write(folder, "dark", id="pettingzoo:dark.py", steps=300)
    assert main(["train", config, "seeds=[1]", "evaluate.every=150", "--quiet"]) == 0
    run = only_run(folder, "dark")
    events = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "event"]
    assert [row["event"] for row in events] == ["no video"]
    assert "world pettingzoo:dark.py cannot be drawn" in str(events[0]["message"])
    capsys.readouterr()
    assert main(["render", str(run), "-o", "dark.gif"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: world pettingzoo:dark.py cannot be drawn: render() raised NotImplementedError")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ('if self.round == 3: raise ValueError("boom")', "raised ValueError: boom (episode seed"),
        ("self.round = float('nan')", "obs of agent 0 of role 'hider' holds nan at index [3]"),
    ],
)
def test_a_world_that_keeps_failing_ends_the_run_in_one_line(
    harm: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"harm{len(harm)}"
    text = WORLD.read_text().replace("self.round += 1\n", f"self.round += 1\n        {harm}\n")
    (folder / f"{name}.py").write_text(text)
    assert main(["train", write(folder, name, id=f"pettingzoo:{name}.py"), "seeds=[1]", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: world pettingzoo:{name}.py: {words}")
    assert "so the run stops" in error
    assert error.count("\n") == 1
    run = only_run(folder, name)
    assert json.loads((run / "meta.json").read_text())["status"] == "failed"
