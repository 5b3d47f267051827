"""How a round of a population is cut into tasks, and how their results come together again.

A task is a rectangle of individuals by episodes, for one evaluator. Tasks follow from sizes alone, never from how many
evaluators there are: so neither do the results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.evolution import Offspring, Round
from marl.core.types import EpisodeResult, Tree


@dataclasses.dataclass(frozen=True)
class Task:
    """What an evaluator plays: every one of `offspring` on every one of `keys`. Bytes and numbers only.

    index: place in the round.  count: individuals; `offspring` holds more where the last task of a round is filled up
    with copies, so that all tasks of a round have the same shapes.  offspring: numpy leaves `[C, ...]`.
    keys: of the episodes, as numbers u32 `[E, 2]`.  episodes: how many of them count.
    """

    index: int
    count: int
    episodes: int
    offspring: Offspring
    keys: NDArray[np.uint32]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a round is cut: `individuals` x `episodes` a task, `across` tasks for all individuals, `along` for all
    episodes."""

    individuals: int
    episodes: int
    across: int
    along: int

    @classmethod
    def of(cls, round: Round, task_size: int) -> Cut:
        """The fewest tasks of at most `task_size` episodes each, all about equally large."""
        along = math.ceil(round.episodes / task_size)
        episodes = math.ceil(round.episodes / along)
        across = math.ceil(round.size / max(1, task_size // episodes))
        return cls(math.ceil(round.size / across), episodes, across, along)


def cut(round: Round, task_size: int, offspring: Offspring, keys: NDArray[np.uint32]) -> list[Task]:
    """The tasks of a round. offspring: numpy leaves `[size, ...]`.  keys: u32 `[episodes, 2]`."""
    plan = Cut.of(round, task_size)
    tasks: list[Task] = []
    for a in range(plan.across):
        rows = _indices(a, plan.individuals, round.size)
        part = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], offspring)
        count = min(plan.individuals, round.size - a * plan.individuals)
        for b in range(plan.along):
            own = keys[_indices(b, plan.episodes, round.episodes)]
            episodes = min(plan.episodes, round.episodes - b * plan.episodes)
            tasks.append(Task(len(tasks), max(count, 0), max(episodes, 0), part, own))
    return tasks


def join(round: Round, task_size: int, tasks: Sequence[Task], results: Sequence[EpisodeResult]) -> EpisodeResult:
    """The round's results, leaves `[size, episodes, ...]`, from those of its tasks in order."""
    plan = Cut.of(round, task_size)
    trimmed = [_trim(result, task) for task, result in zip(tasks, results, strict=True)]
    rows: list[Tree] = [
        jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *trimmed[a * plan.along : (a + 1) * plan.along])
        for a in range(plan.across)
    ]
    whole: EpisodeResult = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    return whole


def _trim(result: EpisodeResult, task: Task) -> EpisodeResult:
    def kept(x: Any) -> NDArray[Any]:
        return np.asarray(x)[: task.count, : task.episodes]

    return jax.tree.map(kept, result)  # type: ignore[no-any-return]


def _indices(part: int, size: int, total: int) -> NDArray[np.int64]:
    """The indices of a part, the last one repeated where the part is not full."""
    return np.minimum(np.arange(part * size, (part + 1) * size), total - 1)
