"""The processes of a run by what they are for: processor time and memory. Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

KINDS = ("driver", "actor", "server", "learner", "ray")
_TICKS_S = os.sysconf("SC_CLK_TCK")


def of_run(dataflow: Any) -> dict[str, list[int]]:
    """Process ids by kind. dataflow: a placement; the parts of one that is not on Ray are all in the driver."""
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    found["driver"] = [os.getpid()]
    run = getattr(dataflow, "run", None)
    if run is not None:
        found["learner"] = [int(run.learner.about["pid"])]
        found["server"] = [int(server.about["pid"]) for server in run.servers.servers]
        found["actor"] = [int(hand.about["pid"]) for hand in run.actors.hands if hand.about]
    known = {pid for pids in found.values() for pid in pids}
    found["ray"] = [pid for pid in below(os.getpid()) if pid not in known]
    return found


def below(root: int) -> list[int]:
    """The living descendants of a process."""
    found = []
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            pids = [int(pid) for pid in children.read_text().split()]
        except OSError:
            continue
        for pid in pids:
            found += [pid, *below(pid)]
    return found


def seconds(pid: int) -> float:
    """Processor time of a process, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and its share of it where pages are shared (PSS); 0 if it is gone."""
    sizes = {"Rss": 0, "Pss": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0])
    return round(sizes["Rss"] / 1024, 1), round(sizes["Pss"] / 1024, 1)


class Meter:
    """Processor seconds a second, by kind of process, between two calls of `take`."""

    def __init__(self, dataflow: Any) -> None:
        self.pids = of_run(dataflow)
        self._before, self._at = self._now(), time.perf_counter()

    def _now(self) -> dict[str, float]:
        return {kind: sum(map(seconds, pids)) for kind, pids in self.pids.items()}

    def take(self) -> dict[str, float]:
        now, at = self._now(), time.perf_counter()
        spent = {kind: round((now[kind] - self._before[kind]) / (at - self._at), 3) for kind in now if self.pids[kind]}
        self._before, self._at = now, at
        return spent
