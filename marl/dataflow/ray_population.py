"""Evaluators as Ray actors: tasks of a few bytes out, results back in the order of the tasks.

The driver owns everything: which task is where, since when, and who is alive. Actors are never restarted and calls
never retried by Ray itself. One that dies is replaced and its task given out again; one that takes much longer than the
others has its task given to somebody idle as well, and the first answer counts. A task's answer depends on the task
alone, so none of this shows in the numbers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from marl.core.errors import RunError, UserError, WorldError
from marl.core.evolution import Shared
from marl.core.types import EpisodeResult
from marl.dataflow.population_tasks import Task
from marl.dataflow.ray_evaluator import EvaluatorShell

WAIT_S = 1.0  # longest sleep before everybody is looked after


@dataclasses.dataclass(frozen=True)
class RayCrewOptions:
    """evaluators: how many.  actor: Ray's own options of each, such as `num_cpus` and a placement group's strategy.

    environment: of each actor's process.  slow: a task is given out once more when it takes this many times as long as
    the middle one of its round, and at least `slow_s`.  hung_s: after which an evaluator that does not answer is ended.
    deaths: how many evaluators may die over one task, or before they are ready, in a row.  start_s: longest wait for
    the first one.
    """

    evaluators: int
    actor: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"num_cpus": 1})
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    slow: float = 3.0
    slow_s: float = 5.0
    hung_s: float = 600.0
    deaths: int = 3
    start_s: float = 300.0


@dataclasses.dataclass
class _Member:
    """One evaluator. call: what it was asked last, None while it is idle.  task: (round number, index) of that; None if
    it was only asked whether it is there.  since: when it was asked."""

    index: int
    actor: Any
    call: Any
    task: tuple[int, int] | None
    since: float
    pid: int = 0


class RayCrew:
    """Evaluators in the cluster that this process has joined (`ray.init` was called).

    function, arguments: what builds an `Evaluator` in a process of its own, `package.module:name` and JSON.
    Raises: UserError from `play` if it cannot be built there; WorldError if the worlds say that the run must stop;
    RunError if evaluators keep dying or none comes up.
    """

    def __init__(self, function: str, arguments: Mapping[str, Any], options: RayCrewOptions) -> None:
        self.function, self.arguments, self.options = function, json.dumps(dict(arguments)), options
        self.events: list[tuple[str, str]] = []
        self.reissued = self.replaced = 0
        self._class: Any = ray.remote(EvaluatorShell)
        self._version, self._shared = 0, ray.put(())
        self._round = 0
        self._stillborn = 0
        self.members = [self._spawn(index) for index in range(options.evaluators)]

    def _spawn(self, index: int) -> _Member:
        options = {**self.options.actor, "max_restarts": 0, "max_task_retries": 0}
        actor = self._class.options(**options).remote(
            self.function, self.arguments, [p or os.getcwd() for p in sys.path], dict(self.options.environment)
        )
        return _Member(index, actor, actor.hello.remote(), None, time.monotonic())

    def share(self, shared: Shared) -> None:
        """Put it into the object store once; every node fetches it once."""
        self._version += 1
        self._shared = ray.put(shared)

    # ---- a round ---------------------------------------------------------------------------------------------------

    def play(self, tasks: Sequence[Task]) -> list[EpisodeResult]:
        self._round += 1
        waiting = deque(task.index for task in tasks)
        by_index = {task.index: task for task in tasks}
        results: dict[int, EpisodeResult] = {}
        seconds: list[float] = []
        deaths = dict.fromkeys(by_index, 0)
        while len(results) < len(tasks):
            for member in self.members:
                if member.call is None:
                    index = waiting.popleft() if waiting else self._slowest(results, seconds)
                    if index is not None:
                        self._ask(member, by_index[index])
            for member in self._answered():
                asked, since = member.task, member.since
                answer = self._take(member)
                mine = asked is not None and asked[0] == self._round and asked[1] not in results
                if answer is None:  # it died
                    if mine and asked is not None:
                        deaths[asked[1]] += 1
                        if deaths[asked[1]] >= self.options.deaths:
                            raise RunError(f"{deaths[asked[1]]} evaluators died over the same task, so the run stops")
                        if not self._in_flight(asked[1]):
                            waiting.appendleft(asked[1])
                elif mine and asked is not None:
                    results[asked[1]] = _result(answer)
                    seconds.append(time.monotonic() - since)
        return [results[task.index] for task in tasks]

    def _ask(self, member: _Member, task: Task) -> None:
        sent = (task.index, task.count, task.episodes, task.offspring, task.keys)
        member.call = member.actor.evaluate.remote(self._version, self._shared, sent)
        member.task, member.since = (self._round, task.index), time.monotonic()

    def _in_flight(self, index: int) -> int:
        return sum(member.task == (self._round, index) for member in self.members if member.call is not None)

    def _slowest(self, results: Mapping[int, EpisodeResult], seconds: Sequence[float]) -> int | None:
        """The task that an idle evaluator should play as well: the longest under way of those that are slow."""
        if not seconds:
            return None
        limit = max(self.options.slow_s, self.options.slow * statistics.median(seconds))
        now = time.monotonic()
        late = [
            (now - member.since, member.task[1], member.index)
            for member in self.members
            if member.call is not None and member.task is not None and member.task[0] == self._round
        ]
        late = [found for found in late if found[0] > limit and found[1] not in results]
        late = [found for found in late if self._in_flight(found[1]) < 2]
        if not late:
            return None
        age, index, who = max(late)
        self.reissued += 1
        self.events.append(
            ("straggler", f"evaluator {who} has been at a task for {age:.1f} s; it was given out once more")
        )
        return index

    # ---- evaluators ------------------------------------------------------------------------------------------------

    def _answered(self) -> list[_Member]:
        """The evaluators that have answered or died; waits a while for one. Those that hang are ended, and so die."""
        calls = {member.call: member for member in self.members if member.call is not None}
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_S)
        now = time.monotonic()
        for call, member in calls.items():
            limit = self.options.start_s if member.task is None else self.options.hung_s
            if call not in ready and now - member.since > limit:
                if member.task is None and not any(other.pid for other in self.members):
                    raise RunError(
                        f"no evaluator was ready within {limit:g} s; does the cluster have {dict(self.options.actor)} "
                        f"for each of {self.options.evaluators}?"
                    )
                ray.kill(member.actor)
                member.since = now  # its call fails in a moment
        return [calls[call] for call in ready]

    def _take(self, member: _Member) -> dict[str, Any] | None:
        """What an evaluator answered; None if it died, and another was put in its place."""
        was_ready = member.pid > 0
        try:
            answer: dict[str, Any] = ray.get(member.call)
        except ray.exceptions.RayTaskError as error:
            raise RunError(f"evaluator {member.index} failed: {_words(error.cause or error)}") from error
        except ray.exceptions.RayError as error:
            self._stillborn = 0 if was_ready else self._stillborn + 1
            if self._stillborn >= self.options.deaths + self.options.evaluators:
                raise RunError(f"evaluators keep dying before they are ready: {_words(error)}") from error
            self.replaced += 1
            self.events.append(("evaluator replaced", f"evaluator {member.index} died: {_words(error)}"))
            ray.kill(member.actor)  # its node may only be out of reach
            self.members[member.index] = self._spawn(member.index)
            return None
        member.call, member.task = None, None
        if "error" in answer:
            raise (UserError if answer["user"] else WorldError)(answer["error"])
        member.pid = answer.get("pid", member.pid)
        self.events += [("world fault", words) for words in answer.get("faults", ())]
        return answer

    def describe(self) -> str:
        count = len(self.members)
        return f"{count} {'evaluator' if count == 1 else 'evaluators'} on Ray"

    def take_events(self) -> list[tuple[str, str]]:
        taken, self.events = self.events, []
        return taken

    def close(self) -> None:
        """End the evaluators; the cluster stays."""
        if ray.is_initialized():
            for member in self.members:
                ray.kill(member.actor)


def _result(answer: Mapping[str, Any]) -> EpisodeResult:
    return EpisodeResult(answer["returns"], answer["length"], answer["agent_steps"], answer["info"])


def _words(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
