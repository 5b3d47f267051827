"""What simple_spread pays those who learn nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

SPREAD_EPISODES = 100


def played(greedy: bool) -> float:
    """Mean return of an agent of simple_spread, at random, or with landmarks assigned anew at every step."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(N=3, max_cycles=25)
    names, total = env.possible_agents, 0.0
    for episode in range(SPREAD_EPISODES):
        observations, _ = env.reset(seed=episode)
        random = np.random.default_rng(episode)
        while env.agents:
            actions = drive(observations, names) if greedy else {name: int(random.integers(5)) for name in names}
            observations, rewards, *_ = env.step(actions)
            total += sum(rewards.values()) / len(names)
    return total / SPREAD_EPISODES


def drive(observations: dict[str, Any], names: list[str]) -> dict[str, int]:
    """Every agent towards its landmark of the shortest assignment, braking: positions are offsets by what speed will
    still carry it. Observations: velocity (2), position (2), offsets of the landmarks (6), and what is not used."""
    seen = np.stack([observations[name] for name in names])
    offsets = seen[:, 4:10].reshape(3, 3, 2)
    ways = np.linalg.norm(offsets, axis=-1)
    agents = np.arange(3)
    best = min(itertools.permutations(range(3)), key=lambda order: float(ways[agents, list(order)].sum()))
    wanted = offsets[agents, list(best)] - 0.25 * seen[:, :2]
    actions = {}
    for name, (x, y) in zip(names, wanted, strict=True):
        if max(abs(x), abs(y)) < 0.05:
            actions[name] = 0
        elif abs(x) > abs(y):
            actions[name] = 2 if x > 0 else 1
        else:
            actions[name] = 4 if y > 0 else 3
    return actions
