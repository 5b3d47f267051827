"""What every side of `scripts/bench/dataflow` speaks with the script that drives it. Standard library only.

A side gets its setting as JSON in its first argument, makes itself ready, writes one line of JSON about itself, and
answers each line on stdin with one line: `{"seconds": s}` is a window, `{"until": mean, "limit_s": s}` trains from
where it stands until the mean return of the last 100 training episodes is that high. It waits, doing nothing, in
between, and ends when stdin does.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

EPISODES = 100  # over which a mean return is taken

# Whatever a library prints goes to stderr; the answers alone to what was stdout.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def setting() -> dict[str, Any]:
    """This side's setting."""
    return json.loads(sys.argv[1])


def versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def say(answer: dict[str, Any]) -> None:
    _answers.write(f"{json.dumps(answer)}\n")
    _answers.flush()


def requests() -> Any:
    """The lines on stdin, parsed."""
    for line in sys.stdin:
        yield json.loads(line)


def serve(
    about: dict[str, Any],
    train: Callable[[], int],
    mean_return: Callable[[], float | None],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Answer requests with a side that can go on and pause.

    train: some iterations of collecting and learning; returns how many env steps they collected.
    mean_return: of the last 100 training episodes, None before there were so many.
    more: called when a window begins, and when it ends for what else is to be answered.
    """
    say(about)
    for request in requests():
        more()
        began, done = time.perf_counter(), 0
        limit = request.get("seconds") or request["limit_s"]
        answer: dict[str, Any] = {}
        while (elapsed := time.perf_counter() - began) < limit:
            done += train()
            if "until" in request and (mean := mean_return()) is not None:
                answer["return"] = max(mean, answer.get("return", mean))
                if mean >= request["until"]:
                    answer["reached"] = True
                    break
        elapsed = time.perf_counter() - began
        say({**answer, "env_steps": done, "seconds": elapsed, **more()})


class Returns:
    """Mean return of the last 100 episodes, from returns or from sums over some episodes."""

    def __init__(self) -> None:
        self._sums: collections.deque[tuple[float, int]] = collections.deque()
        self._episodes = 0

    def add(self, total: float, episodes: int = 1) -> None:
        if episodes:
            self._sums.append((total, episodes))
            self._episodes += episodes
        while self._sums and self._episodes - self._sums[0][1] >= EPISODES:
            self._episodes -= self._sums.popleft()[1]

    def mean(self) -> float | None:
        if self._episodes < EPISODES:
            return None
        return sum(total for total, _ in self._sums) / self._episodes
