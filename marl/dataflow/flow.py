"""Where the time goes and how far actors lag: the `flow/` tags of one reporting interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marl.dataflow.plain import Tree

WAITING = "waiting"
PARTS = ("world", "inference", "actor", "learner", WAITING)


class FlowMeter:
    """Adds up what happens until `report` is called. Every other call is a dictionary look-up and an addition.

    parallel: how many executors of a part run at the same time (worker processes that step worlds), by which its
    seconds are divided; 1 where it is not named. So the bottleneck is the part that is busy for most of the time, not
    the one with the most processes.
    """

    def __init__(self, parallel: Mapping[str, int] | None = None) -> None:
        self._parallel = dict(parallel or {})
        self._totals = dict.fromkeys(("offered", "dropped", "inserted", "trained"), 0)
        self._taken: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._lags: dict[int, int] = {}
        self._depths: dict[str, tuple[int, int]] = {}

    def add_time(self, part: str, seconds: float) -> None:
        """A part was busy for that long. part: one of `PARTS`, or any other name."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def add_lag(self, lag: int, count: int = 1) -> None:
        """The learner's version minus that of a chunk it trains on, for `count` chunks."""
        self._lags[lag] = self._lags.get(lag, 0) + count

    def depth(self, name: str, n: int) -> None:
        """How many wait in a buffer or queue at this moment."""
        total, count = self._depths.get(name, (0, 0))
        self._depths[name] = (total + n, count + 1)

    def add_chunks(self, offered: int = 0, dropped: int = 0) -> None:
        """Chunks that came to a buffer, and those of them that were never trained on."""
        self._totals["offered"] += offered
        self._totals["dropped"] += dropped

    def add_samples(self, inserted: int = 0, trained: int = 0) -> None:
        """Trajectories taken into a buffer, and trajectories in batches that the learner took out."""
        self._totals["inserted"] += inserted
        self._totals["trained"] += trained

    def take(self) -> dict[str, Any]:
        """Everything since the last `take` or `report`, for another meter's `add`: JSON values."""
        taken = {"seconds": self._seconds, "lags": list(self._lags.items()), "depths": self._depths}
        totals = {name: total - self._taken.get(name, 0) for name, total in self._totals.items()}
        self._taken = dict(self._totals)
        self._clear()
        return {**taken, "totals": totals}

    def add(self, taken: Mapping[str, Any]) -> None:
        """What another meter saw."""
        for part, seconds in taken["seconds"].items():
            self.add_time(part, seconds)
        for lag, count in taken["lags"]:
            self.add_lag(lag, count)
        for name, (total, count) in taken["depths"].items():
            own_total, own_count = self._depths.get(name, (0, 0))
            self._depths[name] = (own_total + total, own_count + count)
        for name, count in taken["totals"].items():
            self._totals[name] += count

    def report(self) -> dict[str, float]:
        """The tags since the last call; what had no event is left out.

        flow/policy_lag, _p95, _max: in versions, over chunks.  flow/queue_depth/<name>: mean over the calls of `depth`.
        flow/chunks_offered, _dropped: totals.  flow/sample_reuse: batches' trajectories over inserted ones, of the
        whole run (an update's own epochs do not count).  flow/bottleneck/<part>: shares of the time that all parts
        took, sum 1.
        """
        tags: dict[str, float] = {}
        if self._lags:
            count = sum(self._lags.values())
            tags["flow/policy_lag"] = sum(lag * n for lag, n in self._lags.items()) / count
            tags["flow/policy_lag_p95"] = float(_quantile(self._lags, 0.95))
            tags["flow/policy_lag_max"] = float(max(self._lags))
        tags |= {f"flow/queue_depth/{name}": total / count for name, (total, count) in self._depths.items()}
        totals = self._totals
        if totals["offered"]:
            tags |= {f"flow/chunks_{name}": float(totals[name]) for name in ("offered", "dropped")}
        if totals["inserted"]:
            tags["flow/sample_reuse"] = totals["trained"] / totals["inserted"]
        seconds = {part: spent / self._parallel.get(part, 1) for part, spent in self._seconds.items()}
        total_seconds = sum(seconds.values())
        if total_seconds > 0:
            self._shares = {part: spent / total_seconds for part, spent in seconds.items()}
            tags |= {f"flow/bottleneck/{part}": share for part, share in self._shares.items()}
        self._clear()
        return tags

    def bottleneck(self) -> str:
        """The part with the largest share in the last report, `waiting` only if nothing was busy at all; empty before
        the first report."""
        busy = {part: share for part, share in self._shares.items() if part != WAITING and share > 0}
        return max(busy, key=lambda part: busy[part]) if busy else WAITING if self._shares else ""

    def snapshot(self) -> Tree:
        """The totals; what the interval has so far is not saved."""
        return dict(self._totals)

    def restore(self, tree: Tree) -> None:
        """The inverse of `snapshot`; a new interval begins."""
        self._totals = {name: int(tree.get(name, 0)) for name in self._totals}
        self._clear()


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that at least `share` of the counted ones do not exceed."""
    needed = share * sum(counts.values())
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= needed:
            return value
    return max(counts)
