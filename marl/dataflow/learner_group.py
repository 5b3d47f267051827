"""A learner that is spread over processes, as the program that drives them sees it: used as `LearnerCore` is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from marl.core.algorithm import Algorithm
from marl.core.errors import LostError, MarlError, RunError
from marl.core.types import Key, Trajectory, Tree
from marl.dataflow.learner_rank import RankLearner, key_words
from marl.dataflow.learner_sharded import MakeAlgorithm, check_lanes, split_lanes
from marl.dataflow.learning import PRIORITY

POLL_S = 0.001
TIMEOUT_S = 300.0  # the first call compiles
# How messages of JAX begin when another rank is gone, or a connection to it.
LOST = ("UNKNOWN: ", "UNAVAILABLE: ", "ABORTED: ", "CANCELLED: ", "DEADLINE_EXCEEDED: ", "INTERNAL: ", "DATA_LOSS: ")


class Answer(Protocol):
    """What a rank will have answered to one call."""

    def ready(self) -> bool:
        """Whether `result` will not wait; True as well if the call failed or the rank is gone."""
        ...

    def result(self) -> Any:
        """What the method returned. Raises: RunError if the rank is lost; else what the method raised."""
        ...


class Rank(Protocol):
    """The process of one rank. It does calls one after another, in the order in which they were made."""

    def call(self, method: str, *arguments: Any) -> Answer:
        """Have a method of its RankLearner called."""
        ...

    def kill(self) -> None:
        """End the process at once, whatever it is at. May be called twice."""
        ...


class Placed(NamedTuple):
    """A batch whose lanes are on their way to the ranks."""

    batch_id: int
    lanes: int


class Pending(Mapping[str, float]):
    """The metrics of an update that the ranks may still be at: whoever reads them waits for it."""

    def __init__(self, wait: Callable[[], list[Any]], ready: Callable[[], bool]) -> None:
        self._wait, self.is_ready = wait, ready
        self._results: list[Any] | None = None

    def results(self) -> list[Any]:
        """What each rank answered. Raises: LostError if one failed."""
        if self._results is None:
            self._results = self._wait()
        return self._results

    def block_until_ready(self) -> Pending:
        """Wait for the update. Raises: LostError if a rank failed."""
        self.results()
        return self

    def __getitem__(self, tag: str) -> float:
        return float(self.results()[0]["metrics"][tag])

    def __iter__(self) -> Iterator[str]:
        return iter(self.results()[0]["metrics"])

    def __len__(self) -> int:
        return len(self.results()[0]["metrics"])


class Skipped:
    """How many updates in a row had been thrown away when an update was done, for `int`, which waits for it."""

    def __init__(self, update: Pending) -> None:
        self._update = update

    def __int__(self) -> int:
        return int(self._update.results()[0]["skipped"])


class LearnerGroup:
    """One policy's learner over several processes. Only rank 0 is asked what there is to know; all are told what to do.

    ranks: processes that have joined one runtime, in order, each with a RankLearner.  timeout: seconds that one call
    may take, the first one with its compilation included.

    Every method but `place` raises LostError if a rank is lost, falls silent or is at another update, and what a rank
    raised otherwise. All ranks have been ended then: one that waits for another in a collective may wait for ever.
    """

    def __init__(self, name: str, algorithm: Algorithm, ranks: Sequence[Rank], timeout: float = TIMEOUT_S) -> None:
        self.name, self.algorithm, self.ranks, self.timeout = name, algorithm, list(ranks), timeout
        self._batches = 0
        self._unchecked: list[Answer] = []  # of calls whose success nobody has waited for
        self.pending: Any = None
        self.skipped: Any = 0

    def start(self, key: Key) -> None:
        """A fresh state on every rank."""
        self._all("start", key_words(key))

    def place(self, batch: Trajectory) -> Placed:
        """Send every rank its lanes. Raises: ConfigError if they cannot be split evenly."""
        lanes = batch.version.shape[0]
        check_lanes(lanes, len(self.ranks))
        self._batches += 1
        parts = split_lanes(batch, len(self.ranks))
        self._unchecked += [
            rank.call("place", self._batches, part) for rank, part in zip(self.ranks, parts, strict=True)
        ]
        return Placed(self._batches, lanes)

    def update(self, batch: Placed, env_steps: int, key: Key) -> dict[str, Any] | Pending:
        """Have all ranks learn from a batch that was placed. Returns at once; who reads the metrics waits."""
        done = self._begin("update", batch.batch_id, env_steps, key_words(key))
        if self.algorithm.needs.replay is None:
            return done
        metrics: dict[str, Any] = dict(done)
        if PRIORITY in done.results()[0]:
            metrics[PRIORITY] = [x for result in done.results() for x in result[PRIORITY].tolist()]
        return metrics

    def gradient(self, params: Tree, batch: Placed, key: Key) -> tuple[Tree, Mapping[str, Any]]:
        """The mean gradient at `params` over all lanes of a batch."""
        found: tuple[Tree, Mapping[str, Any]] = self._all("gradient", params, batch.batch_id, key_words(key))
        return found

    def apply(self, grads: Tree, metrics: Mapping[str, Any], env_steps: int) -> Pending:
        """Have all ranks apply a gradient. Returns at once."""
        return self._begin("apply", grads, {tag: float(value) for tag, value in metrics.items()}, env_steps)

    def published(self) -> Tree:
        """What actors need, once the newest update is done."""
        return self._await([self.ranks[0].call("published")])[0]

    def snapshot(self) -> dict[str, Any]:
        """As `LearnerCore.snapshot`, and fit for it."""
        stored: dict[str, Any] = self._all("snapshot")
        return stored

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a snapshot of any number of learners, after `start`."""
        self._all("restore", stored)
        self.skipped = int(stored["skipped"])

    def close(self) -> None:
        """End the ranks."""
        for rank in self.ranks:
            rank.kill()

    def _begin(self, method: str, *arguments: Any) -> Pending:
        answers = [rank.call(method, *arguments) for rank in self.ranks]
        unchecked, self._unchecked = self._unchecked, []

        def ready() -> bool:
            return all(answer.ready() for answer in answers) or self._failed(answers)

        done = Pending(lambda: self._await(unchecked + answers)[len(unchecked) :], ready)
        self.pending, self.skipped = done, Skipped(done)
        return done

    def _all(self, method: str, *arguments: Any) -> Any:
        """Call a method of every rank. Returns rank 0's answer when all have answered."""
        return self._await([rank.call(method, *arguments) for rank in self.ranks])[0]

    def _failed(self, answers: Sequence[Answer]) -> bool:
        """Whether one of them is an error already: those that wait for it in a collective never answer."""
        for answer in answers:
            if answer.ready():
                try:
                    answer.result()
                except MarlError:
                    return True
        return False

    def _await(self, answers: Sequence[Answer]) -> list[Any]:
        """All answers; the first failure ends the group, though others may still be waiting for the one that failed."""
        results: dict[int, Any] = {}
        deadline = time.monotonic() + self.timeout
        while len(results) < len(answers):
            for number, answer in enumerate(answers):
                if number not in results and answer.ready():
                    try:
                        results[number] = answer.result()
                    except MarlError as error:
                        self.close()
                        if isinstance(error, RunError):
                            raise LostError(f"a rank of learner '{self.name}' is lost: {error}") from error
                        raise
            if len(results) < len(answers):
                if time.monotonic() > deadline:
                    self.close()
                    raise LostError(f"a rank of learner '{self.name}' has not answered for {self.timeout:g} s")
                time.sleep(POLL_S)
        return [results[number] for number in range(len(answers))]


class OwnRanks:
    """Rank 0 in the process of the driver itself, which has joined: it makes groups of itself and others.

    others: gives the rank of a policy by name, one function a process. After a LostError this process must end, too: it
    cannot join again, and a thread of it may be held fast in a collective.
    """

    def __init__(self, others: Sequence[Callable[[str], Rank]], timeout: float = TIMEOUT_S) -> None:
        self.others, self.timeout = list(others), timeout
        # One thread for all policies: every rank must run the programs of all in the same order.
        self._thread = ThreadPoolExecutor(1, "learner rank 0")

    def learner(self, name: str, algorithm: Algorithm, make_algorithm: MakeAlgorithm) -> LearnerGroup:
        """The learner of a policy over all ranks."""
        own = _OwnRank(RankLearner(name, make_algorithm), self._thread)
        return LearnerGroup(name, algorithm, [own, *(other(name) for other in self.others)], self.timeout)


class _OwnRank:
    def __init__(self, learner: RankLearner, thread: Executor) -> None:
        self._learner, self._thread = learner, thread

    def call(self, method: str, *arguments: Any) -> Answer:
        return _Later(self._thread.submit(getattr(self._learner, method), *arguments))

    def kill(self) -> None:
        """Nothing: whoever hears of the failure ends this process, and has its reason."""


class _Later:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def ready(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        try:
            return self._future.result()
        except MarlError:
            raise
        except (RuntimeError, ValueError) as error:  # JAX uses both
            if str(error).startswith(LOST):
                raise RunError(str(error)) from error
            raise
