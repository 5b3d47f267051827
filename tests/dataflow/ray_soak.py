"""Trains the tiny world on Ray for a while, breaking something every few seconds, and says what became of it.

python -m tests.dataflow.ray_soak --seconds 900 --every 20 --out soak.json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from marl.dataflow.ray_placement import RayPlacement, RayRun
from marl.dataflow.ray_run import RayOptions
from marl.dataflow.ray_session import SessionOptions

from . import tiny_parts
from .ray_faults import FORGIVING, SMALL, assert_books, pid_of

ACTORS = 3
STOPPED_S = 6.0
CHECKPOINT_S = 15.0
SAMPLE_S = 2.0
PAUSE_S = 0.05  # between dispatches, for the others on this machine


def placement() -> RayPlacement:
    options = RayOptions(
        num_envs=12,
        slots=6,
        actors=ACTORS,
        servers=1,
        max_staleness=1,
        updates_per_dispatch=2,
        faults=FORGIVING,
        give_up=(1000, 600.0),
        actor=SMALL,
        learner=SMALL,
        server=SMALL,
    )
    world = {"fault": "raise", "every": 17}  # the worlds fail as well
    session = SessionOptions(cpus=4, object_store_bytes=80 * 2**20)
    return RayPlacement(tiny_parts.blueprint(policy="tiny", world=world), ["all"], {}, options, session, 0, 4)


# ---- faults ----------------------------------------------------------------------------------------------------------


class Faults:
    """What is done to a run, in turns."""

    def __init__(self, run: RayRun) -> None:
        self.run = run
        self.done: Counter[str] = Counter()
        self.stopped: list[int] = []
        self._next: Iterator[Callable[[], None]] = itertools.cycle(
            [self.kill_actor, self.kill_server, self.damage, self.stop_actor, self.kill_learner, self.repeat]
        )
        self._actor = itertools.cycle(range(ACTORS))
        self._offer, self._spoil = run.learner.offer, ""
        run.learner.offer = self._offered  # type: ignore[method-assign]

    def strike(self) -> None:
        fault = next(self._next)
        fault()
        self.done[fault.__name__] += 1

    def _pid(self) -> int:
        ready = [hand for hand in self.run.actors.hands if hand.ready]
        return pid_of(ready[next(self._actor) % len(ready)]) if ready else 0

    def _kill(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)

    def kill_actor(self) -> None:
        self._kill(self._pid(), signal.SIGKILL)

    def kill_server(self) -> None:
        self._kill(pid_of(self.run.servers.servers[0]), signal.SIGKILL)

    def kill_learner(self) -> None:
        self._kill(pid_of(self.run.learner), signal.SIGKILL)

    def stop_actor(self) -> None:
        pid = self._pid()
        self._kill(pid, signal.SIGSTOP)
        threading.Timer(STOPPED_S, self._kill, (pid, signal.SIGCONT)).start()

    def damage(self) -> None:
        self._spoil = "damage"

    def repeat(self) -> None:
        self._spoil = "repeat"

    def _offered(self, goal: int, *chunks: Any) -> None:
        spoil, self._spoil = (self._spoil, "") if chunks else ("", self._spoil)
        if spoil == "damage":
            import ray

            tickets, frames, arenas, hand = chunks
            arena = np.array(ray.get(arenas[0]))
            arena[-100] ^= 255
            chunks = (tickets, frames, [ray.put(arena)], hand)
        self._offer(goal, *chunks)
        if spoil == "repeat":
            tickets, _, arenas, hand = chunks
            self._offer(goal, tickets, {}, arenas, hand)


# ---- memory ----------------------------------------------------------------------------------------------------------


def resident_mb() -> dict[str, float]:
    """Resident memory of this process and all below it, by what they are; shared pages are shared out."""
    found: dict[str, float] = {}
    for pid in [os.getpid(), *_below(os.getpid())]:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            words = Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()
            found[name] = found.get(name, 0.0) + int(words[0]) / 1024
    return found


def _below(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                yield child
                yield from _below(child)


def total_between(samples: list[tuple[float, dict[str, float]]], begin: float, end: float) -> float:
    """The median of all processes' memory over a part of the run, in MiB."""
    return statistics.median(sum(parts.values()) for at, parts in samples if begin <= at <= end)


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(mb, 1) for name, mb in parts.items()}


# ---- the soak --------------------------------------------------------------------------------------------------------


def soak(seconds: float, every: float) -> dict[str, Any]:
    """Train for so long with a fault every so many seconds. Returns what became of it; raises what training raises."""
    ray_run = placement()
    events: Counter[str] = Counter()
    words: dict[str, str] = {}
    samples: list[tuple[float, dict[str, float]]] = []
    versions: list[int] = []
    try:
        ray_run.init()
        run = ray_run.run
        run.actors.clock.floor_s = STOPPED_S / 3
        faults = Faults(run)
        began = struck = kept = sampled = time.monotonic()
        dispatches, longest = 0, 0.0
        while time.monotonic() - began < seconds:
            at = time.monotonic()
            ray_run.dispatch(ray_run, [0])
            longest = max(longest, time.monotonic() - at)
            dispatches += 1
            versions.append(run.version)
            for _, name, said in ray_run.take_events():
                events[name] += 1
                words[name] = said
            at = time.monotonic()
            if at - kept > CHECKPOINT_S:
                ray_run.snapshot(ray_run)
                kept = time.monotonic()
            whole = all(hand.ready for hand in run.actors.hands)
            if at - sampled > SAMPLE_S and whole:
                samples.append((at - began, resident_mb()))
                sampled = at
            if at - struck > every and at - began < seconds - every:
                faults.strike()
                struck = time.monotonic()
            time.sleep(PAUSE_S)
        took = time.monotonic() - began
        assert_books(run)
        assert all(before < after for before, after in itertools.pairwise(versions))
        third = min(180.0, took / 3)
        first = total_between(samples, third, third + min(60.0, took / 4))
        last = total_between(samples, took - min(60.0, took / 4), took)
        ledger = run.ledger
        return {
            "seconds": round(took, 1),
            "faults": dict(faults.done),
            "faults_total": faults.done.total(),
            "dispatches": dispatches,
            "longest_dispatch_s": round(longest, 2),
            "updates": run.version,
            "offered": ledger.offered,
            "taken": ledger.taken,
            "lost": ledger.lost,
            "exact": ledger.exact,
            "actors_lost": run.actors.lost,
            "learners_lost": ledger.learners,
            "spilled_bytes": run.store.spilled,
            "events": dict(events),
            "last_words": words,
            "memory_from_s": round(third, 1),
            "memory_mb": [round(first, 1), round(last, 1)],
            "memory_growth": round(last / first - 1, 4),
            "memory_by_process": [_rounded(next(p for at, p in samples if at >= third)), _rounded(samples[-1][1])],
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        }
    finally:
        ray_run.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = soak(asked.seconds, asked.every)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
