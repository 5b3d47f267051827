"""The figures of a report: a summary of every method, and how each compares with the policies that learned nothing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from marl.evaluate import statistics
from marl.evaluate.statistics import Interval
from marl.runner.report_data import Collected, Curve, Floats, Method, MethodKind, world_titles

SHOWN = ("survival_s", "success", "speed_mps")
KIND_ORDER: tuple[MethodKind, ...] = ("learned", "scripted", "random", "constant")
REFERENCES: dict[MethodKind, str] = {"constant": "best constant action", "scripted": "rule-based policy"}
SHARES = frozenset({"success"})  # figures between 0 and 1, shown as percent
MAX_COLUMNS = 4  # figures of the world beside the return


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method in figures: the mean of every metric with its interval, and the interquartile mean of the returns."""

    method: Method
    means: dict[str, Interval]
    iqms: dict[str, Interval]
    seed_means: dict[str, Floats]

    @property
    def name(self) -> str:
        """Label and how it acted: what tells rows apart."""
        return f"{self.method.label} ({self.method.actions})"

    @property
    def n_seeds(self) -> int:
        return len(self.method.evaluations)

    @property
    def n_episodes(self) -> int:
        return len(self.method.index)

    @property
    def preliminary(self) -> bool:
        """Too few training seeds; a policy that was never trained has nothing to be preliminary about."""
        return self.method.kind == "learned" and statistics.preliminary(self.n_seeds)

    @property
    def env_steps(self) -> tuple[int, int]:
        """The age of the youngest and of the oldest checkpoint."""
        steps = [e.env_steps for e in self.method.evaluations]
        return min(steps), max(steps)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Method `a` against `b` in one metric. `episodes`: held-out episodes that both played, 0 where they share none."""

    a: Method
    b: Method
    metric: str
    difference: Interval
    improvement: Interval
    episodes: int

    def turned(self) -> Comparison:
        """Method `b` against `a`."""
        gap, share = self.difference, self.improvement
        return dataclasses.replace(
            self,
            a=self.b,
            b=self.a,
            difference=Interval(-gap.value, -gap.high, -gap.low),
            improvement=Interval(1.0 - share.value, 1.0 - share.high, 1.0 - share.low),
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a method beats every reference policy of a kind; shown against the best of them."""

    answer: str  # yes | no | worse
    against: Comparison


@dataclasses.dataclass(frozen=True)
class Section:
    """All methods on one world. comparisons: by the positions of both methods in `rows` and the metric.

    world: the world with all its options.  title: short, and different for every section of the report.
    """

    world: str
    title: str
    rows: tuple[Summary, ...]
    comparisons: dict[tuple[int, int, str], Comparison]
    curves: tuple[Curve, ...]

    @property
    def returns(self) -> tuple[str, ...]:
        """The return of each role."""
        return self._common("return/")

    @property
    def terms(self) -> tuple[str, ...]:
        """The reward terms."""
        return self._common("reward/")

    @property
    def figures(self) -> tuple[str, ...]:
        """The world's own figures that the table shows beside the return."""
        names = [n for n in self._common("") if not n.startswith(("return/", "reward/")) and n != "agent_steps"]
        known = [n for n in SHOWN if n in names]
        return tuple(known or names[:MAX_COLUMNS])

    def _common(self, prefix: str) -> tuple[str, ...]:
        names = list(dict.fromkeys(name for row in self.rows for name in row.means if name.startswith(prefix)))
        return tuple(names)

    def references(self, kind: MethodKind) -> tuple[int, ...]:
        """Positions of the policies of a kind."""
        return tuple(i for i, row in enumerate(self.rows) if row.method.kind == kind)

    def best(self, kind: MethodKind, metric: str) -> int | None:
        """Position of the policy of a kind with the highest mean."""
        scored = [(self.rows[i].means[metric].value, -i) for i in self.references(kind) if metric in self.rows[i].means]
        return -max(scored)[1] if scored else None

    def verdict(self, row: int, kind: MethodKind, metric: str) -> Verdict | None:
        """`yes` if the interval of the difference to every policy of the kind lies above 0; None if there is none.

        To demand this of all of them makes the choice of the best on the same episodes harmless.
        """
        best = self.best(kind, metric)
        if best is None or self.rows[row].method.kind == kind or (row, best, metric) not in self.comparisons:
            return None
        against = self.comparisons[row, best, metric]
        found = [self.comparisons.get((row, i, metric)) for i in self.references(kind)]
        if all(comparison.difference.low > 0.0 for comparison in found if comparison is not None):
            return Verdict("yes", against)
        return Verdict("worse" if against.difference.high < 0.0 else "no", against)


def make_sections(collected: Collected, *, resamples: int = statistics.RESAMPLES) -> list[Section]:
    """A section for every world, rows ordered: learned methods by return, then those that learned nothing."""
    by_world: dict[str, list[Method]] = defaultdict(list)
    for method in collected.methods:
        by_world[method.world].append(method)
    for world in collected.curves:
        by_world.setdefault(world, [])
    titles = world_titles(by_world)
    return [
        _section(world, titles[world], methods, collected.curves.get(world, ()), resamples)
        for world, methods in by_world.items()
    ]


def _section(world: str, title: str, methods: Sequence[Method], curves: Iterable[Curve], resamples: int) -> Section:
    rows = sorted((_summary(method, resamples) for method in methods), key=_rank)
    comparisons = {}
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            if (
                i < j and row.method.kind != "constant"
            ):  # constant actions come last: they are compared with, not compared
                for metric in row.means:
                    if metric.startswith("return/") and metric in other.means:
                        comparison = _compare(row.method, other.method, metric, resamples)
                        comparisons[i, j, metric] = comparison
                        comparisons[j, i, metric] = comparison.turned()
    return Section(world, title, tuple(rows), comparisons, tuple(curves))


def _rank(row: Summary) -> tuple[int, float, str]:
    score = np.mean([v.value for name, v in row.means.items() if name.startswith("return/")])
    return KIND_ORDER.index(row.method.kind), -float(score), row.method.label


def _summary(method: Method, resamples: int) -> Summary:
    scores = {name: method.scores(name) for name in method.metrics}
    intervals = statistics.mean_intervals(np.stack(list(scores.values())), resamples=resamples)
    means = dict(zip(scores, intervals, strict=True))
    means |= {name: statistics.share_interval(means[name], len(method.index)) for name in SHARES & means.keys()}
    iqms = {
        name: statistics.bootstrap(table, statistics.iqm, resamples=resamples)
        for name, table in scores.items()
        if name.startswith("return/")
    }
    return Summary(method, means, iqms, {name: table.mean(axis=1) for name, table in scores.items()})


def _compare(a: Method, b: Method, metric: str, resamples: int) -> Comparison:
    """On the held-out episodes that both played; on all of each side's where they share fewer than two."""
    shared = np.intersect1d(a.index, b.index) if a.episodes_kind == b.episodes_kind else a.index[:0]
    paired = len(shared) > 1
    first, second = (m.scores(metric, shared if paired else None) for m in (a, b))
    found = statistics.compare(first, second, paired=paired, resamples=resamples)
    return Comparison(a, b, metric, found.difference, found.improvement, len(shared) if paired else 0)
