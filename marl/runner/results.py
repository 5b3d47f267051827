"""Episode results as rows for the sinks and as records for `evaluations.json`."""

from __future__ import annotations

import time

import numpy as np

from marl.core.types import EpisodeResult
from marl.evaluate.records import Episodes, Evaluation
from marl.io.metrics import Row
from marl.runner.origin import code_commit, config_hash
from marl.runner.schema import ExperimentConfig


def mean_return(result: EpisodeResult) -> float:
    """Mean over episodes of the return an agent got, all agents of all roles weighing the same."""
    return float(np.concatenate([np.asarray(r) for r in result.returns.values()], axis=-1).mean())


def evaluation_row(result: EpisodeResult) -> Row:
    """`eval/...` tags: means over the episodes."""
    row: Row = {"eval/episodes": int(np.size(result.length)), "eval/length": float(np.mean(result.length))}
    for role, returns in result.returns.items():
        row[f"eval/return/{role}"] = float(np.mean(returns))
    for name, values in result.info.items():
        row[f"eval/{name}"] = float(np.mean(values))
    return row


def algorithms(config: ExperimentConfig) -> str:
    """The algorithms of a run in one word: `ppo`, or `leader=ppo,follower=random`."""
    named = {name: section.algorithm for name, section in config.agents.items()}
    kinds = set(named.values())
    return kinds.pop() if len(kinds) == 1 else ",".join(f"{name}={kind}" for name, kind in named.items())


def evaluation_record(
    config: ExperimentConfig,
    result: EpisodeResult,
    *,
    seed: int,
    env_steps: int,
    kind: str,
    greedy: bool,
    first: int = 0,
) -> Evaluation:
    """One evaluation as it is stored. first: index of the first episode in its held-out stream."""
    episodes = Episodes.from_arrays(result.returns, result.length, result.agent_steps, result.info, first=first)
    return Evaluation.model_validate(
        {
            "label": config.name,
            "algorithm": algorithms(config),
            "env": {"id": config.env.id, **config.env.options},
            "seed": seed,
            "env_steps": env_steps,
            "kind": kind,
            "greedy": greedy,
            "episodes": episodes,
            "commit": code_commit(),
            "config_hash": config_hash(config),
            "time": round(time.time(), 3),
        }
    )
