"""One writer a run folder, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.core.errors import RunError, UserError
from marl.io import lock
from marl.io.lock import LOCK_NAME, STALE_AFTER_S, RunLock, lock_owner

# Takes the lock, says so, and holds it until its input ends (or it is killed).
HOLD = """
import sys
from pathlib import Path
from marl.core.errors import UserError
from marl.io.lock import RunLock
try:
    with RunLock(Path(sys.argv[1]), lambda line: print("notice", line, flush=True)):
        print("held", flush=True)
        sys.stdin.read()
except UserError:
    print("refused", flush=True)
"""


def holder(run_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def edit(run_dir: Path, **fields: object) -> None:
    """Make the lock of this process look like another's."""
    file = run_dir / LOCK_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def abandoned(run_dir: Path, **fields: object) -> None:
    """A lock file left by somebody who is gone."""
    held = RunLock(run_dir)
    with held:
        content = json.loads((run_dir / LOCK_NAME).read_text())
    (run_dir / LOCK_NAME).write_text(json.dumps({**content, "token": "other", **fields}))


def test_a_lock_is_held_inside_and_gone_after(tmp_path: Path) -> None:
    assert lock_owner(tmp_path) is None
    with RunLock(tmp_path) as held:
        owner = lock_owner(tmp_path)
        assert owner is not None
        assert owner["pid"] == os.getpid()
        held.check()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), RunLock(tmp_path):
            pytest.fail("two locks at once")
        assert lock_owner(tmp_path) is not None
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_released_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        _ = 1 // 0
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_refused_with_its_name(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert first_line(process) == "held"
    with pytest.raises(UserError, match=rf"in use by process {process.pid} on .*last heartbeat \d+ s ago"):
        RunLock(tmp_path).__enter__()
    end(process)
    with RunLock(tmp_path, pytest.fail):
        pass


@pytest.mark.fault
def test_the_lock_of_a_killed_process_is_taken_over_with_a_notice(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert first_line(process) == "held"
    process.kill()
    end(process)
    assert lock_owner(tmp_path) is None
    notices: list[str] = []
    with RunLock(tmp_path, notices.append):
        pass
    assert len(notices) == 1
    assert f"took over the stale lock of process {process.pid}" in notices[0]


def test_a_process_id_that_was_used_again_is_no_owner(tmp_path: Path) -> None:
    abandoned(tmp_path, started="1")
    notices: list[str] = []
    with RunLock(tmp_path, notices.append):
        assert len(notices) == 1


@pytest.mark.parametrize(("age_s", "live"), [(STALE_AFTER_S / 2, True), (STALE_AFTER_S * 2, False)])
@pytest.mark.parametrize("fields", [{"host": "far", "realm": "far 1"}, {"realm": "same host, earlier boot"}])
def test_an_owner_that_cannot_be_looked_up_is_judged_by_its_heartbeat(
    tmp_path: Path, fields: dict[str, str], age_s: float, live: bool
) -> None:
    abandoned(tmp_path, **fields)
    then = time.time() - age_s
    os.utime(tmp_path / LOCK_NAME, (then, then))
    assert (lock_owner(tmp_path) is not None) == live
    if live:
        with pytest.raises(UserError, match="in use by"):
            RunLock(tmp_path).__enter__()
        return
    notices: list[str] = []
    with RunLock(tmp_path, notices.append):
        assert len(notices) == 1


@pytest.mark.parametrize("content", [b"", b"{torn", b"[]", b"\xff"])
def test_an_unreadable_lock_is_stale_once_it_is_old(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    with pytest.raises(UserError, match="in use by process"):
        RunLock(tmp_path).__enter__()
    os.utime(tmp_path / LOCK_NAME, (1.0, 1.0))
    with RunLock(tmp_path, lambda line: None):
        pass


def test_a_lock_taken_over_by_another_machine_is_noticed_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    notices: list[str] = []
    with RunLock(tmp_path, notices.append) as held:
        edit(tmp_path, token="other", host="far")
        assert held._thread is not None
        held._thread.join(timeout=30)
        assert held.lost
        with pytest.raises(RunError, match="taken over by another process"):
            held.check()
    assert len(notices) == 1
    assert (tmp_path / LOCK_NAME).exists()


def test_a_look_finds_a_lost_lock_between_two_heartbeats(tmp_path: Path) -> None:
    with RunLock(tmp_path) as held:
        held.check(look=True)
        edit(tmp_path, token="other", host="far")
        held.check()
        with pytest.raises(RunError, match="taken over by another process"):
            held.check(look=True)
        assert held.lost
    assert (tmp_path / LOCK_NAME).exists()


def test_the_heartbeat_moves_the_time_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with RunLock(tmp_path):
        os.utime(tmp_path / LOCK_NAME, (1.0, 1.0))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK_NAME).stat().st_mtime < 2.0:
            assert time.monotonic() < deadline


@pytest.mark.fault
@pytest.mark.parametrize("stale", [False, True])
def test_of_many_processes_at_once_exactly_one_wins(tmp_path: Path, stale: bool) -> None:
    if stale:
        abandoned(tmp_path, started="1")
    processes = [holder(tmp_path) for _ in range(8)]
    answers = [first_line(process) for process in processes]
    won = [process for process, answer in zip(processes, answers, strict=True) if answer != "refused"]
    assert len(won) == 1
    assert answers.count("refused") == 7
    for process in processes:
        end(process)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*run\.lock: Not a directory"):
        RunLock(tmp_path / "file").__enter__()


def test_a_file_system_without_hard_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(tmp_path), pytest.raises(UserError, match="in use by"):
        RunLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
