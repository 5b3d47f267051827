"""Learning curves of several training seeds on one grid of env steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from marl.evaluate.statistics import curve_band
from marl.runner.report_data import Curve, Floats
from marl.runner.report_svg import Series

POINTS = 100  # a curve with more than this many points is averaged in bins of equal width


def curve_series(curves: Iterable[Curve], colours: Mapping[str, int]) -> dict[str, list[Series]]:
    """The curves by tag, one series a label. A label's series covers the steps that all its seeds have reached."""
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.tag, curve.label].append(curve)
    found: dict[str, list[Series]] = defaultdict(list)
    for (tag, label), members in sorted(groups.items()):
        steps, values = on_one_grid(members)
        if len(steps):
            mean, low, high = curve_band(values)
            names = tuple(curve.seed for curve in members)
            found[tag].append(Series(label, colours[label], steps, mean, low, high, values, names))
    return found


def on_one_grid(curves: list[Curve]) -> tuple[Floats, Floats]:
    """Common steps `[n]` and every seed's values on them `[n_seeds, n]`.

    Curves with the same few points keep them. Others are averaged in bins and interpolated, never extended: steps that
    only some seeds have reached are left out.
    """
    first = curves[0].env_steps
    if len(first) <= POINTS and all(np.array_equal(c.env_steps, first) for c in curves):
        return first, np.stack([c.values for c in curves])
    low = max(c.env_steps[0] for c in curves)
    high = min(c.env_steps[-1] for c in curves)
    if high < low:
        return np.empty(0), np.empty((len(curves), 0))
    most = max(len(c.env_steps) for c in curves)
    edges = np.linspace(0.0, max(c.env_steps[-1] for c in curves), min(most, POINTS) + 1)
    binned = [_binned(c, edges) if most > POINTS else (c.env_steps, c.values) for c in curves]
    low, high = max(s[0] for s, _ in binned), min(s[-1] for s, _ in binned)
    grid = np.unique(np.concatenate([s for s, _ in binned]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) > POINTS:
        grid = np.linspace(low, high, POINTS)
    return grid, np.stack([np.interp(grid, s, v) for s, v in binned])


def _binned(curve: Curve, edges: Floats) -> tuple[Floats, Floats]:
    """Means of steps and values in every bin that holds a point; a bin includes its right edge."""
    place = np.clip(np.searchsorted(edges, curve.env_steps, side="left"), 1, len(edges) - 1)
    count = np.bincount(place, minlength=len(edges))
    filled = count > 0
    steps = np.bincount(place, curve.env_steps, len(edges))[filled] / count[filled]
    return steps, np.bincount(place, curve.values, len(edges))[filled] / count[filled]
