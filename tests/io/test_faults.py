"""The instrumentation that the fault tests stand on."""

from __future__ import annotations

import errno

import pytest

from marl.io.faults import fault_point, parse_fault, reset_faults


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    reset_faults()


def test_points_do_nothing_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARL_FAULT", raising=False)
    fault_point("checkpoint.arrays")


def test_a_fault_strikes_at_its_pass_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARL_FAULT", "metrics.write:2:enospc")
    fault_point("metrics.write")
    fault_point("metrics.flush")
    with pytest.raises(OSError, match="No space left") as caught:
        fault_point("metrics.write")
    assert caught.value.errno == errno.ENOSPC
    fault_point("metrics.write")


def test_a_repeated_fault_strikes_from_its_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARL_FAULT", "metrics.write:2+:eacces")
    fault_point("metrics.write")
    for _ in range(3):
        with pytest.raises(PermissionError):
            fault_point("metrics.write")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a", (1, False, "kill")),
        ("a:3", (3, False, "kill")),
        ("a:enospc", (1, False, "enospc")),
        ("a:4+:eacces", (4, True, "eacces")),
    ],
)
def test_the_form_of_a_fault(text: str, meaning: tuple[int, bool, str]) -> None:
    assert parse_fault(text) == meaning


def test_a_fault_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="explode"):
        parse_fault("a:explode")
