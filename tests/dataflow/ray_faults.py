"""What the tests of faults on Ray share: a small run, its processes, and whether its books are in order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marl.dataflow.ray_actors import Hand, RayOptions
from marl.dataflow.ray_crew import ProcessOptions
from marl.dataflow.ray_run import RayRun

from . import tiny_parts

SMALL = ProcessOptions(cpus=0.25)
FORGIVING = (1.0, 10**6, 60.0)


def start_run(folder: Path | None, world: dict[str, Any] | None = None, **options: Any) -> RayRun:
    """A started run of the tiny world. Every part may be lost often."""
    policy = options.pop("policy", "tiny")
    own: dict[str, Any] = {"num_envs": 4, "slots": 2, "actors": 2, "give_up": (50, 600.0), "faults": FORGIVING}
    own |= {"actor": SMALL, "learner": SMALL, "server": SMALL}
    run = RayRun(
        tiny_parts.blueprint(policy=policy, world=world or {}), ["all"], RayOptions(**own | options), 0, folder
    )
    try:
        run.start()
    except BaseException:
        run.close()
        raise
    return run


@contextlib.contextmanager
def running(folder: Path | None, world: dict[str, Any] | None = None, **options: Any) -> Iterator[RayRun]:
    """A run of its own."""
    run = start_run(folder, world, **options)
    try:
        yield run
    finally:
        run.close()


def pid_of(part: Any) -> int:
    """The process of an actor, a server or a learner."""
    return int(part.about["pid"])


def kill(pid: int, after_s: float = 0.0, number: signal.Signals = signal.SIGKILL) -> threading.Timer:
    """Send a signal to a process, at once or while something else goes on; one that has ended gets none."""

    def send() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    timer = threading.Timer(after_s, send)
    timer.start()
    if not after_s:
        timer.join()
    return timer


def bound(seconds: float) -> float:
    """A bound for a quiet machine, longer on a busy one."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for(run: RayRun, what: Callable[[], bool], limit_s: float) -> float:
    """Train until something is the case. Returns the seconds that it took. Raises: TimeoutError."""
    began = time.monotonic()
    while not what():
        run.run(1)
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"not within {limit_s:.0f} s; events: {run.take_events()}")
    return time.monotonic() - began


def all_ready(run: RayRun) -> Callable[[], bool]:
    return lambda: run.actors.ready == run.options.actors


def events_of(run: RayRun) -> dict[str, list[str]]:
    """What happened since the last call, by name."""
    found: dict[str, list[str]] = {}
    for name, words in run.take_events():
        found.setdefault(name, []).append(words)
    return found


def assert_books(run: RayRun) -> None:
    """Everything that actors brought was trained on, is held, or was counted as lost; nothing twice."""
    run.drain()
    assert run.ledger.exact, vars(run.ledger)
    assert run.learner.remote is not None
    health = run.learner.remote.ask("health")
    assert health["learned_steps"] + health["held_steps"] == run.ledger.taken["frames"]
    taken = run.learner.remote.ask("take")
    counters = taken["counters"]["all"]
    assert counters["offered"] == counters["trained"] + counters["dropped"] + counters["held"]
    if not run.options.asynchronous:
        assert counters["trained"] + counters["held"] == run.ledger.taken["chunks"]
        assert run.tickets.completed == run.ledger.taken["chunks"]
        assert run.tickets.outstanding == ()


def params_of(run: RayRun) -> list[Any]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.params())]


def hand_of(run: RayRun, index: int) -> Hand:
    return run.actors.hands[index]
