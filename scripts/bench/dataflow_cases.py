"""What `dataflow` compares: the settings of each side, matched and over the stated grid."""

from __future__ import annotations

import dataclasses
from typing import Any

GRID = (1, 8, 16)  # worlds a runner
RUNNERS = 2
BATCH = 1024  # env steps an update
# Tasks of the comparison, and who takes part besides us.
PEERS = {
    "cartpole": ("rllib_ppo", "rllib_impala", "sb3", "sample_factory"),
    "spread": ("rllib_ppo", "rllib_impala", "sb3"),
    "atari": ("rllib_ppo", "sb3", "sample_factory"),
}
TITLES = {
    "ours": "ours",
    "rllib_ppo": "RLlib PPO",
    "rllib_impala": "RLlib IMPALA",
    "sb3": "Stable-Baselines3 PPO",
    "sample_factory": "Sample Factory APPO",
}
WORLDS = {"cartpole": "CartPole-v1", "spread": "mpe2 simple_spread_v3", "atari": "Pong (ALE)"}
RETURNS = {"cartpole": 475.0, "spread": -20.0}  # of `--time-to-return`: mean of 100 episodes, of one agent
# How often ours has to be faster: (matched, best of the grid).
WANTED = {
    ("cartpole", "rllib_ppo"): (10, 3),
    ("cartpole", "rllib_impala"): (10, 3),
    ("cartpole", "sb3"): (3, 3),
    ("cartpole", "sample_factory"): (3, 3),
    ("spread", "rllib_ppo"): (8, 2),
    ("spread", "rllib_impala"): (8, 2),
}
RAW_SHARE = 0.7  # wanted of the raw stepping rate in simple_spread

COMMON = {
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "entropy_coef": 0.01,
    "max_grad_norm": 0.5,
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One process to measure: `environment` names its requirements (`ours`: this project), `program` what it runs."""

    name: str
    environment: str
    program: str
    setting: dict[str, Any]
    label: str


def side(name: str, task: str, runners: int, worlds: int, *, matched: bool = False, **more: Any) -> Side:
    """A contender with `worlds` worlds on each of `runners` runners, BATCH env steps an update in all."""
    total = runners * worlds
    setting = {"task": task, "rollout": BATCH // total, **COMMON, **more}
    label = f"{runners} × {worlds} worlds"
    if name == "ours":
        setting |= {"num_envs": total, "workers": runners if runners > 1 else 0, **more}
        where = f"{runners} worker processes" if setting["workers"] else "one process"
        label = f"{total} worlds, {where}, staleness {setting.get('max_staleness', 0)}"
        return Side(name, "ours", "dataflow_ours.py", setting, label)
    if name in ("rllib_ppo", "rllib_impala"):
        setting |= {"algorithm": name.removeprefix("rllib_"), "runners": runners, "worlds_per_runner": worlds}
        if name == "rllib_impala" and not matched:
            setting |= {"rollout": 50, "batch": 500}  # its own defaults
            label += ", batch 500"
        return Side(name, "rllib", "peers/rllib_side.py", setting, label)
    if name == "sb3":
        setting["worlds"] = total
        label = f"{total} worlds, {'processes' if more.get('vector') == 'subproc' else 'one process'}"
        return Side(name, "sb3", "peers/sb3_side.py", setting, label)
    setting |= {"mode": "serial" if matched else "async", "runners": runners, "worlds_per_runner": worlds}
    setting["batch"] = BATCH // setting["minibatches"]
    if not matched:
        setting |= {"rollout": 32, "batch": BATCH, "minibatches": 1, "epochs": 1}
        label += ", asynchronous, rollout 32, 1 epoch"
    return Side(name, "sf", "peers/sf_side.py", setting, label)


def matched(name: str, task: str) -> list[Side]:
    """A contender's settings with 8 worlds, 128 steps, 4 epochs and 4 minibatches: one; ours may choose where its
    worlds are and whether it collects while it learns (staleness 1)."""
    if name == "ours":
        return [side(name, task, 1, 8), side(name, task, 2, 4), side(name, task, 2, 4, max_staleness=1)]
    if name == "sb3":
        return [side(name, task, 1, 8)]
    if name == "sample_factory":
        return [side(name, task, 1, 8, matched=True)]
    return [side(name, task, RUNNERS, 4, matched=True)]


def grid(name: str, task: str) -> list[Side]:
    """A contender's settings with 1, 8 and 16 worlds a runner (ours in one process: as many worlds in all)."""
    if name == "ours":
        alone = [side(name, task, 1, RUNNERS * worlds) for worlds in GRID]
        split = [side(name, task, RUNNERS, worlds, max_staleness=stale) for stale in (0, 1) for worlds in GRID[1:]]
        return [*alone, *split]
    if name == "sb3":
        kinds = [{}] if task == "spread" else [{}, {"vector": "subproc"}]
        sides = [side(name, task, 1, worlds, **kind) for kind in kinds for worlds in GRID]
        return [each for each in sides if not (each.setting["worlds"] == 1 and "vector" in each.setting)]
    return [side(name, task, RUNNERS, worlds) for worlds in GRID]


def raw(processes: int) -> Side:
    """simple_spread's own stepping rate."""
    return Side(
        "raw",
        "sb3",
        "peers/mpe2_side.py",
        {"processes": processes},
        "one process" if processes == 1 else f"{processes} processes",
    )
