"""`marl evaluate`: held-out test episodes with the policy of a run, every seed of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marl.core.errors import ConfigError
from marl.core.types import EpisodeResult
from marl.evaluate.records import append_evaluation
from marl.evaluate.statistics import Interval, mean_intervals, preliminary
from marl.io.console import next_commands, say
from marl.io.lock import RunLock
from marl.runner.build import AnyEvaluator, build_evaluator, frozen_params
from marl.runner.listing import table
from marl.runner.load import load_experiment
from marl.runner.plan import make_plan
from marl.runner.policies import load_run_policy, run_seeds, save_policy, seed_folder
from marl.runner.results import evaluation_record
from marl.runner.runs import create_run_folder, resolve_run
from marl.runner.schema import ExperimentConfig
from marl.runner.train import set_up_jax, start_run_folder


def evaluate(
    run: str,
    *,
    episodes: int | None = None,
    greedy: bool | None = None,
    best: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    runs_dir: str = "runs",
) -> int:
    """Play test episodes with each seed's policy, store them in evaluations.json and print means with 95 % intervals.

    episodes, greedy: as in the run's config by default.  best: the policy of the best validation return, not the last.
    Raises: UserError if there is no such run or no policy in it.
    """
    folder = resolve_run(run, Path(runs_dir))
    config = load_experiment(folder / "config.yaml").config
    set_up_jax(config)
    count = episodes or config.evaluate.episodes
    act_greedily = config.evaluate.greedy if greedy is None else greedy
    evaluator: AnyEvaluator | None = None
    trained = True
    results: dict[int, EpisodeResult] = {}
    for seed in run_seeds(folder):
        plan, params, header = load_run_policy(folder, seed, "policy_best" if best else "policy")
        trained = bool(plan.learners)
        evaluator = evaluator or build_evaluator(config, plan, act_greedily)
        results[seed] = evaluator.run(params, "test", count)
        record = evaluation_record(
            config, results[seed], seed=seed, env_steps=header["env_steps"], kind="test", greedy=act_greedily
        )
        append_evaluation(seed_folder(folder, seed) / "evaluations.json", record)
    if not quiet:
        _show(folder, results, act_greedily, count, as_json, trained)
    return 0


def evaluate_experiment(
    config: ExperimentConfig,
    *,
    episodes: int | None = None,
    greedy: bool | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure an experiment in which nobody learns (scripted or frozen policies), in a run folder of its own.

    Raises: ConfigError if some policy of it learns.
    """
    set_up_jax(config)
    plan = make_plan(config)
    if plan.learners:
        raise ConfigError(
            f"'{plan.learners[0]}' of this experiment learns; expected scripted or frozen policies. "
            "To train it first: marl train CONFIG"
        )
    folder = create_run_folder(Path(config.runs_dir), config.name)
    with RunLock(folder):
        start_run_folder(folder, plan.config, plan, status="done")
        params = {name: frozen_params(plan).get(name, ()) for name in plan.policies}
        save_policy(folder / "policy", params, {"env_steps": 0, "updates": 0, "seed": config.seed_list[0]})
    return evaluate(str(folder), episodes=episodes, greedy=greedy, as_json=as_json, quiet=quiet)


def _show(
    folder: Path, results: dict[int, EpisodeResult], greedy: bool, episodes: int, as_json: bool, trained: bool
) -> None:
    """Print what every seed scored, and all seeds together. trained: False where no policy of the run learns."""
    columns = {seed: figures(result) for seed, result in results.items()}
    names = list(next(iter(columns.values())))
    overall = mean_intervals([[by_name[name] for by_name in columns.values()] for name in names])
    if as_json:
        by_metric = dict(zip(names, overall, strict=True))
        say(json.dumps(_as_json(folder, greedy, episodes, columns, by_metric, trained), indent=2))
        return
    rows = []
    for name, interval in zip(names, overall, strict=True):
        row = {"metric": name, "mean [95 %]": f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"}
        if trained:
            row |= {f"seed {seed}": f"{by_name[name].mean():.4g}" for seed, by_name in columns.items()}
        rows.append(row)
    say(table(rows))
    say(_protocol(len(results), episodes, greedy, trained))
    next_commands([f"marl render {folder} -o episode.gif", f"marl report {folder}"])


def _protocol(seeds: int, episodes: int, greedy: bool, trained: bool) -> str:
    """How the numbers above were made. Training seeds count only where something was trained."""
    tests = f"{episodes} test {'episode' if episodes == 1 else 'episodes'}, {'greedy' if greedy else 'sampled'} actions"
    if not trained:
        return f"not trained: {tests}; bootstrap over episodes"
    few = ", preliminary" if preliminary(seeds) else ""
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'} x {tests}; bootstrap over seeds and episodes{few}"


def figures(result: EpisodeResult) -> dict[str, np.ndarray[Any, Any]]:
    """One number an episode by metric: return by role, length, and the world's own figures without the reward terms."""
    columns = {f"return/{role}": np.asarray(returns).mean(axis=-1) for role, returns in result.returns.items()}
    columns["length"] = np.asarray(result.length)
    columns.update({name: np.asarray(x) for name, x in result.info.items() if not name.startswith("reward/")})
    return columns


def _as_json(
    folder: Path,
    greedy: bool,
    episodes: int,
    columns: Mapping[int, Mapping[str, np.ndarray[Any, Any]]],
    overall: Mapping[str, Interval],
    trained: bool,
) -> dict[str, Any]:
    return {
        "run": str(folder),
        "greedy": greedy,
        "episodes": episodes,
        "trained": trained,
        "metrics": {name: {"mean": i.value, "low": i.low, "high": i.high} for name, i in overall.items()},
        "seeds": {str(s): {name: float(x.mean()) for name, x in by_name.items()} for s, by_name in columns.items()},
    }
