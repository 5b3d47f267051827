"""Lines and the panel: what is shown where, and that it comes at once."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import pytest

from marl.io import console
from marl.io.console import ConsoleSink, Panel, duration


def row(step: int, **tags: float | int | str) -> dict[str, float | int | str]:
    return {"kind": "train", "seed": 0, "env_steps": step, "updates": step // 10, **tags}


def test_plain_mode_prints_evaluations_events_and_now_and_then_progress() -> None:
    stream = io.StringIO()
    with Panel("probe", {"env_steps": 100}, stream=stream, every_s=1e9) as panel:
        sink = ConsoleSink(panel)
        panel.phase("compiling", "2 updates a dispatch")
        panel.phase("training")
        for step in range(0, 100, 10):
            sink.write(row(step, **{"episode/return/car": 1.0}))
        sink.write(row(50, **{"eval/return/car": 2.5, "eval/return/truck": -1.0}) | {"kind": "eval"})
        sink.write(row(60, event="x", message="disk slow") | {"kind": "event"})
        sink.flush()
        sink.close()
    assert stream.getvalue().splitlines() == [
        "compiling 2 updates a dispatch",
        "eval   seed 0  env steps 50  return: car 2.5, truck -1",
        "note: disk slow",
    ]


def test_plain_progress_tells_share_eta_speed_and_returns() -> None:
    stream = io.StringIO()
    with Panel("probe", {"env_steps": 1000, "return": 60}, stream=stream, every_s=0.0) as panel:
        panel.row(row(0, **{"perf/env_steps_per_s": 1234.0}))
        panel.row(row(250, **{"episode/return/car": 1.0}))
    last = stream.getvalue().splitlines()[-1]
    for part in ("env steps 250", "25%", "ETA", "1,234 steps/s", "return car 1"):
        assert part in last


def test_quiet_shows_only_lines_that_must_be_shown() -> None:
    stream = io.StringIO()
    with Panel("probe", {}, quiet=True, stream=stream, live=True, every_s=0.0) as panel:
        panel.phase("compiling")
        panel.row(row(1) | {"kind": "eval"})
        panel.line("saved")
    assert stream.getvalue() == "saved\n"


def test_the_live_panel_shows_phase_progress_and_roles() -> None:
    stream = io.StringIO()
    with Panel("probe [bold]run", {"env_steps": 1000}, stream=stream, live=True) as panel:
        panel.phase("compiling", "first dispatch")
        panel.row(row(0))
        panel.row(row(500, **{"episode/return/car": 3.25, "eval/return/car": 4.5, "perf/env_steps_per_s": 99.0}))
        console.say("a line [red]above[/red]")
        panel.phase("training")
    text = stream.getvalue()
    for part in ("probe [bold]run", "compiling first dispatch", "50%", "500 of 1,000", "99 steps/s", "3.25", "4.5"):
        assert part in text
    assert "a line [red]above[/red]" in text


def test_lines_after_the_stop_come_below_the_panel(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with Panel("probe", {}, stream=stream, live=True) as panel:
        panel.stop()
        shown = stream.getvalue()
        console.say("next")
        panel.stop()
    assert stream.getvalue() == shown
    assert capsys.readouterr().out == "next\n"


def test_progress_follows_the_most_advanced_rule_and_counts_earlier_processes() -> None:
    panel = Panel("probe", {"env_steps": 1000, "wall_time": 100.0}, quiet=True)
    assert panel.fraction() == pytest.approx(0.0, abs=0.01)
    panel.row(row(300))
    assert panel.fraction() == pytest.approx(0.3, abs=0.01)
    panel.resumed(80.0)
    assert panel.fraction() == pytest.approx(0.8, abs=0.01)
    assert panel.eta_s() == pytest.approx(20.0, abs=1.0)
    assert Panel("probe", {"return": 5.0, "env_steps": None}).fraction() is None


def test_returns_are_means_over_seeds() -> None:
    stream = io.StringIO()
    panel = Panel("probe", {}, stream=stream, every_s=0.0)
    panel.row(row(10, **{"episode/return/car": 1.0}))
    panel.row(row(10, **{"episode/return/car": 4.0}) | {"seed": 1})
    assert stream.getvalue().splitlines()[-1].endswith("return car 2.5")


def test_lines_go_to_the_right_stream_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[31mb\tc\x07")
    console.next_commands(["marl report latest"])
    console.error("bad")
    captured = capsys.readouterr()
    assert captured.out == "a[31mb\tc\nnext:\n  marl report latest\n"
    assert captured.err == "error: bad\n"


def test_a_terminal_without_unicode_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.say("± 1")
    stream.seek(0)
    assert stream.read() == "? 1\n"


def test_a_closed_pipe_ends_quietly() -> None:
    program = "from marl.io.console import say\nfor _ in range(20000): say('x' * 80)"
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait() == 0


def test_the_first_line_comes_at_once_and_without_heavy_imports(cpu_seconds: Callable[..., float]) -> None:
    program = (
        "import sys; from marl.io import console, lock; console.say('hello');"
        "assert not {'jax', 'rich', 'numpy', 'tensorboardX'} & set(sys.modules), sorted(sys.modules)"
    )
    assert cpu_seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)) < 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
