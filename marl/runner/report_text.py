"""The report's tables as text: CSV files for programs, Markdown for docs/results, and how a number is written."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

from marl.evaluate.statistics import Interval
from marl.runner.report_svg import Series
from marl.runner.report_table import REFERENCES, SHARES, Section, Summary, Verdict

Cell: TypeAlias = str | int | float | bool | None

AGGREGATE = (
    *("world", "method", "algorithm", "kind", "actions", "episodes_kind", "env_steps_min", "env_steps_max"),
    *("n_seeds", "n_episodes", "preliminary", "metric", "mean", "mean_low", "mean_high"),
    *("iqm", "iqm_low", "iqm_high", "seed_min", "seed_max"),
)
COMPARISONS = (
    *("world", "a", "a_actions", "b", "b_actions", "metric", "paired_episodes", "difference", "low", "high"),
    *("probability_of_improvement", "poi_low", "poi_high"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")  # an underscore inside a word is text already


def decimals(value: float, spread: float) -> int | None:
    """Decimals that show two digits of an interval's half-width, at most four of the value; None: as they come."""
    if spread <= 0.0:
        return None
    wanted = 1 - math.floor(math.log10(spread))
    most = 3 - math.floor(math.log10(abs(value))) if value else 4
    return min(4, max(0, min(wanted, most)))


def number(value: float, places: int | None) -> str:
    """`value` with so many decimals, never as minus zero."""
    text = f"{value:.4g}" if places is None else f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0.0 else text


def interval_text(interval: Interval, metric: str = "", *, sign: bool = False) -> str:
    """`48.2 [46.1, 50.3]`; shares as percent."""
    scale = 100.0 if metric in SHARES else 1.0
    value, low, high = (scale * x for x in interval)
    places = decimals(value, (high - low) / 2)
    plus = "+" if sign and value > 0 else ""
    return f"{plus}{number(value, places)} [{number(low, places)}, {number(high, places)}]"


def heading(metric: str) -> str:
    """A metric's name as a column heading."""
    if metric in SHARES:
        return f"{metric} %"
    for suffix, unit in (("_mps", "m/s"), ("_s", "s"), ("_m", "m")):
        if metric.endswith(suffix):
            return f"{metric.removesuffix(suffix)} {unit}"
    return metric.replace("return/", "return ")


def steps_text(row: Summary) -> str:
    """The age of the checkpoints: `500,000`, a range if seeds differ, a dash for a policy that was not trained."""
    low, high = row.env_steps
    if not high:
        return "–"
    return f"{high:,}" if low == high else f"{low:,}–{high:,}"


def replication(row: Summary) -> str:
    """`5 × 64`: training seeds by episodes; a policy that was not trained has episodes only."""
    return f"{row.n_seeds} × {row.n_episodes}" if row.method.kind == "learned" else f"{row.n_episodes}"


def verdict_text(verdict: Verdict | None) -> str:
    """`yes: +3.1 [2.0, 4.2]`, with the policy it was compared with named elsewhere."""
    if verdict is None:
        return "–"
    words = {"yes": "yes", "no": "not shown", "worse": "no"}
    return f"{words[verdict.answer]}: {interval_text(verdict.against.difference, sign=True)}"


def summary_table(section: Section) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table, plain text; the first column is the method."""
    many = len(section.returns) > 1
    short = {metric: heading(metric) if many else "return" for metric in section.returns}
    columns = ["method", "actions", "env steps", "seeds × episodes"]
    for metric in section.returns:
        columns += [short[metric], f"{short[metric]} IQM"]
    columns += [heading(metric) for metric in section.figures]
    asked = [
        (kind, metric) for kind in REFERENCES for metric in section.returns if section.best(kind, metric) is not None
    ]
    columns += [f"beats {REFERENCES[k]}?" + (f" ({short[m]})" if many else "") for k, m in asked]
    table = []
    for i, row in enumerate(section.rows):
        cells = [row.method.label, row.method.actions, steps_text(row), replication(row)]
        for metric in section.returns:
            cells += [_cell(row.means.get(metric), metric), _cell(row.iqms.get(metric), metric)]
        cells += [_cell(row.means.get(metric), metric) for metric in section.figures]
        table.append(cells + [verdict_text(section.verdict(i, kind, metric)) for kind, metric in asked])
    return columns, table


def marks(row: Summary) -> list[str]:
    """What a reader must know before believing a row."""
    found = ["preliminary"] if row.preliminary else []
    return [*found, "validation episodes"] if row.method.episodes_kind == "validation" else found


def findings(section: Section) -> list[str]:
    """The section's answer in sentences: does each learned method beat the policies that learned nothing?"""
    sentences = []
    for i, row in enumerate(section.rows):
        for metric in section.returns if row.method.kind == "learned" else ():
            role = f" ({heading(metric)})" if len(section.returns) > 1 else ""
            for kind, name in REFERENCES.items():
                verdict = section.verdict(i, kind, metric)
                if verdict is None:
                    continue
                says = {"yes": "beats", "no": "is not shown to beat", "worse": "is worse than"}[verdict.answer]
                against = verdict.against
                how = f"over {against.episodes} paired episodes" if against.episodes else "unpaired"
                gap = (
                    interval_text(against.difference, sign=True)
                    .replace("[", "(")
                    .replace("]", ")")
                    .replace(", ", " to ")
                )
                sentences.append(
                    f"{row.name} {says} the {name}, {against.b.label}{role}: "
                    f"difference {', '.join([gap, how, *marks(row)])}."
                )
    return sentences


def markdown(sections: Sequence[Section], notes: Sequence[str], command: str) -> str:
    """The tables for a page under docs/results."""
    lines = [f"<!-- made by `{command.replace('--', '- -')}`; edit nothing below by hand -->"]
    for section in sections:
        columns, table = summary_table(section)
        lines += ["", f"### {markdown_text(section.title)}", "", markdown_text(section.world), ""]
        if table:
            lines += ["| " + " | ".join(markdown_text(c) for c in columns) + " |", "|" + " --- |" * len(columns)]
            for row, cells in zip(section.rows, table, strict=True):
                name = " ".join([markdown_text(cells[0]), *(f"*({mark})*" for mark in marks(row))])
                lines.append("| " + " | ".join([name, *cells[1:]]) + " |")  # the other cells are our own words
            lines += ["", *(f"- {markdown_text(sentence)}" for sentence in findings(section))]
        else:
            lines.append("No evaluations yet.")
    lines += [
        "",
        "Means with 95 % bootstrap intervals over training seeds and held-out episodes (policies that were not",
        "trained: over episodes). IQM: interquartile mean over all episodes. *preliminary*: fewer than five training",
        "seeds. A method beats a kind of policy if the interval of its paired difference to every policy of that kind",
        "lies above zero; the difference shown is to the best of them.",
    ]
    lines += ["", *(f"- {markdown_text(note)}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """`text` as text: no markup, no HTML, no new row."""
    return _MARKDOWN.sub(r"\\\g<0>", escape(" ".join(text.split()), quote=False))


def aggregate_rows(sections: Iterable[Section]) -> list[list[Cell]]:
    """aggregate.csv: one line a method and metric."""
    rows: list[list[Cell]] = [[*AGGREGATE]]
    for section in sections:
        for row in section.rows:
            method = row.method
            for metric, mean in row.means.items():
                iqm: tuple[Cell, ...] = row.iqms.get(metric, (None, None, None))
                who: list[Cell] = [section.title, method.label, method.algorithm, method.kind, method.actions]
                age: list[Cell] = [method.episodes_kind, *row.env_steps, row.n_seeds, row.n_episodes, row.preliminary]
                seeds = row.seed_means[metric]
                rows.append([*who, *age, metric, *mean, *iqm, float(seeds.min()), float(seeds.max())])
    return rows


def comparison_rows(sections: Iterable[Section]) -> list[list[Cell]]:
    """comparisons.csv: one line an ordered pair of methods and a return."""
    rows: list[list[Cell]] = [[*COMPARISONS]]
    for section in sections:
        for c in section.comparisons.values():
            who: list[Cell] = [section.title, c.a.label, c.a.actions, c.b.label, c.b.actions, c.metric, c.episodes]
            rows.append([*who, *c.difference, *c.improvement])
    return rows


def episode_rows(sections: Iterable[Section]) -> list[list[Cell]]:
    """episodes.csv: one line an episode of the evaluations that the tables use."""
    methods = [(section.title, row.method) for section in sections for row in section.rows]
    metrics = list(dict.fromkeys(name for _, m in methods for e in m.evaluations for name in e.episodes.metrics))
    rows: list[list[Cell]] = [["world", "method", "seed", "env_steps", "kind", "greedy", "seed_index", *metrics]]
    for world, method in methods:
        for e in method.evaluations:
            columns = {name: e.episodes.column(name).tolist() for name in e.episodes.metrics}
            who: list[Cell] = [world, method.label, e.seed, e.env_steps, e.kind, e.greedy]
            for i, index in enumerate(e.episodes.seed_index):
                rows.append([*who, index, *(columns[name][i] if name in columns else None for name in metrics)])
    return rows


def curve_rows(series: Iterable[tuple[str, str, Series]]) -> list[list[Cell]]:
    """curves.csv from (world, tag, series): the plotted points of every seed, then their mean with its band."""
    rows: list[list[Cell]] = [["world", "tag", "method", "seed", "env_steps", "value", "low", "high"]]
    for world, tag, s in series:
        steps = [round(step) for step in s.env_steps.tolist()]
        for seed, values in zip(s.seed_names, s.seeds.tolist(), strict=True):
            rows += [[world, tag, s.label, seed, *point, None, None] for point in zip(steps, values, strict=True)]
        band = zip(steps, s.mean.tolist(), s.low.tolist(), s.high.tolist(), strict=True)
        rows += [[world, tag, s.label, "mean", *point] for point in band]
    return rows


def csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    """Rows as CSV. A text that a spreadsheet would run as a formula gets a leading quote."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([_csv_cell(cell) for cell in row])
    return out.getvalue()


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return f"{cell:.6g}" if isinstance(cell, float) else cell


def _cell(interval: Interval | None, metric: str) -> str:
    return "–" if interval is None else interval_text(interval, metric)
