from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from marl import cli
from marl.core.errors import InterruptedRunError, RunError, UserError
from marl.runner import commands


@pytest.mark.parametrize("command", cli.commands())
def test_help_of_a_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"example:\n  marl {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_example_of_a_command_can_be_parsed(command: str) -> None:
    parser, _ = cli.make_parser(list(cli.COMMANDS))
    args = parser.parse_args(cli.COMMANDS[command][1].split()[1:])
    assert args.command == command


def test_only_commands_that_are_there_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for name, (_, _, module, _) in cli.COMMANDS.items():
        there = importlib.util.find_spec(f"marl.runner.{module}") is not None
        assert (f"    {name}" in listed) == there
        assert hasattr(commands, name)


def test_help_takes_less_than_half_a_second(cpu_seconds: Callable[..., float]) -> None:
    command = [sys.executable, "-m", "marl.cli", "--help"]
    assert min(cpu_seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3)) < 0.5


def test_overrides_may_stand_after_options() -> None:
    args = cli.parse(["train", "x", "a=1", "--quiet", "b=2"])
    assert args is not None
    assert args.overrides == ["a=1", "b=2"]
    again = cli.parse(["train", "x"])
    assert again is not None
    assert again.overrides == []


@pytest.mark.parametrize(("text", "number"), [("64", 64), ("2_000", 2000), ("1e3", 1000)])
def test_counts_are_read_as_in_a_config(text: str, number: int) -> None:
    args = cli.parse(["evaluate", "latest", "--episodes", text])
    assert args is not None
    assert args.episodes == number


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("bad"), 2, "error: bad\n"),
        (RunError("worse"), 1, "error: worse\n"),
        (InterruptedRunError("stopped"), 130, "error: stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_each_end_has_its_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(commands, "doctor", fail)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == message


def test_unexpected_error_is_one_line_and_a_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(commands, "doctor", fail)
    assert cli.main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unexpected ZeroDivisionError: two; its traceback is in ")
    assert error.count("\n") == 1
    (log,) = tmp_path.iterdir()
    assert str(log) in error
    assert "Traceback" in log.read_text()


def test_message_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["\x1b[31mred\nline"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


def test_closed_pipe_is_quiet() -> None:
    command = f'"{sys.executable}" -m marl.cli list envs | true'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["envs", "agents", "experiments"])
def test_list_prints_a_table_or_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["name"] and row["summary"] for row in found)
    assert cli.main(["list", kind]) == 0
    text = capsys.readouterr().out
    assert all(row["name"] in text for row in found)
    assert "next:" in text


def test_list_runs_shows_what_each_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "small" / "20260102-030405-abcdef"
    run.mkdir(parents=True)
    (run / "meta.json").write_text(json.dumps({"status": "done", "env": {"id": "cartpole_v0"}, "seeds": [0, 1]}))
    assert cli.main(["list", "runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["id"], row["status"], row["seeds"]) == ("small", run.name, "done", 2)
    assert row["env"] == "cartpole_v0"


def test_doctor_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--runs-dir", str(tmp_path), "--json"]) == 0
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert findings["jax"]["state"] == "ok"
    assert "cpu" in findings["devices"]["detail"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_where_runs_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--runs-dir", str(tmp_path / "file" / "runs")]) == 1
    assert "cannot be written" in capsys.readouterr().out


def test_tensorboard_starts_on_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "small" / "20260102-030405-abcdef"
    run.mkdir(parents=True)
    started: list[list[str]] = []

    def become(program: str, command: list[str]) -> None:
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", become)
    for words, folder in ((["small"], run), ([], tmp_path)):
        with pytest.raises(SystemExit):
            cli.main(["tensorboard", *words, "--runs-dir", str(tmp_path)])
        assert started[-1][1:5] == ["-m", "tensorboard.main", "--logdir", str(folder)]


def test_tensorboard_that_is_not_installed_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small" / "20260102-030405-abcdef").mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "commands", lambda: list(cli.COMMANDS))
    assert cli.main(["tensorboard", "--runs-dir", str(tmp_path)]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


def test_check_of_an_experiment_prints_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "quickstart", "seed=5"]) == 0
    text = capsys.readouterr().out
    assert "seed: 5" in text
    assert "learning_rate:" in text
    assert "next:\n  marl train quickstart seed=5" in text


def test_check_of_a_policy_plays_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "scripted/constant", "action=1"]) == 0
    assert "greedy episodes: return agent" in capsys.readouterr().out


@pytest.mark.long
def test_check_of_an_algorithm_makes_one_update(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "ppo", "rollout=4", "epochs=1", "minibatches=1", "hidden_sizes=[8]"]) == 0
    assert "one update of 4 rows" in capsys.readouterr().out


def test_check_of_a_world_goes_through_its_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "probe_value_v0"]) == 0
    text = capsys.readouterr().out
    assert "determinism" in text
    assert "WRONG" not in text
