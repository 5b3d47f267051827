"""The report's pictures as SVG text: learning curves and intervals. Colours are classes of the page's style sheet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from marl.evaluate.statistics import Interval
from marl.runner.report_data import Floats

WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 42
FOREST_ROW = 26
FOREST_WIDTH = 1060
CHARACTER = 6.6  # width of one in a label
LABEL_CHARACTERS = 42
N_COLOURS = 8


@dataclasses.dataclass(frozen=True)
class Series:
    """One line with its band, and the training seeds behind it, all over the same steps `[n]`; seeds `[n_seeds, n]`.

    seed_names: the seeds' numbers, `[n_seeds]`.
    """

    label: str
    colour: int
    env_steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: Floats
    seed_names: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Level:
    """A horizontal line for a policy that does not learn."""

    label: str
    value: float


@dataclasses.dataclass(frozen=True)
class Bar:
    """One row of a forest plot. colour: None for a policy that did not learn."""

    label: str
    colour: int | None
    interval: Interval
    seeds: Floats
    note: str = ""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `wanted` of them, in steps of 1, 2 or 5."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999), default=10.0 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's number: `1.5M`, `200k`, `0.25`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1.0 if unit != "k" else 10.0):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}" if value else "0"


def curve_panel(title: str, series: Sequence[Series], levels: Sequence[Level] = ()) -> str:
    """Mean curves with bands, seeds as thin lines, levels dashed and named at the right edge."""
    values = [np.concatenate([s.low, s.high, s.seeds.ravel()]) for s in series]
    values += [np.asarray([level.value]) for level in levels]
    y_ticks = ticks(float(min(v.min() for v in values)), float(max(v.max() for v in values)))
    x_ticks = ticks(0.0, float(max(s.env_steps[-1] for s in series)))
    x_low, x_high = 0.0, max(float(max(s.env_steps[-1] for s in series)), x_ticks[1])
    x_scale = (WIDTH - LEFT - RIGHT) / (x_high - x_low)
    y_scale = (HEIGHT - TOP - BOTTOM) / (y_ticks[-1] - y_ticks[0])

    def x(value: float) -> float:
        return LEFT + (value - x_low) * x_scale

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) * y_scale

    def path(xs: Floats, ys: Floats) -> str:
        return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))

    parts = [_open(WIDTH, HEIGHT, title), f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT},{y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{number(tick)}</text>')
    parts += [
        f'<text class="tick mid" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{number(tick)}</text>'
        for tick in x_ticks
        if tick <= x_high
    ]
    parts.append(f'<text class="tick mid" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}">env steps</text>')
    parts += [f'<path class="level" d="M{LEFT},{y(level.value):.1f}H{WIDTH - RIGHT}"/>' for level in levels]
    for s in series:
        dot = 4 if len(s.mean) == 1 else 1.8 if len(s.mean) < 40 else 0.8
        band = path(np.concatenate([s.env_steps, s.env_steps[::-1]]), np.concatenate([s.low, s.high[::-1]]))
        parts.append(f'<polygon class="band f{s.colour % N_COLOURS}" points="{band}"/>')
        if len(s.seeds) > 1:
            parts += [
                f'<polyline class="thin {_stroke(s.colour)}" points="{path(s.env_steps, one)}"/>' for one in s.seeds
            ]
        parts.append(f'<polyline class="thick {_stroke(s.colour)}" points="{path(s.env_steps, s.mean)}"/>')
        parts += [
            f'<circle class="hit f{s.colour % N_COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="{dot}">'
            f"<title>{escape(s.label)}: {b:.4g} at {int(a):,} env steps</title></circle>"
            for a, b in zip(s.env_steps, s.mean, strict=True)
        ]
    for level in levels:
        name = escape(_short(level.label))
        parts.append(f'<text class="level-name end" x="{WIDTH - RIGHT - 2}" y="{y(level.value) - 4:.1f}">{name}</text>')
    return "".join([*parts, "</svg>"])


def forest(title: str, bars: Sequence[Bar]) -> str:
    """A dot with its interval for every method, and a small tick for every training seed."""
    ends = [v for b in bars for v in (b.interval.low, b.interval.high, *b.seeds.tolist())]
    scale_ticks = ticks(min(ends), max(ends), 8)
    height = TOP + FOREST_ROW * len(bars) + 30
    left = 24 + CHARACTER * max(len(_short(b.label)) + len(b.note) for b in bars)
    scale = (FOREST_WIDTH - left - 20) / (scale_ticks[-1] - scale_ticks[0])

    def x(value: float) -> float:
        return left + (value - scale_ticks[0]) * scale

    parts = [_open(FOREST_WIDTH, height, title), f'<text class="title" x="8" y="18">{escape(title)}</text>']
    for tick in scale_ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 6}" y2="{height - 26}"/>')
        parts.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{height - 10}">{number(tick)}</text>')
    for row, bar in enumerate(bars):
        middle = TOP + FOREST_ROW * row + FOREST_ROW / 2
        stroke, fill = (
            ("base", "base-fill")
            if bar.colour is None
            else (f"s{bar.colour % N_COLOURS}", f"f{bar.colour % N_COLOURS}")
        )
        value, low, high = bar.interval
        said = f"{bar.label}: {value:.4g} [{low:.4g}, {high:.4g}]"
        parts.append(f"<g><title>{escape(said)}</title>")
        name = f'<text class="name end" x="{left - 14:.0f}" y="{middle + 4:.1f}">{escape(_short(bar.label))}'
        parts.append(name + (f'<tspan class="note"> {escape(bar.note)}</tspan></text>' if bar.note else "</text>"))
        if len(bar.seeds) > 1:
            parts += [f'<path class="seed {stroke}" d="M{x(s):.1f},{middle - 8:.1f}v16"/>' for s in bar.seeds.tolist()]
        parts.append(f'<path class="interval {stroke}" d="M{x(low):.1f},{middle:.1f}H{x(high):.1f}"/>')
        parts.append(f'<circle class="{fill}" cx="{x(value):.1f}" cy="{middle:.1f}" r="5"/></g>')
    return "".join([*parts, "</svg>"])


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'


def _stroke(colour: int) -> str:
    """Colours repeat after the last one, dashed."""
    return f"s{colour % N_COLOURS}{' dashed' if colour >= N_COLOURS else ''}"


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"
