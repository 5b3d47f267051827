"""scripts/marl: sets up when needed, says one clear line when it cannot, and gets out of the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VERSION = ".".join(map(str, sys.version_info[:2]))
CONSTRAINTS = f"py{VERSION.replace('.', '')}.txt"


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds; the deadline is for a broken program only."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.01)


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_first_start_sets_up_and_runs_with_clean_output(checkout: Any) -> None:
    code, out, err = checkout.run("list", "envs", "--json")
    assert (code, out) == (0, "marl list envs --json\n")
    assert all(line.startswith("marl: ") for line in err.splitlines())
    assert checkout.log() == ["venv", "pip"]


def test_constraints_of_the_interpreter_are_used(checkout: Any) -> None:
    checkout.run("--help")
    pip = (checkout.fake / "log").read_text().splitlines()[-1]
    assert f"-c {checkout.root}/constraints/{CONSTRAINTS}" in pip
    assert pip.endswith(f"-e {checkout.root}")


def test_second_start_does_nothing_but_run(checkout: Any) -> None:
    checkout.run("--help")
    assert checkout.run("doctor") == (0, "marl doctor\n", "")
    assert checkout.log() == ["venv", "pip"]


def test_second_start_costs_under_a_third_of_a_second(checkout: Any, cpu_seconds: Callable[..., float]) -> None:
    checkout.run("--help")
    assert min(cpu_seconds(lambda: checkout.run("--help")) for _ in range(3)) < 0.3


def test_exit_code_of_the_program_is_passed_on(checkout: Any) -> None:
    checkout.run("--help")
    (checkout.root / ".venv" / "bin" / "marl").write_text("#!/bin/sh\nexit 130\n")
    assert checkout.run("train")[0] == 130


@pytest.mark.parametrize(
    "changed",
    [f"constraints/{CONSTRAINTS}", "pyproject.toml"],
)
def test_changed_file_is_noticed(checkout: Any, changed: str) -> None:
    checkout.run("--help")
    path = checkout.root / changed
    text = path.read_text()
    path.write_text(
        text.replace("zipp==", "zipp==1") if "constraints" in changed else text.replace("rich>=13", "rich>=14")
    )
    code, out, err = checkout.run("doctor")
    assert (code, out) == (0, "marl doctor\n")
    assert f"{changed} changed" in err
    assert checkout.log() == ["venv", "pip", "pip"]
    assert checkout.run("doctor")[2] == ""


def test_tool_settings_in_pyproject_need_no_installation(checkout: Any) -> None:
    checkout.run("--help")
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("\n[tool.somebody]\nline = 1\n")
    code, _, err = checkout.run("doctor")
    assert code == 0
    assert "nothing that is installed from it" in one_line(err)
    assert checkout.log() == ["venv", "pip"]
    assert checkout.run("doctor")[2] == ""


def test_moved_checkout_is_set_up_anew(checkout: Any) -> None:
    checkout.run("--help")
    moved = checkout.root.with_name("moved")
    checkout.root.rename(moved)
    checkout.root = moved
    assert checkout.run("doctor")[:2] == (0, "marl doctor\n")
    assert checkout.log() == ["venv", "pip", "venv", "pip"]


def test_missing_venv_module_is_one_line_and_exit_2(checkout: Any) -> None:
    (checkout.fake / "no-venv").touch()
    code, out, err = checkout.run("--help")
    assert (code, out) == (2, "")
    assert "has no venv module" in err.splitlines()[-1]
    assert f"python{VERSION}-venv" in err
    (checkout.fake / "no-venv").unlink()
    assert checkout.run("doctor")[:2] == (0, "marl doctor\n")


@pytest.mark.parametrize("version", ["3.10", "3.13", "2.7"])
def test_unsupported_interpreter_is_refused_by_name(checkout: Any, version: str) -> None:
    code, _, err = checkout.run("--help", FAKE_VERSION=version)
    assert code == 2
    assert f"{checkout.fake}/python is Python {version}; supported are 3.11 and 3.12" in one_line(err)


def test_interpreter_that_does_not_start_is_one_line(checkout: Any) -> None:
    code, _, err = checkout.run("--help", MARL_PYTHON="/nowhere/python")
    assert code == 2
    assert "MARL_PYTHON=/nowhere/python does not start" in one_line(err)


def test_another_python_is_found_when_python3_does_not_fit(checkout: Any, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/sh\necho 3.9\n")
    (programs / f"python{VERSION}").write_text(f'#!/bin/sh\nexec "{checkout.fake}/python" "$@"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    path_variable = f"{programs}:/usr/bin:/bin"
    assert checkout.run("doctor", MARL_PYTHON="", PATH=path_variable)[:2] == (0, "marl doctor\n")


def test_no_suitable_python_names_those_that_were_seen(checkout: Any, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python3", "python3.11", "python3.12"):
        (programs / name).write_text("#!/bin/sh\necho 3.9\n")
        (programs / name).chmod(0o755)
    code, _, err = checkout.run("doctor", MARL_PYTHON="", PATH=f"{programs}:/usr/bin:/bin")
    assert code == 2
    assert "python3 is 3.9" in one_line(err)
    assert "MARL_PYTHON=" in err


def test_no_network_is_one_line_with_the_log(checkout: Any) -> None:
    (checkout.fake / "offline").touch()
    code, _, err = checkout.run("--help")
    last = err.splitlines()[-1]
    assert code == 1
    assert "registry cannot be reached" in last
    log = Path(last.split("pip's log: ")[1])
    assert "NewConnectionError" in log.read_text()
    (checkout.fake / "offline").unlink()
    assert checkout.run("doctor")[:2] == (0, "marl doctor\n")


def test_failed_installation_shows_the_reason_and_the_log(checkout: Any) -> None:
    (checkout.fake / "conflict").touch()
    code, _, err = checkout.run("--help")
    assert code == 1
    assert "No matching distribution found for zipp==0" in err.splitlines()[-1]
    assert "setup.log" in err.splitlines()[-1]


def test_failed_change_leaves_no_valid_stamp(checkout: Any) -> None:
    checkout.run("--help")
    (checkout.fake / "conflict").touch()
    constraints = checkout.root / "constraints" / CONSTRAINTS
    before = constraints.read_text()
    constraints.write_text(before + "\n")
    assert checkout.run("--help")[0] == 1
    constraints.write_text(before)
    assert checkout.run("--help")[0] == 1, "the failed set-up may have changed something: it must be set up again"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_set_up_is_never_taken_for_a_finished_one(checkout: Any, how: signal.Signals) -> None:
    os.mkfifo(checkout.fake / "gate")
    process = checkout.start("--help")
    wait_for(lambda: "pip" in checkout.log())
    setup = int((checkout.root / ".venv.lock").read_text())
    os.kill(setup, how)
    with (checkout.fake / "gate").open("w"):  # lets the stand-in for pip end where it was not ended
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "set-up interrupted" in err.splitlines()[-1]
    (checkout.fake / "gate").unlink()
    code, out, err = checkout.run("doctor")
    assert (code, out) == (0, "marl doctor\n")
    assert "did not finish; starting it anew" in err
    assert checkout.log()[-2:] == ["venv", "pip"]


def test_second_of_two_first_starts_waits_and_installs_nothing(checkout: Any) -> None:
    os.mkfifo(checkout.fake / "gate")
    first = checkout.start("first")
    wait_for(lambda: "pip" in checkout.log())
    second = checkout.start("second")
    assert second.stderr is not None
    waiting = second.stderr.readline()
    assert "another set-up is under way (process " in waiting
    (checkout.fake / "gate").write_text("go\n")
    assert first.communicate(timeout=60)[0] == "marl first\n"
    out, err = second.communicate(timeout=60)
    assert (out, err) == ("marl second\n", "")
    assert checkout.log() == ["venv", "pip"]


def test_lock_file_of_a_dead_process_does_not_hold_anybody_up(checkout: Any) -> None:
    (checkout.root / ".venv.lock").write_text("999999999\n")
    code, out, err = checkout.run("doctor")
    assert (code, out) == (0, "marl doctor\n")
    assert "under way" not in err


def test_environment_of_the_user_is_kept(checkout: Any) -> None:
    programs = checkout.root / ".venv" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(checkout.fake / "environment-python", programs / "python")
    (checkout.root / ".venv" / "mine").touch()
    assert checkout.run("doctor")[:2] == (0, "marl doctor\n")
    assert (checkout.root / ".venv" / "mine").exists()
    assert checkout.log() == ["pip"]


def test_broken_environment_of_the_user_is_named_not_deleted(checkout: Any) -> None:
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "mine").touch()
    code, _, err = checkout.run("doctor")
    assert code == 2
    assert "was not made by scripts/marl and is broken; move it away" in one_line(err)
    assert (checkout.root / ".venv" / "mine").exists()


def test_link_to_the_script_finds_its_checkout(checkout: Any, tmp_path: Path) -> None:
    link = tmp_path / "marl"
    link.symlink_to(checkout.root / "scripts" / "marl")
    done = subprocess.run([link, "doctor"], env=checkout.environment, capture_output=True, text=True, check=False)
    assert done.stdout == "marl doctor\n"
