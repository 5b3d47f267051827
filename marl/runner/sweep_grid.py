"""The trials of a sweep from `key=[a,b]` on the command line, and what each of them came to. Imports no Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marl.core.errors import ConfigError, MarlError, UserError
from marl.io.files import read_json
from marl.runner.load import load_experiment
from marl.runner.runs import RunInfo, list_runs
from marl.runner.yaml_tree import COMMAND_LINE, parse_yaml

MAX_TRIALS = 1000
MAX_NAME = 64
Value = Any  # what YAML holds


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the grid: an ordinary run. overrides: all of them, as on the command line."""

    name: str
    values: Mapping[str, Value]
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid over an experiment. fixed: overrides that all trials share.  text: the experiment file as it was."""

    name: str
    text: str
    fixed: tuple[str, ...]
    axes: Mapping[str, tuple[Value, ...]]
    trials: tuple[Trial, ...]

    def as_json(self) -> dict[str, Any]:
        """What tells this sweep from another one."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:12]
        return {"name": self.name, "experiment": digest, "fixed": list(self.fixed), "axes": dict(self.axes)}


def make_sweep(path_or_name: str, overrides: Sequence[str]) -> Sweep:
    """A sweep over every combination of the lists among the overrides. `key=[a,b]` is an axis; a list that is one value
    is written `key=[[a,b]]`. Every trial is checked as an experiment file is.

    Raises: ConfigError for no axis, an empty one, too many trials or a config that is wrong.
    """
    fixed, axes = [], {}
    for text in overrides:
        key, values = _axis(text)
        if values is None:
            fixed.append(text)
        elif key in axes:
            raise ConfigError(f"command line: {key}: given twice; expected one list of values")
        else:
            axes[key] = values
    if not axes:
        raise ConfigError("command line: nothing to sweep; expected a list of values, such as seed=[1,2,3]")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MAX_TRIALS:
        raise ConfigError(f"command line: {count:,} combinations; expected at most {MAX_TRIALS:,}")
    trials: list[Trial] = []
    base = ""
    path = ""
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        words = [*fixed, *(f"{key}={json.dumps(value)}" for key, value in chosen.items())]
        loaded = load_experiment(path_or_name, words)
        base, path = base or loaded.config.name, str(loaded.path)
        name = trial_name(base, chosen)
        trials.append(Trial(name, chosen, (*words, f"name={name}")))
        load_experiment(path_or_name, trials[-1].overrides)
    if len({trial.name for trial in trials}) < len(trials):
        raise ConfigError("command line: two combinations are the same; expected different values")
    return Sweep(base, Path(path).read_text(encoding="utf-8-sig"), tuple(fixed), axes, tuple(trials))


def _axis(text: str) -> tuple[str, tuple[Value, ...] | None]:
    """The key and its values; None if it has one value only."""
    key, _, value = text.partition("=")
    if not value.strip().startswith("["):
        return key.strip(), None
    node = parse_yaml(value, COMMAND_LINE, first_line=0)
    values = node.plain() if node else None
    if not values:
        raise ConfigError(f"command line: {key.strip()}: an empty list; expected at least one value")
    return key.strip(), tuple(values)


def trial_name(base: str, values: Mapping[str, Value]) -> str:
    """The experiment's name and the values that are this trial's, as a name of a run; long ones end in a digest."""
    parts = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in values.items()]
    name = "-".join([base, *parts])
    digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")
    return clean if len(clean) <= MAX_NAME and clean == name else f"{clean[: MAX_NAME - 9]}-{digest}"


def _word(value: Value) -> str:
    if isinstance(value, list):
        return "x".join(_word(item) for item in value)
    return format(value, "g") if isinstance(value, float) else str(value)


def newest_run(runs_dir: Path, name: str) -> RunInfo | None:
    """The newest run of a trial."""
    found = [info for info in list_runs(runs_dir) if info.path.parent.name == name]
    return found[-1] if found else None


def outcome(trial: Trial, out: Path, role: str | None = None) -> dict[str, Any]:
    """One row of the table: the trial's values, the state of its run, and its validation returns, means over seeds.

    `return` is that of the last validation, `best` the best one. Validation episodes only: a choice made on test
    episodes would spoil them for the report. role: whose return (default: all agents of all roles weigh the same).
    """
    row: dict[str, Any] = {"trial": trial.name, **trial.values, "status": "not begun"}
    run = newest_run(out / "runs", trial.name)
    if run is None:
        return row
    seeds = []
    for path in sorted([*run.path.glob("evaluations.json"), *run.path.glob("seed_*/evaluations.json")]):
        seeds += _validations(path, role)
    row |= {"status": run.status, "seeds": len(seeds)}
    if seeds:
        row["env_steps"] = min(steps[-1][0] for steps in seeds)
        row["return"] = sum(steps[-1][1] for steps in seeds) / len(seeds)
        row["best"] = sum(max(value for _, value in steps) for steps in seeds) / len(seeds)
    row["run"] = str(run.path)
    return row


def _validations(path: Path, role: str | None) -> list[list[tuple[int, float]]]:
    """By seed, `(env_steps, mean return)` of each validation, in order."""
    import numpy as np

    from marl.evaluate.records import read_evaluations

    found: dict[int, list[tuple[int, float]]] = {}
    try:
        records = read_evaluations(path)
    except MarlError:  # half a file, of a run that was killed
        return []
    for record in records:
        if record.kind != "validation":
            continue
        returns = record.episodes.returns
        if role is not None and role not in returns:
            raise UserError(f"--role {role}: no such role; expected one of {', '.join(returns)}")
        chosen = [returns[role]] if role is not None else list(returns.values())
        mean = float(np.concatenate([np.asarray(rows, np.float64) for rows in chosen], axis=-1).mean())
        found.setdefault(record.seed, []).append((record.env_steps, mean))
    return [sorted(values) for values in found.values()]


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best last validation first; trials without one at the end."""
    return sorted(rows, key=lambda row: -row["return"] if "return" in row else float("inf"))


def check_folder(sweep: Sweep, out: Path) -> None:
    """Is the folder new, or of this very sweep? Raises: UserError if it is of another one."""
    path = out / "sweep.json"
    if not path.exists():
        return
    found = read_json(path)
    stored = found.get("sweep") if isinstance(found, dict) else None
    if stored != json.loads(json.dumps(sweep.as_json())):
        raise UserError(f"{out} holds another sweep (sweep.json differs); expected another folder: --out DIR")
