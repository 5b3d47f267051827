"""`marl sweep`: every combination of some values of an experiment, each an ordinary run, ranked in one table.

A trial is a runner process (`marl train`), so that nothing of one is left for the next: no compiled program, no memory,
no random state. Without Ray they run one after another; with `--workers`, or inside a job on a cluster, Ray Tune runs
them side by side. What is done is not done again, so a sweep can be stopped at any time and begun again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marl.core.errors import InterruptedRunError, UserError
from marl.io.console import next_commands, say
from marl.io.files import write_failure, write_json_atomic, write_text_atomic
from marl.io.lock import lock_owner
from marl.runner.listing import table
from marl.runner.load import load_experiment
from marl.runner.sweep_grid import Sweep, Trial, check_folder, make_sweep, newest_run, outcome, ranked
from marl.runner.trial import run_trial
from marl.runner.trial_check import check_trials

SETTLE_S = 120.0  # what trials have for their checkpoints once the sweep was told to stop
INTERRUPTED = 130
_TUNE = ".tune"  # Ray Tune's own records, gone at the end
# Its old, quiet output; and it writes its state to disk at the end only: ours is in the run folders.
_TUNE_ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_GLOBAL_CHECKPOINT_S": "3600"}
_MEASURED = ("status", "seeds", "env_steps", "return", "best")


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """workers: trials side by side on this machine, or at most so many on a cluster (None: one after another here, as
    many as fit there).  cpus, gpus: what a trial takes of a cluster's nodes.  role: whose return ranks."""

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    role: str | None = None


def sweep(path_or_name: str, overrides: Sequence[str], out: Path | None, options: SweepOptions) -> int:
    """Run what is left of a sweep and print its table. Returns the exit code: 1 if a trial failed.

    Raises: UserError for bad input; InterruptedRunError when asked to stop.
    """
    plan = make_sweep(path_or_name, overrides)
    out = (out or Path("sweeps") / plan.name).absolute()
    side_by_side = (options.workers or 1) > 1 or "RAY_ADDRESS" in os.environ
    kinds = {load_experiment(path_or_name, trial.overrides).config.dataflow.kind for trial in plan.trials}
    if side_by_side and "ray" in kinds:
        raise UserError("a trial with dataflow.kind ray fills a cluster by itself; expected no --workers, or 1")
    check_folder(plan, out)
    left = [trial for trial in plan.trials if not _done(trial, out)]
    if left:
        check_trials(path_or_name, left)
    _begin(plan, out)
    say(f"{plan.name}: {len(plan.trials)} trials, {len(plan.trials) - len(left)} of them done; in {out}")
    codes: dict[str, int] = {}
    try:
        if left and side_by_side:
            _with_tune(left, out, options, codes)
        else:
            _one_by_one(left, out, codes)
    except KeyboardInterrupt:
        say("stopping; the trials that run save their checkpoints")
    finally:
        _settle(left, out)
        rows = _write(plan, out, codes, options.role)
    say(table([_shown(row) for row in rows]))
    say(f"table, logs and run folders: {out}")
    states = {row["status"] for row in rows}
    if states == {"done"}:
        next_commands([f"marl evaluate {rows[0]['run']}"])
        return 0
    if states <= {"done", "failed"}:
        failed = [str(out / "logs" / f"{row['trial']}.log") for row in rows if row["status"] == "failed"]
        say(f"{len(failed)} failed; why: {', '.join(failed[:3])}")
        return 1
    raise InterruptedRunError(f"interrupted; the same command goes on with the sweep in {out}")


def submit_sweep(args: argparse.Namespace, out: Path | None, options: SweepOptions) -> int:
    """Run a sweep as a job on a Ray cluster, and bring its folder back. Raises: as `marl.runner.jobs.submit`."""
    from marl.runner import jobs

    plan = make_sweep(args.config, args.overrides)
    words = [*args.overrides, "--trial-cpus", str(options.cpus), "--trial-gpus", str(options.gpus)]
    words += ["--workers", str(options.workers)] if options.workers else []
    words += ["--role", options.role] if options.role else []
    into = out or Path("sweeps") / plan.name
    return jobs.submit(args.address, "sweep", plan.text, plan.name, words, jobs.options_from(args), into)


def _begin(plan: Sweep, out: Path) -> None:
    """The folder with the experiment and what is swept. Raises: UserError or RunError if it cannot be written."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        write_text_atomic(out / "config.yaml", plan.text)
        if not (out / "sweep.json").exists():
            write_json_atomic(out / "sweep.json", {"sweep": plan.as_json(), "trials": []})
    except OSError as error:
        raise write_failure(out, error) from error


def _done(trial: Trial, out: Path) -> bool:
    run = newest_run(out / "runs", trial.name)
    return run is not None and run.status == "done"


def _one_by_one(left: Sequence[Trial], out: Path, codes: dict[str, int]) -> None:
    for number, trial in enumerate(left, 1):
        say(f"{trial.name}: trial {number} of {len(left)}")
        codes[trial.name] = run_trial(trial.name, trial.overrides, out)
        if codes[trial.name] == INTERRUPTED:  # somebody stopped this trial: they mean the sweep
            return


def _with_tune(left: Sequence[Trial], out: Path, options: SweepOptions, codes: dict[str, int]) -> None:
    """The trials side by side; on a cluster as many as fit, at most `workers`. Raises: UserError without Ray."""
    from marl.dataflow.ray_session import Session, SessionOptions

    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cluster = os.environ.get("RAY_ADDRESS")
    say(f"starting Ray for {options.workers or 'as many as fit'} trials side by side")
    session = Session(SessionOptions(address=cluster or None, cpus=(options.workers or 1) * options.cpus))
    try:
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it would tell how to resume without us

        class Progress(tune.Callback):
            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                found = trial.last_result
                codes[found["name"]] = found["exit_code"]
                say(f"{found['name']}: {found['message'] or _ended(found['exit_code'])}")

        resources = {"cpu": options.cpus, "gpu": options.gpus}
        grid = [{"name": trial.name, "overrides": list(trial.overrides)} for trial in left]
        tuner = tune.Tuner(
            tune.with_resources(_tune_trial, resources),
            param_space={"trial": tune.grid_search(grid), "out": str(out), "gpus": options.gpus},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=options.workers or 0, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(out / _TUNE), verbose=0, callbacks=[Progress()], log_to_file=False
            ),
        )
        tuner.fit()
    finally:
        session.close()
        shutil.rmtree(out / _TUNE, ignore_errors=True)


def _ended(code: int) -> str:
    return {0: "done", INTERRUPTED: "stopped"}.get(code, f"failed with exit code {code}")


def _tune_trial(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Tune runs for a trial, on whatever node: one runner process."""
    name, out = config["trial"]["name"], Path(config["out"])
    if not (out / "sweep.json").is_file():
        message = f"{out} is not on the disk of {platform.node()}; expected --out on a disk that all nodes share"
        return {"name": name, "exit_code": 1, "message": message}
    share = config["gpus"]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * share:.2f}"} if 0 < share < 1 else {}
    code = run_trial(name, config["trial"]["overrides"], out, environment)
    return {"name": name, "exit_code": code, "message": ""}


def _settle(left: Sequence[Trial], out: Path) -> None:
    """Wait until no trial of ours writes any more: each ends by itself when the sweep does, with a checkpoint."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        found = [newest_run(out / "runs", trial.name) for trial in left]
        if not any(run is not None and lock_owner(run.path) for run in found):
            return
        time.sleep(0.2)


def _write(plan: Sweep, out: Path, codes: dict[str, int], role: str | None) -> list[dict[str, Any]]:
    """The table, best first, as `sweep.json` and `sweep.md`. Raises: UserError or RunError if it cannot be written."""
    rows = ranked([outcome(trial, out, role) for trial in plan.trials])
    for row in rows:
        code = codes.get(row["trial"])
        if row["status"] != "done" and code is not None and code not in (0, INTERRUPTED):
            row["status"] = "failed"
    write_json_atomic(out / "sweep.json", {"sweep": plan.as_json(), "trials": rows})
    shown = [_shown(row) for row in rows]
    head = list(shown[0])
    lines = [head, ["---"] * len(head), *([row[key] for key in head] for row in shown)]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    write_text_atomic(out / "sweep.md", f"# {plan.name}\n\n{text}\n")
    return rows


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as text, with the same columns in every row."""
    texts = {key: _text(value) for key, value in row.items() if key != "run"}
    return {key: texts.get(key, "") for key in dict.fromkeys([*texts, *_MEASURED])}


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
