"""Evaluators as Ray actors: tasks of a few bytes out, results back in the order of the tasks.

The driver owns everything: which task is where, since when, and who is alive. An evaluator that is lost is replaced and
its task given out again; one that takes much longer than the others has its task given to somebody idle as well, and
the first answer counts. A task's answer depends on the task alone, so none of this shows in the numbers.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from marl.core.errors import RunError
from marl.core.evolution import Shared
from marl.core.types import EpisodeResult
from marl.dataflow.parts import Blueprint
from marl.dataflow.population_crew import AbandonedError, never
from marl.dataflow.population_shell import EvaluatorJob, EvaluatorShell, received, to_send
from marl.dataflow.population_tasks import Task
from marl.dataflow.ray_crew import START_LIMIT_S, Losses, LostError, ProcessOptions, Remote, get, now

WAIT_S = 1.0  # longest sleep before everybody is looked after


@dataclasses.dataclass(frozen=True)
class RayEvaluatorOptions:
    """count: of evaluators.  process: what each gets.  slow: a task is given out once more when it takes this many
    times as long as the middle one of its round, and at least `slow_s`.  call_limit_s: after which an evaluator that
    does not answer is ended.  losses: how many evaluators may be lost over one task.  least: with fewer evaluators that
    are worth starting again the run fails."""

    count: int
    process: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)
    slow: float = 3.0
    slow_s: float = 5.0
    call_limit_s: float = 600.0
    losses: int = 3
    least: int = 1


@dataclasses.dataclass
class Member:
    """One evaluator. remote: its process, None between two.  start_at: when it may be started; None: never again.

    call: what it was asked last, None while it is idle.  task: (round number, index) of that; None if it was asked to
    start.  since: when it was asked.  about: what process it is, once it is ready.
    """

    index: int
    remote: Remote | None = None
    start_at: float | None = 0.0
    call: Any = None
    task: tuple[int, int] | None = None
    since: float = 0.0
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    losses: Losses = dataclasses.field(default_factory=Losses)


class RayEvaluators:
    """A crew on the cluster that this process has joined. close: called at the end, to leave it.

    Raises: from `play` what an evaluator raises, and RunError if evaluators keep being lost or none comes up.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        job: EvaluatorJob,
        options: RayEvaluatorOptions,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self.blueprint, self.job, self.options, self._leave = blueprint, job, options, leave
        self.events: list[tuple[str, str]] = []
        self.reissued = self.replaced = 0
        self._version, self._shared = 0, ray.put(())
        self._round = 0
        self.members = [Member(index) for index in range(options.count)]
        self._start_due()

    def _start_due(self) -> None:
        for member in self.members:
            if member.remote is None and member.start_at is not None and member.start_at <= now():
                member.remote = Remote(EvaluatorShell, (self.blueprint, self.job), self.options.process)
                member.call, member.since = member.remote.call("start"), now()

    def share(self, shared: Shared) -> None:
        """Put it into the object store once; every node fetches it once."""
        self._version += 1
        self._shared = ray.put(shared)

    # ---- a round ---------------------------------------------------------------------------------------------------

    def play(self, tasks: Sequence[Task], should_stop: Callable[[], bool] = never) -> list[EpisodeResult]:
        self._round += 1
        by_index = {task.index: task for task in tasks}
        waiting = deque(by_index)
        losses = dict.fromkeys(by_index, 0)
        results: dict[int, EpisodeResult] = {}
        seconds: list[float] = []
        while len(results) < len(tasks):
            if should_stop():
                raise AbandonedError
            self._start_due()
            for member in self.members:
                if member.remote is not None and member.call is None:
                    index = waiting.popleft() if waiting else self._late(results, seconds)
                    if index is not None:
                        self._ask(member, by_index[index])
            for member in self._answered():
                asked, since = member.task, member.since
                answer = self._take(member)
                if asked is None or asked[0] != self._round or asked[1] in results:
                    continue  # it was starting, or somebody else was faster
                index = asked[1]
                if answer is not None:
                    results[index] = received(answer)
                    seconds.append(now() - since)
                    continue
                losses[index] += 1
                if losses[index] >= self.options.losses:
                    raise RunError(f"{losses[index]} evaluators were lost over the same task, so the run stops")
                if not self._in_flight(index):
                    waiting.appendleft(index)
        return [results[task.index] for task in tasks]

    def _ask(self, member: Member, task: Task) -> None:
        assert member.remote is not None
        member.call = member.remote.call("evaluate", self._version, self._shared, to_send(task))
        member.task, member.since = (self._round, task.index), now()

    def _in_flight(self, index: int) -> int:
        return sum(member.task == (self._round, index) for member in self.members if member.call is not None)

    def _late(self, results: Mapping[int, EpisodeResult], seconds: Sequence[float]) -> int | None:
        """The task that an idle evaluator should play as well: the one longest under way, if it is late."""
        if not seconds:
            return None
        limit = max(self.options.slow_s, self.options.slow * statistics.median(seconds))
        late = [
            (now() - member.since, member.task[1], member.index)
            for member in self.members
            if member.call is not None and member.task is not None and member.task[0] == self._round
        ]
        late = [found for found in late if found[0] > limit and found[1] not in results]
        late = [found for found in late if self._in_flight(found[1]) < 2]
        if not late:
            return None
        age, index, who = max(late)
        self.reissued += 1
        words = f"evaluator {who} has been at a task for {age:.1f} s; it was given out once more"
        self.events.append(("straggler", words))
        return index

    # ---- evaluators ------------------------------------------------------------------------------------------------

    def _answered(self) -> list[Member]:
        """The evaluators that have answered or were lost; waits a while for one. Those that do not answer are ended."""
        calls = {member.call: member for member in self.members if member.call is not None}
        if not calls:
            time.sleep(0.1)  # all of them are to be started again in a moment
            return []
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_S)
        for call, member in calls.items():
            limit = START_LIMIT_S if member.task is None else self.options.call_limit_s
            if call not in ready and now() - member.since > limit:
                if not any(other.about for other in self.members):
                    raise RunError(
                        f"no evaluator was ready within {limit:g} s; does the cluster have "
                        f"{self.options.process.cpus:g} CPUs for each of {self.options.count}?"
                    )
                assert member.remote is not None
                member.remote.kill()
                member.since = now()  # its call fails in a moment
        return [calls[call] for call in ready]

    def _take(self, member: Member) -> dict[str, Any] | None:
        """What an evaluator answered; None if it was lost, and another was put in its place."""
        try:
            answer: dict[str, Any] = get(member.call)
        except LostError as error:
            self._lose(member, error)
            return None
        if member.task is None:
            member.about = answer
        member.call, member.task = None, None
        self.events += [("world fault", words) for words in answer.get("faults", ())]
        return answer

    def _lose(self, member: Member, error: LostError) -> None:
        """Give up a process, and say when there may be another in its place."""
        assert member.remote is not None
        member.remote.kill()  # its node may only be out of reach
        wait = member.losses.note(now())
        member.remote, member.call, member.task, member.about = None, None, None, {}
        member.start_at = None if wait is None else now() + wait
        self.replaced += 1
        what = "given up" if wait is None else "replaced"
        self.events.append((f"evaluator {what}", f"evaluator {member.index}: {error}"))
        left = sum(other.start_at is not None for other in self.members)
        if left < self.options.least:
            needed = self.options.least
            raise RunError(f"{left} evaluators are left, and {needed} are needed; the last one was lost: {error}")

    def describe(self) -> str:
        return f"{self.options.count} {'evaluator' if self.options.count == 1 else 'evaluators'} on Ray"

    def take_events(self) -> list[tuple[str, str]]:
        taken, self.events = self.events, []
        return taken

    def close(self) -> None:
        """End the evaluators and leave the cluster."""
        for member in self.members:
            if member.remote is not None:
                member.remote.kill()
        self._leave()
