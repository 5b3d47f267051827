"""scripts/test: the same set-up with the tools, then the checks in order, stopping at the first that fails."""

from __future__ import annotations

from typing import Any

import pytest


def checks(out: str) -> list[str]:
    """What was run, without the headings."""
    return [line for line in out.splitlines() if not line.startswith("== ")]


@pytest.mark.parametrize(
    ("arguments", "tier"),
    [
        ((), "not slow and not parity and not gpu"),
        (("--fast",), "not learn and not long and not slow and not parity and not fault and not gpu"),
    ],
)
def test_checks_run_in_order_and_end_with_pytest(checkout: Any, arguments: tuple[str, ...], tier: str) -> None:
    code, out, err = checkout.run(*arguments, "-k", "some words", script="test")
    assert code == 0, err
    *before, last = checks(out)
    assert before == ["ruff check .", "ruff format --check .", "mypy ", "lint-imports --no-logo"]
    assert last == f"pytest -n 2 --dist loadfile -m {tier} -k some words"


def test_tools_are_installed_into_the_same_environment(checkout: Any) -> None:
    checkout.run("--help")
    checkout.run("--fast", script="test")
    assert checkout.log() == ["venv", "pip", "pip"]
    assert (checkout.fake / "log").read_text().splitlines()[-1].endswith(f"-e {checkout.root}[dev]")
    checkout.run("--fast", script="test")
    assert checkout.run("doctor")[2] == ""
    assert checkout.log() == ["venv", "pip", "pip"]


def test_everything_runs_in_an_environment_of_its_own(checkout: Any) -> None:
    code, out, _ = checkout.run("--all", script="test")
    assert code == 0
    assert checks(out)[-3:] == [
        "pytest -n 2 --dist loadfile -m not slow",
        "pytest -m slow",
        "pytest -k waterworld tests/interop tests/runner",
    ]
    *_, everything, older = (checkout.fake / "log").read_text().splitlines()
    assert everything.endswith(f"-e {checkout.root}[dev,reference,worlds,atari,rllib-torch]")
    assert older.endswith(f"--target {checkout.root}/.venv-all/older pettingzoo==1.25.0 pymunk==6.11.1")
    assert (checkout.root / ".venv-all").is_dir()
    assert not (checkout.root / ".venv").exists()


def test_chosen_tests_alone_need_no_older_packages(checkout: Any) -> None:
    code, out, _ = checkout.run("--all", "-k", "some words", script="test")
    assert code == 0
    assert checks(out)[-1] == "pytest -m slow -k some words"
    assert not (checkout.root / ".venv-all/older").exists()


@pytest.mark.parametrize(("program", "ran"), [("RUFF", 1), ("MYPY", 3), ("LINT_IMPORTS", 4), ("PYTEST", 5)])
def test_first_failing_check_stops_and_gives_the_exit_code(checkout: Any, program: str, ran: int) -> None:
    code, out, _ = checkout.run(script="test", **{f"FAKE_{program}": "1"})
    assert code == 1
    assert len(checks(out)) == ran


def test_help_needs_no_set_up(checkout: Any) -> None:
    code, out, err = checkout.run("--help", script="test")
    assert (code, err) == (0, "")
    assert "scripts/test --fast" in out
    assert checkout.log() == []
