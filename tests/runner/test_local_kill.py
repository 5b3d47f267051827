"""`kill -9` of a run with worlds in Python, then `marl resume`: it ends as if nothing had happened, bit for bit.

The processes that step worlds end with the program that started them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from marl.cli import main
from marl.io.checkpoint import list_checkpoints, load_arrays, read_header, read_manifest
from marl.io.jsonl import read_rows
from marl.io.metrics import Row

pytestmark = pytest.mark.fault

WORLD = Path(__file__).parent / "local" / "hide_v0.py"
CONFIG = """
name: crash
seed: 3
env: {id: "pettingzoo:hide_v0.py"}
agents:
  hider: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}
  seeker: {algorithm: random}
dataflow: {num_envs: 4, slots: 2, updates_per_dispatch: 2}
stop: {env_steps: 1000}
evaluate: {every: 300, episodes: 4, video: false}
checkpoint: {every: 100, keep: 3}
"""


class Lab:
    """A folder with the world and the experiment, in which programs run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(WORLD, folder)
        (folder / "crash.yaml").write_text(CONFIG)
        root = str(Path(sys.modules["marl"].__file__ or "").parents[1])
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        self.environment = {
            **os.environ,
            "PYTHONPATH": root,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
        """A command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "marl.cli", *arguments, "--quiet"],
            env={**self.environment, "MARL_FAULT": fault},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_folder(self, runs: str) -> Path:
        (found,) = (self.folder / runs / "crash").iterdir()
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("local"))


@pytest.fixture(autouse=True)
def _here(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.folder)


@pytest.fixture(scope="module")
def reference(lab: Lab) -> Path:
    """The run folder of an uninterrupted run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.folder)
        assert main(["train", "crash.yaml", "--runs-dir", "reference", "--quiet"]) == 0
    return lab.run_folder("reference")


def rows_of(folder: Path) -> list[Row]:
    """Rows without what no two runs share: times, speeds, and where the time went."""
    return [
        {tag: v for tag, v in row.items() if tag != "time" and not tag.startswith(("perf/", "flow/bottleneck/"))}
        for row in read_rows(folder / "metrics.jsonl")
        if row["kind"] in ("train", "eval")
    ]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Learners, open rollouts, buffers, tickets, worlds; published policies; rows: equal, none missing, none twice."""
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, reference)]
    assert ends[0].name == ends[1].name
    assert read_manifest(ends[0])["files"]["arrays.bin"] == read_manifest(ends[1])["files"]["arrays.bin"]
    for policy in ("policy", "policy_best"):
        ours, theirs = (jax.tree.leaves(load_arrays(run / policy)[0]) for run in (folder, reference))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert rows_of(folder) == rows_of(reference)
    progress = [read_header(end)["progress"] for end in ends]
    for key in ("env_steps", "agent_steps", "updates", "episodes", "dispatches", "evaluations", "best_return"):
        assert progress[0][key] == progress[1][key]
    assert json.loads((folder / "meta.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("workers", "fault"),
    [
        (0, "checkpoint.rename:4"),
        (1, "metrics.flush:5"),
        pytest.param(0, "metrics.write:11", marks=pytest.mark.slow),
        pytest.param(1, "checkpoint.arrays:3", marks=pytest.mark.slow),
        pytest.param(2, "checkpoint.latest:6", marks=pytest.mark.slow),
    ],
)
def test_a_kill_then_resume_equals_an_uninterrupted_run(lab: Lab, reference: Path, workers: int, fault: str) -> None:
    """With processes as well: at staleness 0 it does not matter who steps the worlds."""
    runs = f"{fault.replace(':', '-')}-{workers}"
    arguments = ["train", "crash.yaml", f"dataflow.workers={workers}", "--runs-dir", runs]
    killed = lab.start(*arguments, fault=f"{fault}:kill")
    shown, _ = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, shown
    assert shown == ""  # nor do the processes that step worlds complain
    folder = lab.run_folder(runs)
    assert list_checkpoints(folder / "checkpoints")
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert_same_run(folder, reference)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_processes_that_step_worlds_end_with_the_program(lab: Lab, number: signal.Signals) -> None:
    """SIGTERM goes to all of them, as a job scheduler's does: the program saves, and they end when it does."""
    runs = f"orphans-{number.name}"
    arguments = ["train", "crash.yaml", "stop.env_steps=1_000_000_000", "dataflow.workers=2", "--runs-dir", runs]
    program = lab.start(*arguments)
    while not list((lab.folder / runs).glob("crash/*/checkpoints/ckpt-*")):
        assert program.poll() is None, program.communicate()
    workers = workers_of(program.pid)
    assert len(workers) == 2
    for process in [*workers, program.pid] if number == signal.SIGTERM else [program.pid]:
        os.kill(process, number)
    shown, _ = program.communicate(timeout=60)  # the pipe closes when the last process that holds it has ended
    assert program.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in shown
    assert not any(is_worker(process) for process in workers)
    events = [row["event"] for row in read_rows(lab.run_folder(runs) / "metrics.jsonl") if row["kind"] == "event"]
    assert "world fault" not in events


def workers_of(program: int) -> list[int]:
    """The processes that a program started to step worlds."""
    children = Path(f"/proc/{program}/task/{program}/children").read_text().split()
    return [int(child) for child in children if is_worker(int(child))]


def is_worker(process: int) -> bool:
    """Whether a process steps worlds (one that has ended does not, even if nobody has asked for its exit code)."""
    try:
        return b"marl.dataflow.worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
