"""`kill -9` at ten moments, then `marl resume`: the run ends as if nothing had happened, bit for bit.

Also: damaged checkpoints, Ctrl-C and SIGTERM, full disks, and a run folder that somebody else is writing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl.io.arrays import read_file
from marl.io.checkpoint import list_checkpoints, read_header, read_manifest
from marl.io.jsonl import read_rows
from marl.io.lock import RunLock
from marl.io.metrics import Row, scalars

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("interruptible")]

SEEDS = (3, 4)
CONFIG = """
name: crash
seeds: [3, 4]
env: {id: probe_credit_v0}
agents: {all: {algorithm: ppo, rollout: 16, epochs: 1, minibatches: 1, hidden_sizes: [8]}}
dataflow: {num_envs: 4, updates_per_dispatch: 1}
stop: {env_steps: 800}
evaluate: {every: 250, episodes: 4, video: false}
checkpoint: {every: 100, keep: 3}
"""
ROWS = 46  # of an uninterrupted run: 19 dispatches and 4 evaluations of 2 seeds


class Lab:
    """Runs `marl` in processes of its own that share one folder of compiled programs."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "crash.yaml"
        self.config.write_text(CONFIG)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def marl(self, *arguments: str | Path, fault: str = "") -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return self.program("", *arguments, fault=fault)

    def program(self, code: str, *arguments: str | Path, fault: str = "") -> subprocess.CompletedProcess[str]:
        """Run one command after some lines of Python."""
        lines = f"import sys\n{code}\nfrom marl.cli import main\nsys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", lines, *map(str, arguments)],
            env={**self.environment, "MARL_FAULT": fault},
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, runs: Path) -> subprocess.Popen[str]:
        """Begin training, in the background."""
        command = [sys.executable, "-m", "marl.cli", "train", str(self.config), "--runs-dir", str(runs), "--quiet"]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def train(self, runs: Path, *overrides: str, fault: str = "") -> tuple[subprocess.CompletedProcess[str], Path]:
        """Train, and return the outcome and the run folder."""
        done = self.marl("train", self.config, *overrides, "--runs-dir", runs, "--quiet", fault=fault)
        return done, run_folder(runs)


def run_folder(runs: Path) -> Path:
    (folder,) = (runs / "crash").iterdir()
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def reference(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    done, folder = lab.train(tmp_path_factory.mktemp("reference"))
    assert done.returncode == 0, done.stderr
    assert len(read_rows(folder / "metrics.jsonl")) == ROWS
    return folder


def arrays(file: Path) -> list[tuple[str, str, bytes]]:
    return [(leaf.path, leaf.dtype, leaf.data.tobytes()) for leaf in read_file(file)[0]]


def rows_of(folder: Path, *kinds: str) -> list[Row]:
    """The rows of some kinds, without what no two runs share: times and speeds."""
    return [
        {tag: value for tag, value in row.items() if tag != "time" and not tag.startswith("perf/")}
        for row in read_rows(folder / "metrics.jsonl")
        if row["kind"] in kinds
    ]


def evaluations(folder: Path, seed: int) -> Any:
    def timeless(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: timeless(value) for key, value in node.items() if key not in ("time", "commit")}
        return [timeless(value) for value in node] if isinstance(node, list) else node

    return timeless(json.loads((folder / f"seed_{seed}" / "evaluations.json").read_text()))


def assert_same_run(folder: Path, reference: Path) -> None:
    """Whole final state, published policies, rows, evaluations and TensorBoard: equal, without gap or duplicate."""
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert ends[0].name == ends[1].name
    assert read_manifest(ends[0])["files"]["arrays.bin"] == read_manifest(ends[1])["files"]["arrays.bin"]
    assert rows_of(folder, "train", "eval") == rows_of(reference, "train", "eval")
    progress = [read_header(end)["progress"] for end in ends]
    for key in ("env_steps", "agent_steps", "updates", "episodes", "dispatches", "evaluations", "best_return"):
        assert progress[0][key] == progress[1][key]
    for seed in SEEDS:
        for policy in ("policy", "policy_best"):
            place = Path(f"seed_{seed}") / policy / "arrays.bin"
            assert arrays(folder / place) == arrays(reference / place)
        assert evaluations(folder, seed) == evaluations(reference, seed)
        assert_board_follows_rows(folder, seed)
    assert json.loads((folder / "meta.json").read_text())["status"] == "done"


def assert_board_follows_rows(folder: Path, seed: int) -> None:
    board = EventAccumulator(str(folder / f"seed_{seed}" / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        if row["seed"] == seed:
            for tag, value in scalars(row).items():
                wanted.setdefault(tag, []).append((int(row["env_steps"]), value))
    assert set(board.Tags()["scalars"]) == set(wanted)
    for tag, points in wanted.items():
        found = board.Scalars(tag)
        assert [point.step for point in found] == [step for step, _ in points]
        assert [point.value for point in found] == pytest.approx([value for _, value in points], rel=1e-6, nan_ok=True)


def assert_one_line(text: str, *parts: str) -> None:
    """An error for people: one line, no traceback."""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text


draw = random.Random(20)
INJECTED = ("checkpoint.rename:3", "metrics.flush:4", "checkpoint.arrays:2", "checkpoint.latest:5")
BEFORE_THE_FIRST = ("metrics.write:2",)
RANDOM_ROWS = tuple(f"metrics.write:{draw.randint(8, ROWS)}" for _ in range(3))
DEFAULT_TIER = ("checkpoint.rename:3", "metrics.flush:4", "metrics.write:2")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=() if moment in DEFAULT_TIER else pytest.mark.slow)
        for moment in (*INJECTED, *BEFORE_THE_FIRST, *RANDOM_ROWS)
    ],
)
def test_a_kill_then_resume_equals_an_uninterrupted_run(lab: Lab, reference: Path, tmp_path: Path, moment: str) -> None:
    killed, folder = lab.train(tmp_path, fault=f"{moment}:kill")
    assert killed.returncode == -signal.SIGKILL
    assert bool(list_checkpoints(folder / "checkpoints")) == (moment not in BEFORE_THE_FIRST)
    resumed = lab.marl("resume", folder, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert "took over the stale lock of process" in resumed.stdout
    assert_same_run(folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [draw.uniform(0.0, 0.8) for _ in range(2)])
def test_a_kill_from_outside_then_resume_equals_an_uninterrupted_run(
    lab: Lab, reference: Path, tmp_path: Path, delay_s: float
) -> None:
    process = lab.start(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("crash/*/checkpoints/ckpt-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    folder = run_folder(tmp_path)
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_two_kills_and_a_kill_inside_the_resume(lab: Lab, reference: Path, tmp_path: Path) -> None:
    killed, folder = lab.train(tmp_path, fault="checkpoint.manifest:4:kill")
    assert killed.returncode == -signal.SIGKILL
    for fault in ("metrics.write:1:kill", "checkpoint.latest:2:kill"):
        assert lab.marl("resume", folder, "--quiet", fault=fault).returncode == -signal.SIGKILL
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)


@pytest.mark.parametrize("signal_name", ["int", pytest.param("term", marks=pytest.mark.slow)])
def test_an_interrupted_run_exits_130_with_a_checkpoint_and_resumes(
    lab: Lab, reference: Path, tmp_path: Path, signal_name: str
) -> None:
    stopped, folder = lab.train(tmp_path, fault=f"metrics.write:12:{signal_name}")
    assert stopped.returncode == 130
    assert f"SIG{signal_name.upper()} received" in stopped.stdout
    assert f"marl resume {folder}" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["status"] == "interrupted"
    saved = list_checkpoints(folder / "checkpoints")[-1]
    assert read_header(saved)["progress"]["env_steps"][0] < 800
    # Nothing that was written lies behind the checkpoint.
    assert read_header(saved)["progress"]["metrics_offset"] == (folder / "metrics.jsonl").stat().st_size
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)


@pytest.mark.parametrize("signal_name", ["int", "term"])
def test_an_interrupt_before_training_exits_130_and_leaves_nothing(lab: Lab, tmp_path: Path, signal_name: str) -> None:
    stopped = lab.marl("train", lab.config, "--runs-dir", tmp_path, "--quiet", fault=f"meta.write:1:{signal_name}")
    assert stopped.returncode == 130
    assert stopped.stderr == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_killed_while_it_began_can_be_resumed(lab: Lab, reference: Path, tmp_path: Path) -> None:
    killed, folder = lab.train(tmp_path, fault="meta.write:1:kill")
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "meta.json").exists()
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("arrays.bin", "flip"),
        pytest.param("header.json", "truncate", marks=pytest.mark.slow),
        pytest.param("manifest.json", "delete", marks=pytest.mark.slow),
    ],
)
def test_resume_walks_back_over_a_damaged_checkpoint_and_says_so(
    lab: Lab, reference: Path, tmp_path: Path, name: str, harm: str
) -> None:
    folder = tmp_path / reference.name
    shutil.copytree(reference, folder)
    damaged = list_checkpoints(folder / "checkpoints")[-1]
    file = damaged / name
    if harm == "flip":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif harm == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    resumed = lab.marl("resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert f"checkpoint {damaged.name} is not valid" in resumed.stdout
    assert (folder / "checkpoints" / "quarantine" / damaged.name).is_dir()
    (event,) = rows_of(folder, "event")
    assert event["event"] == "checkpoint_invalid"
    assert_same_run(folder, reference)


def test_a_run_folder_in_use_is_refused(lab: Lab, reference: Path) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    with RunLock(reference):
        refused = lab.marl("resume", reference, "stop.env_steps=1600", "--quiet")
    assert refused.returncode == 2
    assert_one_line(refused.stderr, "in use by process", str(os.getpid()))
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing_and_a_new_stop_goes_on(
    lab: Lab, reference: Path, tmp_path: Path
) -> None:
    done, folder = lab.train(tmp_path, "stop.env_steps=400")
    assert done.returncode == 0
    rows = (folder / "metrics.jsonl").read_bytes()
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert (folder / "metrics.jsonl").read_bytes() == rows
    refused = lab.marl("resume", folder, "env.id=probe_value_v0", "--quiet")
    assert refused.returncode == 2
    assert_one_line(refused.stderr, "env.id")
    longer = lab.marl("resume", folder, "stop.env_steps=800", "--quiet")
    assert longer.returncode == 0, longer.stderr
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["resumed"][-1]["overrides"] == ["stop.env_steps=800"]
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert arrays(ends[0] / "arrays.bin") == arrays(ends[1] / "arrays.bin")


@pytest.mark.parametrize(("fault", "code"), [("meta.write:1:enospc", 1), ("config.write:1:eacces", 2)])
def test_a_run_that_cannot_begin_leaves_nothing(lab: Lab, tmp_path: Path, fault: str, code: int) -> None:
    failed = lab.marl("train", lab.config, "--runs-dir", tmp_path, "--quiet", fault=fault)
    assert failed.returncode == code
    words = "No space left on device" if code == 1 else "Permission denied"
    assert_one_line(failed.stderr, "cannot write", words)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_periodic_checkpoint_is_an_event_and_is_tried_again(lab: Lab, reference: Path, tmp_path: Path) -> None:
    code = "import marl.runner.loop\nmarl.runner.loop.RETRY_CHECKPOINT_S = (0.0, 0.0)"
    arguments = ["train", lab.config, "checkpoint.keep=100", "--runs-dir", tmp_path, "--quiet"]
    done = lab.program(code, *arguments, fault="checkpoint.arrays:2:enospc")
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    (event,) = rows_of(folder, "event")
    assert event["event"] == "checkpoint failed"
    assert "No space left on device; training goes on" in str(event["message"])
    dispatches = sorted({int(row["env_steps"]) for row in rows_of(folder, "train")})
    saved = [int(path.name.removeprefix("ckpt-")) for path in list_checkpoints(folder / "checkpoints")]
    due = [next(steps for steps in dispatches if steps >= multiple) for multiple in range(100, 900, 100)]
    due[1] = dispatches[dispatches.index(due[1]) + 1]
    assert saved == due
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert arrays(ends[0] / "arrays.bin") == arrays(ends[1] / "arrays.bin")


ROBBED = """
import json
from marl.runner.loop import TrainingLoop
evaluate = TrainingLoop.evaluate
def evaluate_and_lose_the_lock(loop, state):
    evaluate(loop, state)
    lock = loop.run_dir / "run.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "other", "host": "far"}))
TrainingLoop.evaluate = evaluate_and_lose_the_lock
"""


def test_a_run_whose_lock_was_taken_over_stops_writing(lab: Lab, tmp_path: Path) -> None:
    failed = lab.program(ROBBED, "train", lab.config, "--runs-dir", tmp_path, "--quiet")
    assert failed.returncode == 1
    assert_one_line(failed.stderr, "run.lock was taken over by another process")
    folder = run_folder(tmp_path)
    newest = read_header(list_checkpoints(folder / "checkpoints")[-1])["progress"]
    assert newest["evaluations"] == 0
    assert newest["metrics_offset"] == (folder / "metrics.jsonl").stat().st_size
    assert json.loads((folder / "meta.json").read_text())["status"] == "running"
    assert json.loads((folder / "run.lock").read_text())["token"] == "other"


def test_an_evaluation_that_cannot_be_stored_is_an_event(lab: Lab, reference: Path, tmp_path: Path) -> None:
    done, folder = lab.train(tmp_path, fault="evaluations.write:1+:enospc")
    assert done.returncode == 0, done.stderr
    events = rows_of(folder, "event")
    assert [event["event"] for event in events] == ["evaluation not stored"] * 8
    assert "evaluations.json: No space left on device; training goes on" in str(events[0]["message"])
    assert rows_of(folder, "train", "eval") == rows_of(reference, "train", "eval")
    assert not list(folder.rglob("*evaluations.json*"))
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert arrays(ends[0] / "arrays.bin") == arrays(ends[1] / "arrays.bin")


def test_a_best_policy_that_cannot_be_stored_is_an_event_and_not_called_the_best(
    lab: Lab, reference: Path, tmp_path: Path
) -> None:
    # Policies of two seeds at two checkpoints come before those of the first evaluation.
    done, folder = lab.train(tmp_path, fault="policy.arrays:5:enospc")
    assert done.returncode == 0, done.stderr
    (event,) = rows_of(folder, "event")
    assert event["event"] == "best policy not stored"
    assert "policy_best/arrays.bin: No space left on device; training goes on" in str(event["message"])
    _, *later = [float(row["eval/return/agent"]) for row in rows_of(reference, "eval") if row["seed"] == SEEDS[0]]
    progress = read_header(list_checkpoints(folder / "checkpoints")[-1])["progress"]
    assert progress["best_return"][0] == pytest.approx(max(later))
    header = read_file(folder / f"seed_{SEEDS[0]}" / "policy_best" / "arrays.bin")[2]
    assert header["validation_return"] == progress["best_return"][0]
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert arrays(ends[0] / "arrays.bin") == arrays(ends[1] / "arrays.bin")


def test_a_final_checkpoint_that_cannot_be_written_fails_the_run(lab: Lab, tmp_path: Path) -> None:
    failed, folder = lab.train(tmp_path, "checkpoint.every=100_000", fault="checkpoint.arrays:1+:enospc")
    assert failed.returncode == 1
    assert_one_line(failed.stderr, "cannot write checkpoint", "No space left on device")
    assert json.loads((folder / "meta.json").read_text())["status"] == "failed"
    assert len(rows_of(folder, "train", "eval")) == ROWS
    assert list_checkpoints(folder / "checkpoints") == []


def test_the_best_checkpoint_outlives_the_newest_ones(lab: Lab, tmp_path: Path) -> None:
    options = ("evaluate.every=100", "checkpoint.every=100", "checkpoint.keep=1")
    done, folder = lab.train(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    saved = [path.name for path in list_checkpoints(folder / "checkpoints")]
    progress = read_header(folder / "checkpoints" / saved[-1])["progress"]
    assert set(saved) == {*progress["best_checkpoint"], saved[-1]}
    for index, seed in enumerate(SEEDS):
        best = read_header(folder / "checkpoints" / progress["best_checkpoint"][index])["progress"]
        evaluated = {
            row["env_steps"]: row["eval/return/agent"] for row in rows_of(folder, "eval") if row["seed"] == seed
        }
        assert evaluated[best["env_steps"][index]] == pytest.approx(max(map(float, evaluated.values())))


@pytest.mark.slow
def test_metrics_that_cannot_be_written_fail_the_run_and_resume_goes_on(
    lab: Lab, reference: Path, tmp_path: Path
) -> None:
    failed, folder = lab.train(tmp_path, fault="metrics.flush:4+:enospc")
    assert failed.returncode == 1
    assert_one_line(failed.stderr, "cannot write", "metrics.jsonl", "No space left on device")
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_real_limit_on_file_sizes_fails_the_run_and_resume_goes_on(lab: Lab, reference: Path, tmp_path: Path) -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (24576, 24576))"
    failed = lab.program(code, "train", lab.config, "--runs-dir", tmp_path, "--quiet")
    assert failed.returncode == 1
    assert_one_line(failed.stderr, "cannot write", "metrics.jsonl", "File too large")
    folder = run_folder(tmp_path)
    assert 0 < len(rows_of(folder, "train")) < len(rows_of(reference, "train"))
    assert lab.marl("resume", folder, "--quiet").returncode == 0
    assert_same_run(folder, reference)
