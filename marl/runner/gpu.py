"""`scripts/gpu`: stages for a machine that is lent for minutes, from which only a few small files come back.

A stage stops by itself inside its minutes, leaves at most 8 files under 16 MiB each in one flat folder, and goes on
from them the next time. Exit codes: 0 complete, 1 a check failed, 2 cannot start, 3 clean, but something is left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from marl.core.errors import MarlError, UserError
from marl.io.console import error, say
from marl.io.files import read_json, write_json_atomic
from marl.runner.origin import code_commit, machine, versions

FAILED, INCOMPLETE = 1, 3
STAGES = ("checks", "throughput", "table")
STOP_EARLY_S = 10.0  # a stage that is still busy this long before its end is cut off
PACK_S = 20.0  # and a table this much earlier: its runs are packed then
ENOUGH_S = {False: 40.0, True: 20.0}  # a measurement is not begun with less left; with --cpu: smaller programs
TEST_S = 45.0  # of the time for a table, kept for test episodes and packing


class Clock:
    """How much of a stage's time is left. cpu: the stage was asked to do without an accelerator."""

    def __init__(self, minutes: float, *, cpu: bool) -> None:
        self._end = time.monotonic() + 60 * minutes
        self.cpu = cpu

    def left_s(self) -> float:
        return self._end - time.monotonic()

    def enough(self) -> bool:
        """Is there time for another measurement?"""
        return self.left_s() > ENOUGH_S[self.cpu]


class Record:
    """The results of a stage by name, written whenever one is added; those of an earlier call are kept.

    Only results of the same code on the same kind of device are taken over.
    """

    def __init__(self, stage: str, out: Path, earlier: Path | None) -> None:
        self.path = out / f"{stage}.json"
        self._head = {
            "stage": stage,
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "commit": code_commit(),
            "versions": versions(),
            "machine": machine(),
        }
        self.results: dict[str, Any] = {}
        if earlier is not None and (earlier / self.path.name).is_file():
            found = read_json(earlier / self.path.name)
            if all(found.get(key) == self._head[key] for key in ("stage", "device", "commit")):
                self.results = dict(found["results"])
            else:
                say(f"{earlier / self.path.name} is of another device or commit: starting anew")

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result and write the file."""
        self.results[name] = result
        self.write(complete=False)

    @property
    def ok(self) -> bool:
        """Did everything so far succeed?"""
        return all(result["ok"] for result in self.results.values())

    def write(self, *, complete: bool) -> None:
        """Write the file. Raises: RunError if the disk is full."""
        content = {**self._head, "complete": complete, "ok": self.ok, "results": self.results}
        write_json_atomic(self.path, content)


def measure_all(record: Record, clock: Clock, parts: dict[str, Callable[[], dict[str, Any]]]) -> int:
    """Do the parts that have no result yet while there is time. Returns the exit code.

    A part that runs out of memory or does not compile is a result with `ok: false` and the reason.
    """
    record.write(complete=False)  # a stage that is cut off leaves what it was given
    for name, part in parts.items():
        if name in record.results:
            continue
        if not clock.enough():
            break
        started = time.monotonic()
        try:
            result = {"ok": True, **part()}
        except jax.errors.JaxRuntimeError as problem:
            result = {"ok": False, "failed": str(problem).splitlines()[0]}
        record.add(name, {**result, "seconds": round(time.monotonic() - started, 1)})
        say(f"{name}: {'ok' if result['ok'] else 'FAILED'} {_short(result)}")
    left = [name for name in parts if name not in record.results]
    record.write(complete=not left)
    if left:
        say(f"left for the next call: {', '.join(left)}")
        return INCOMPLETE
    return 0 if record.ok else FAILED


def _short(result: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in result.items() if key != "ok" and not isinstance(value, dict))


def _choose_platform(cpu: bool) -> None:
    """Use the CPU alone, or an accelerator with the CPU beside it. Raises: UserError if there is no accelerator."""
    if cpu:
        jax.config.update("jax_platforms", "cpu")
        return
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked and "cpu" not in asked.split(","):
        jax.config.update("jax_platforms", f"{asked},cpu")
    try:
        found = jax.default_backend()
    except RuntimeError:
        found = "cpu"
    if found == "cpu":
        raise UserError("JAX sees no accelerator on this machine; to try a stage out on the CPU: --cpu")


@contextlib.contextmanager
def _cut_off(clock: Clock, last_words: Callable[[], None], early_s: float = STOP_EARLY_S) -> Iterator[None]:
    """End the process shortly before its time is over, whatever it is doing: a compilation cannot be interrupted."""

    def end() -> None:
        try:
            last_words()
        finally:
            say("time is over; what was finished is kept")
            os._exit(INCOMPLETE)

    timer = threading.Timer(max(clock.left_s() - early_s, 1.0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _table(name: str, clock: Clock, out: Path, earlier: Path | None) -> int:
    from marl.runner.gpu_files import pack_runs, unpack_runs
    from marl.runner.study import load_study, run_study

    study = load_study(name).name
    work = Path(tempfile.mkdtemp(prefix="marl-table-"))
    once = threading.Lock()
    kept: list[bool] = []

    def keep() -> None:
        with once:
            if kept:
                return
            kept.append(True)
            for made, name in ((f"{study}.md", f"{study}.md"), ("report/evaluations.json", f"{study}.json")):
                if (work / made).is_file():
                    shutil.copyfile(work / made, out / name)
            pack_runs(work / "runs", out, notice=say)

    try:
        if earlier is not None:
            unpack_runs(earlier, work / "runs")
        with _cut_off(clock, keep, STOP_EARLY_S + PACK_S):
            minutes = (clock.left_s() - STOP_EARLY_S - PACK_S - TEST_S) / 60
            try:
                complete = run_study(name, work, minutes=max(minutes, 0.1), notice=say)
            finally:
                keep()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{study}: {'complete' if complete else 'not complete yet'}; files in {out}")
    return 0 if complete else INCOMPLETE


def _run(options: argparse.Namespace) -> int:
    clock = Clock(options.minutes, cpu=options.cpu)
    _choose_platform(options.cpu)
    if options.resume is not None and not options.resume.is_dir():
        raise UserError(f"--resume {options.resume}: there is no such folder")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--out {options.out}: {problem.strerror}") from problem
    if options.stage == "table":
        return _table(options.name, clock, options.out, options.resume)
    if options.stage == "checks":
        from marl.runner.gpu_checks import parts
    else:
        from marl.runner.gpu_throughput import parts
    record = Record(options.stage, options.out, options.resume)
    with _cut_off(clock, lambda: None):
        return measure_all(record, clock, parts(cpu=options.cpu))


def main(arguments: Sequence[str]) -> int:
    """`scripts/gpu`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/gpu", description="Measure on a machine with an accelerator.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("name", nargs="?", help="of `table`: a study file, or the name of a packaged study")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop cleanly inside these (default 8)")
    parser.add_argument("--out", type=Path, required=True, help="where at most 8 files go")
    parser.add_argument("--resume", type=Path, help="go on from the files of an earlier call")
    parser.add_argument("--cpu", action="store_true", help="do without an accelerator, with small sizes")
    options = parser.parse_args(arguments)
    if (options.stage == "table") != (options.name is not None):
        parser.error("`table` needs the name of a study, the other stages take none")
    if options.minutes < 1:
        parser.error("--minutes: expected at least 1")
    try:
        return _run(options)
    except MarlError as problem:
        error(str(problem))
        return problem.exit_code
