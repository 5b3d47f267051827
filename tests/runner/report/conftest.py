"""Made-up runs for the tests of the report: small run folders as the runner leaves them, and evaluation files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from marl.evaluate.records import Episodes, Evaluation, write_evaluations
from marl.io.files import dumps
from marl.runner.report import Report, build_report

ENV = {"id": "heterogeneous_highway_v0", "scenario": "mild"}


def evaluation(label: str, mean: float, *, seed: int = 0, episodes: int = 32, **changes: Any) -> Evaluation:
    """Made-up episodes around `mean`; how hard an episode is depends on its index alone."""
    hard = np.random.default_rng(99).normal(size=512)[:episodes, None]
    noise = np.random.default_rng([seed, *label.encode()]).normal(size=(episodes, 5))
    returns = np.clip(mean + 6.0 * hard + 3.0 * noise, 0.0, 90.0)
    survival = np.clip(returns.mean(axis=1) * 1.2, 0.0, 90.0)
    info = {
        "survival_s": survival,
        "success": (survival > 75.0).astype(float),
        "speed_mps": 21.0 + 0.05 * survival,
        "reward/vehicle/speed": 0.7 * returns.mean(axis=1),
        "reward/vehicle/crash": 0.3 * returns.mean(axis=1),
    }
    data: dict[str, Any] = {
        "label": label,
        "algorithm": "ppo",
        "env": ENV,
        "seed": seed,
        "env_steps": 500_000,
        "kind": "test",
        "greedy": False,
        "episodes": Episodes.from_arrays({"vehicle": returns}, [90] * episodes, [400] * episodes, info),
        "commit": "1a2b3c4",
        "config_hash": "f" * 12,
        "time": 1.0,
    }
    return Evaluation.model_validate({**data, **changes})


def run(
    folder: Path, label: str, mean: float, seeds: Iterable[int], *, env: dict[str, Any] = ENV, **changes: Any
) -> Path:
    """A run folder as the runner leaves it: config.yaml, metrics.jsonl, evaluations.json by seed."""
    seeds = list(seeds)
    folder.mkdir(parents=True)
    config = {"name": label, "seeds": seeds, "env": env, "agents": {"vehicle": {"algorithm": "ppo"}}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 5])
        for update in range(1, 31):
            now = mean * (1.0 - 0.6 * np.exp(-update / 8.0))
            row = {"seed": seed, "env_steps": update * 16_384, "updates": update, "time": 1.0}
            score = float(now + rng.normal())
            lines.append({"kind": "train", **row, "episode/return/vehicle": score, "loss/vehicle/policy": 0.1})
            if update % 5 == 0:
                extra = {"eval/survival_s": score * 1.2, "eval/success": 0.4, "eval/speed_mps": 24.0}
                lines.append({"kind": "eval", **row, "eval/return/vehicle": score, **extra})
        place = folder if len(seeds) == 1 else folder / f"seed_{seed}"
        place.mkdir(exist_ok=True)
        scored = mean + np.random.default_rng(seed).normal()
        write_evaluations(place / "evaluations.json", [evaluation(label, scored, seed=seed, env=env, **changes)])
    lines.append({"kind": "event", "seed": 0, "env_steps": 1, "updates": 1, "time": 1.0, "event": "x", "message": "y"})
    (folder / "metrics.jsonl").write_text("".join(dumps(line) + "\n" for line in lines))
    return folder


def baselines(path: Path, env: dict[str, Any] = ENV) -> Path:
    """A committed evaluation file of policies that learned nothing."""
    names = {"always-idle": 38.0, "always-slower": 44.0, "always-faster": 20.0}
    records = [
        evaluation(label, mean, algorithm="scripted/constant", env_steps=0, episodes=128, env=env)
        for label, mean in names.items()
    ]
    records.append(evaluation("random", 30.0, algorithm="random", env_steps=0, episodes=128, env=env))
    records.append(
        evaluation("defensive", 66.0, algorithm="scripted/highway_defensive", env_steps=0, episodes=128, env=env)
    )
    write_evaluations(path, records)
    return path


def report(paths: Iterable[Path], out: Path) -> Report:
    return build_report(list(paths), out, resamples=500)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers above, and the world they use."""
    return SimpleNamespace(ENV=ENV, run=run, evaluation=evaluation, baselines=baselines, report=report, rows_of=rows_of)
