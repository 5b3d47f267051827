"""A study: experiments and scripted baselines whose test episodes make one result table.

It owns no training loop: every experiment is an ordinary run, trained, resumed and tested as `marl train`,
`marl resume` and `marl evaluate` do. What is finished is not done again, so a study can be stopped at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from marl.core.config import FrozenConfig
from marl.core.errors import ConfigError, MarlError, unknown_name
from marl.evaluate.records import Evaluation, merge, read_evaluations, write_evaluations
from marl.io import checkpoint
from marl.io.console import error, say
from marl.io.files import read_json, write_text_atomic
from marl.runner.evaluate import evaluate, evaluate_experiment
from marl.runner.explain import validate
from marl.runner.load import config_from, load_experiment, packaged_studies, read_tree
from marl.runner.report import build_report
from marl.runner.runs import list_runs
from marl.runner.schema import ExperimentConfig, Name
from marl.runner.train import resume, train
from marl.runner.yaml_tree import Source

INCOMPLETE = 3  # exit code: clean, but something is left
SPARE_S = 20.0  # seconds kept back from a time limit for the last checkpoint


class Part(FrozenConfig):
    """One experiment of a study: its name or path, and overrides as on the command line."""

    experiment: str
    overrides: tuple[str, ...] = ()


class StudyConfig(FrozenConfig):
    """A study file. cost: what it takes, in words, measured.  episodes: test episodes a policy and seed.

    worlds: `env` sections; every baseline (an `agents` section for all roles) is measured on each of them.
    """

    name: Name
    cost: str
    episodes: int = Field(default=512, ge=1, le=1_000_000)
    experiments: tuple[Part, ...] = Field(min_length=1)
    worlds: tuple[dict[str, Any], ...] = ()
    baselines: dict[Name, dict[str, Any]] = Field(default_factory=dict)


def load_study(path_or_name: str) -> StudyConfig:
    """The study in a file, or a packaged one by its name.

    Raises: ConfigError with file, line and key; UnknownNameError with the nearest name.
    """
    path = Path(path_or_name)
    if not path.is_file():
        known = packaged_studies()
        if path_or_name not in known:
            raise unknown_name("study", path_or_name, known)
        path = known[path_or_name]
    root = read_tree(path)
    return validate(StudyConfig, root.plain(), Source(root))


def configs(study: StudyConfig) -> list[ExperimentConfig]:
    """The experiments of a study with their overrides.

    Raises: ConfigError if two share a name, and so a run, or one has no `stop.env_steps`, and so no end.
    """
    found: dict[str, ExperimentConfig] = {}
    for part in study.experiments:
        config = load_experiment(part.experiment, part.overrides).config
        if config.name in found:
            raise ConfigError(f"study {study.name}: two experiments are named '{config.name}'; override `name` of one")
        if config.stop.env_steps is None:
            raise ConfigError(f"study {study.name}: {part.experiment} has no stop.env_steps; expected a number")
        found[config.name] = config
    return list(found.values())


def run_study(
    path_or_name: str, out: Path, *, minutes: float | None = None, notice: Callable[[str], None] = lambda line: None
) -> bool:
    """Do what is left of a study; True when all of it is done. Writes `<name>.md` and, for every world of the study,
    the evaluations of all methods into `out`: `<name>-<scenario>.json`, say, or `<name>.json`.

    Run folders lie in `out/runs`.  minutes: training stops cleanly before they are over, with a checkpoint; baselines
    and test episodes that are missing come on top.
    Raises: ConfigError as `configs`; InterruptedRunError when asked to stop; as `train` and `evaluate`.
    """
    study = load_study(path_or_name)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    runs_dir = out / "runs"
    complete = True
    for config in configs(study):
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s < 2 * SPARE_S:
            complete = False
            break
        complete &= _train(config, runs_dir, left_s, notice)
    for env in study.worlds:
        for label, section in study.baselines.items():
            _baseline(study, label, env, section, runs_dir, notice)
    _measure(study, runs_dir, notice)
    _write(study, out, runs_dir)
    return complete


def _name(label: str, env: dict[str, Any]) -> str:
    """A label and what tells a world from the others of the study."""
    return "-".join([label, *(str(value) for key, value in env.items() if key != "id")])


def _run_of(runs_dir: Path, name: str) -> Path | None:
    """The newest run of a name."""
    found = [info.path for info in list_runs(runs_dir) if info.path.parent.name == name]
    return found[-1] if found else None


def _train(config: ExperimentConfig, runs_dir: Path, left_s: float | None, notice: Callable[[str], None]) -> bool:
    """Train or go on with one experiment; whether it is done."""
    run = _run_of(runs_dir, config.name)
    if run is not None and _progress(run)["env_steps"] >= (config.stop.env_steps or 0):
        return True
    notice(f"{config.name}: {'starting' if run is None else 'going on'}")
    if run is None:
        limit = None if left_s is None else left_s - SPARE_S
        stop = config.stop.model_copy(update={"wall_time": limit})
        train(config.model_copy(update={"stop": stop}), runs_dir=str(runs_dir), quiet=True)
    else:  # wall time counts all sessions of a run
        limit = None if left_s is None else _progress(run)["wall_s"] + left_s - SPARE_S
        wall_time = "null" if limit is None else f"{limit:.0f}s"
        changes = [f"stop.env_steps={config.stop.env_steps or 'null'}", f"stop.wall_time={wall_time}"]
        resume(str(run), changes, quiet=True)
    run = _run_of(runs_dir, config.name)
    return run is not None and _progress(run)["env_steps"] >= (config.stop.env_steps or 0)


def _progress(run: Path) -> dict[str, float]:
    """How far a run's newest checkpoint is: `env_steps` of its slowest seed, `wall_s`."""
    newest = checkpoint.newest_valid(run / "checkpoints", lambda event: None, repair=False)
    if newest is None:
        return {"env_steps": 0, "wall_s": 0.0}
    stored = checkpoint.read_header(newest)["progress"]
    return {"env_steps": min(stored["env_steps"]), "wall_s": stored["wall_s"]}


def _baseline(
    study: StudyConfig,
    label: str,
    env: dict[str, Any],
    section: dict[str, Any],
    runs_dir: Path,
    notice: Callable[[str], None],
) -> None:
    """Measure a scripted policy on one world, once."""
    name = _name(label, env)
    if _run_of(runs_dir, name) is not None:
        return
    notice(f"{name}: measuring")
    data = {"name": name, "env": env, "agents": {"all": section}, "stop": {"env_steps": 1}, "runs_dir": str(runs_dir)}
    evaluate_experiment(config_from(data), episodes=study.episodes, quiet=True)


def _measure(study: StudyConfig, runs_dir: Path, notice: Callable[[str], None]) -> None:
    """Test episodes for every finished run that has not had them since it was last trained."""
    for info in list_runs(runs_dir):
        if info.status == "done" and not _tested(info.path, study.episodes):
            notice(f"{info.path.parent.name}: testing")
            evaluate(str(info.path), episodes=study.episodes, quiet=True)


def _tested(run: Path, episodes: int) -> bool:
    """Has every seed's newest policy been tested? A run that was trained on has another one."""
    seeds, found = read_json(run / "meta.json")["seeds"], _tests(run, episodes)
    return len(found) == len(seeds) and min(test.env_steps for test in found) >= _progress(run)["env_steps"]


def _tests(run: Path, episodes: int) -> list[Evaluation]:
    """The newest full test of every seed."""
    newest: dict[int, Evaluation] = {}
    for path in sorted([*run.glob("evaluations.json"), *run.glob("seed_*/evaluations.json")]):
        for found in read_evaluations(path):
            if found.kind == "test" and len(found.episodes.length) == episodes:
                newest[found.seed] = found
    return list(newest.values())


def _write(study: StudyConfig, out: Path, runs_dir: Path) -> None:
    """One file of evaluations from all runs on a world, and the report made from these files alone."""
    records = [_short(r) for r in merge(*(_tests(info.path, study.episodes) for info in list_runs(runs_dir)))]
    if not records:
        return
    files: dict[Path, list[Evaluation]] = {}
    for record in records:
        files.setdefault(out / f"{_world_name(study, record)}.json", []).append(record)
    for path, group in files.items():
        write_evaluations(path, group)
    made = build_report(list(files), out / "report", command=f"scripts/results {study.name}")
    write_text_atomic(out / f"{study.name}.md", made.files["table.md"].read_text())


def _world_name(study: StudyConfig, record: Evaluation) -> str:
    """The name of a study with that world of it on which a record was made."""
    found = [env for env in study.worlds if env.items() <= record.env.items()]
    return _name(study.name, found[0] if found else {})


def _short(record: Evaluation) -> Evaluation:
    """A record without the reward terms, which the table does not show and which are half of the file."""
    info = {name: values for name, values in record.episodes.info.items() if not name.startswith("reward/")}
    return record.model_copy(update={"episodes": record.episodes.model_copy(update={"info": info})})


def describe(study: StudyConfig, out: Path) -> list[str]:
    """What a study costs and what of it is done, line by line."""
    lines = [f"{study.name}: {study.cost}"]
    for config in configs(study):
        run = _run_of(out / "runs", config.name)
        done = 0 if run is None else int(_progress(run)["env_steps"])
        lines.append(f"  {config.name}: {len(config.seed_list)} seeds, {done:,} of {config.stop.env_steps:,} env steps")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """`scripts/results NAME`. Returns the exit code: 3 when something is left to do."""
    parser = argparse.ArgumentParser(prog="scripts/results", description="Make a result table from a study.")
    parser.add_argument("study", help=f"a YAML file, or one of: {', '.join(packaged_studies())}")
    parser.add_argument("--out", type=Path, help="where run folders and results go (default: results/NAME)")
    parser.add_argument("--minutes", type=float, help="train no longer than this; missing tests come on top")
    parser.add_argument("--list", action="store_true", help="say the cost and what is left, do nothing")
    options = parser.parse_args(arguments)
    try:
        study = load_study(options.study)
        out = options.out or Path("results") / study.name
        say("\n".join(describe(study, out)))
        if options.list:
            return 0
        complete = run_study(options.study, out, minutes=options.minutes, notice=say)
    except MarlError as problem:
        error(str(problem))
        return problem.exit_code
    say(
        f"{'complete' if complete else 'not complete yet'}: numbers and {study.name}.md in {out}, "
        f"report in {out / 'report'}"
    )
    return 0 if complete else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
