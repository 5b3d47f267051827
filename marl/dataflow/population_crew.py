"""Who plays the tasks of a round: evaluators of this process, in one loop, or actors elsewhere (`ray_population`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from marl.core.evolution import Shared
from marl.core.types import EpisodeResult
from marl.dataflow.groups import WorkerProcess, wait_for_any
from marl.dataflow.population_evaluators import Evaluator, Playing
from marl.dataflow.population_tasks import Task

WAIT_S = 1.0  # longest sleep before the processes are looked after


class AbandonedError(Exception):
    """A round was asked to stop in the middle. Nothing of it is kept: it can be asked for again at any time."""


def never() -> bool:
    """For those whom nobody stops."""
    return False


class Crew(Protocol):
    """Plays tasks and answers in their order, whoever played them and however often.

    `play` raises AbandonedError soon after `should_stop` says so; a crew that did is of no further use.
    """

    def share(self, shared: Shared) -> None:
        """What a generation's individuals are decoded with; numpy leaves."""
        ...

    def play(self, tasks: Sequence[Task], should_stop: Callable[[], bool] = never) -> list[EpisodeResult]: ...
    def describe(self) -> str: ...
    def take_events(self) -> list[tuple[str, str]]:
        """(name, words) of what happened since the last call."""
        ...

    def close(self) -> None: ...


class LocalCrew:
    """Evaluators in this process; the worlds of some may be stepped in `workers`. Nothing here runs in a thread."""

    def __init__(self, evaluators: Sequence[Evaluator], workers: Sequence[WorkerProcess] = ()) -> None:
        self.evaluators, self.workers = list(evaluators), list(workers)
        self._shared: Shared = None

    def share(self, shared: Shared) -> None:
        self._shared = shared

    def play(self, tasks: Sequence[Task], should_stop: Callable[[], bool] = never) -> list[EpisodeResult]:
        waiting = deque(tasks)
        playing: dict[int, tuple[int, Playing]] = {}
        results: dict[int, EpisodeResult] = {}
        while len(results) < len(tasks):
            if should_stop():
                raise AbandonedError
            moved = False
            for index, evaluator in enumerate(self.evaluators):
                if index not in playing:
                    if not waiting:
                        continue
                    task = waiting.popleft()
                    playing[index] = (task.index, evaluator.start(self._shared, task))
                elif not evaluator.ready():
                    continue
                moved = True
                number, game = playing[index]
                try:
                    next(game)
                except StopIteration as done:
                    results[number] = done.value
                    del playing[index]
            if not moved:
                wait_for_any(self.workers, WAIT_S)
        return [results[task.index] for task in tasks]

    def describe(self) -> str:
        count = len(self.evaluators)
        where = f", worlds in {len(self.workers)} processes" if self.workers else ""
        return f"{count} {'evaluator' if count == 1 else 'evaluators'} in this process{where}"

    def take_events(self) -> list[tuple[str, str]]:
        return [("world fault", words) for evaluator in self.evaluators for words in evaluator.new_faults()]

    def close(self) -> None:
        for evaluator in self.evaluators:
            evaluator.close()
        for worker in self.workers:
            worker.close()
