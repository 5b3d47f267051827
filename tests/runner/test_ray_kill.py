"""`kill -9` of the program that drives a run on Ray, then `marl resume`, and SIGTERM: what is left, and what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.io.checkpoint import list_checkpoints, load_plain, read_header, read_manifest
from marl.io.jsonl import read_rows

pytestmark = [
    pytest.mark.ray,
    pytest.mark.fault,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc"),
]

CONFIG = """
name: crash
seed: 3
env: {id: "gymnasium:CartPole-v1"}
agents:
  all: {algorithm: ppo, rollout: 16, epochs: 1, minibatches: 1, hidden_sizes: [8]}
dataflow: {kind: ray, num_envs: 4, slots: 2, actors: 2, updates_per_dispatch: 2, object_store: 80}
stop: {env_steps: 1_000_000_000}
evaluate: {episodes: 4, video: false}
checkpoint: {every: 500, keep: 3}
"""
GONE_AFTER_S = 30.0


class Lab:
    """A folder with the experiment, in which programs run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "crash.yaml").write_text(CONFIG)
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        root = str(Path(sys.modules["marl"].__file__ or "").parents[1])
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
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

    def wait_for_checkpoint(self, program: subprocess.Popen[str], beyond: str = "") -> Path:
        """The run folder, once it has a checkpoint newer than `beyond`."""
        while True:
            found = sorted(self.folder.glob("runs/crash/*/checkpoints/ckpt-*/manifest.json"))
            if found and found[-1].parent.name > beyond:
                return found[-1].parents[2]
            assert program.poll() is None, program.communicate()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("ray"))


class Below:
    """The processes below a program and what they hold."""

    def __init__(self, program: int) -> None:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)] = (int(fields[1]), fields[19])
        found = {program}
        while True:
            more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
            if not more:
                break
            found |= more
        self.begun = {pid: parents[pid][1] for pid in found if pid in parents}
        self.shared = {link for pid in found for link in _links(pid) if link.startswith("/dev/shm/")}
        self.folders = {word for pid in found for word in _folders(pid)}

    def left(self) -> list[Any]:
        """What of it is still there."""
        processes = [pid for pid, begun in self.begun.items() if _begun(pid) == begun]
        files = [name for name in (*self.shared, *self.folders) if os.path.exists(name)]
        return [*processes, *files]


def _begun(pid: int) -> str:
    """When a process began; nothing if it has ended, whether or not anybody has asked for its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _links(pid: int) -> list[str]:
    try:
        return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def _folders(pid: int) -> set[str]:
    """Folders of a cluster of our own that a process was told of."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return set()
    found = set()
    for part in words.replace("=", " ").replace("'", " ").split():
        if "/marl-ray-" in part:
            head, _, tail = part.partition("/marl-ray-")
            found.add(f"{head}/marl-ray-{tail.split('/')[0].split(';')[0]}")
    return found


def assert_gone(below: Below) -> None:
    """Nothing is left within half a minute."""
    deadline = time.monotonic() + GONE_AFTER_S
    while below.left():
        assert time.monotonic() < deadline, [(p, _command(p)) for p in below.left()]
        time.sleep(0.2)


def _command(left: Any) -> str:
    try:
        return Path(f"/proc/{left}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return ""


def assert_consistent(folder: Path) -> int:
    """The newest checkpoint's counters agree with each other and with the rows. Returns its env steps."""
    newest = list_checkpoints(folder / "checkpoints")[-1]
    (stored,) = load_plain(newest)[0]["runs"]
    (offered, taken, lost) = stored["ledger"]["chunks"].tolist()
    assert offered == [a + b for a, b in zip(taken, lost, strict=True)]
    buffer = stored["trainer"]["stages"]["all"]["buffer"]
    held = len(buffer["places"])
    assert int(buffer["offered"]) == int(buffer["trained"]) + sum(map(int, buffer["dropped"].values())) + held
    assert int(buffer["trained"]) + held == taken[0]
    held_steps = sum(int(chunk["numbers"][5]) for chunk in buffer["chunks"])
    assert int(stored["trainer"]["env_steps_learned"]) + held_steps == taken[1]
    env_steps = read_header(newest)["progress"]["env_steps"][0]
    assert env_steps == offered[1] - lost[1]  # all rows that were reported
    rows = [row["env_steps"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert np.all(np.diff(rows) > 0)  # none missing, none twice
    return int(env_steps)


@pytest.fixture(scope="module")
def killed(lab: Lab) -> tuple[Path, Below]:
    """The run folder of a program that was killed, and what was below it."""
    program = lab.start("train", "crash.yaml")
    folder = lab.wait_for_checkpoint(program)
    below = Below(program.pid)
    assert len(below.begun) > 5
    assert len(below.folders) == 1
    program.kill()
    program.communicate(timeout=60)
    return folder, below


def test_nothing_is_left_of_a_run_whose_program_is_killed(killed: tuple[Path, Below]) -> None:
    """F13."""
    assert_gone(killed[1])


def test_a_killed_run_goes_on_and_saves_when_it_is_told_to_end(lab: Lab, killed: tuple[Path, Below]) -> None:
    """F13 and F12."""
    folder, _ = killed
    before = assert_consistent(folder)
    newest = list_checkpoints(folder / "checkpoints")[-1].name
    program = lab.start("resume", str(folder))
    lab.wait_for_checkpoint(program, newest)
    below = Below(program.pid)
    program.send_signal(signal.SIGTERM)
    shown, _ = program.communicate(timeout=60)
    assert program.returncode == 130, shown
    assert "Traceback" not in shown
    assert json.loads((folder / "meta.json").read_text())["status"] == "interrupted"
    assert assert_consistent(folder) > before
    assert_gone(below)


# ---- slow ones -------------------------------------------------------------------------------------------------------


def finish(program: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a program. Returns what it said."""
    shown, _ = program.communicate(timeout=600)
    assert program.returncode == code, shown
    return shown


def events_in(folder: Path) -> list[str]:
    return [str(row["event"]) for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "event"]


@pytest.fixture(scope="module")
def whole(lab: Lab) -> Path:
    """The run folder of a run that nothing happened to."""
    finish(lab.start("train", "crash.yaml", "stop.env_steps=2000", "--runs-dir", "whole"))
    (folder,) = (lab.folder / "whole" / "crash").iterdir()
    return folder


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(lab: Lab, whole: Path) -> None:
    """F13: at staleness 0 bit for bit, worlds, open rollouts and tickets included."""
    killed = lab.start(
        "train", "crash.yaml", "stop.env_steps=2000", "--runs-dir", "killed", fault="checkpoint.rename:3:kill"
    )
    finish(killed, -signal.SIGKILL)
    (folder,) = (lab.folder / "killed" / "crash").iterdir()
    finish(lab.start("resume", str(folder)))
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, whole)]
    assert ends[0].name == ends[1].name
    assert read_manifest(ends[0])["files"]["arrays.bin"] == read_manifest(ends[1])["files"]["arrays.bin"]
    assert_consistent(folder)


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_does_not_stop_the_run(lab: Lab) -> None:
    """F14."""
    finish(
        lab.start(
            "train", "crash.yaml", "stop.env_steps=2000", "--runs-dir", "full", fault="checkpoint.arrays:2:enospc"
        )
    )
    (folder,) = (lab.folder / "full" / "crash").iterdir()
    assert events_in(folder).count("checkpoint failed") == 1
    assert not list((folder / "checkpoints").glob("*.tmp*"))
    assert_consistent(folder)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_with_other_processes(lab: Lab, whole: Path) -> None:
    """F15; and actors, learners and the place of inference may be others from one resume to the next."""
    folder = lab.folder / "damaged" / "crash" / whole.name
    shutil.copytree(whole, folder)
    newest = list_checkpoints(folder / "checkpoints")[-1]
    content = bytearray((newest / "arrays.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "arrays.bin").write_bytes(content)
    first = assert_resumed(lab, folder, "stop.env_steps=3000", "dataflow.actors=1", "dataflow.learners=2")
    assert any("checkpoint" in event for event in events_in(folder))
    second = assert_resumed(
        lab, folder, "stop.env_steps=4000", "dataflow.actors=2", "dataflow.learners=1", "dataflow.inference=served"
    )
    assert second > first
    shown = finish(lab.start("resume", str(folder), "dataflow.slots=4"), 2)
    assert "dataflow.slots: cannot change here" in shown
    assert "dataflow.actors" in shown
    shown = finish(lab.start("resume", str(folder), "dataflow.actors=3"), 2)
    assert "slots 2 is no multiple of actors 3" in shown


def assert_resumed(lab: Lab, folder: Path, *overrides: str) -> int:
    finish(lab.start("resume", str(folder), *overrides))
    return assert_consistent(folder)
