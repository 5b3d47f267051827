"""`marl report RUN…`: what runs achieved, how far to trust it, and whether they beat policies that learned nothing."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from marl.core.errors import UserError
from marl.evaluate import statistics
from marl.evaluate.records import write_evaluations
from marl.io import console
from marl.io.files import dumps, write_failure, write_text_atomic
from marl.runner import report_text as text
from marl.runner.report_curves import curve_series
from marl.runner.report_data import Collected, Origin, collect_runs
from marl.runner.report_html import page
from marl.runner.report_table import REFERENCES, Section, make_sections
from marl.runner.runs import resolve_run

MAX_COMMANDS = 3


class Report(NamedTuple):
    """A finished report: its sections, where its numbers come from, and the files by name."""

    sections: list[Section]
    origins: list[Origin]
    files: dict[str, Path]


def report(runs: Sequence[str], out: str | None = None, *, runs_dir: str = "runs", as_json: bool = False) -> int:
    """Report on runs (paths, ids, names, `latest`), evaluation files and folders of them; print the table. Returns 0.

    out: the folder to write; by default `plots/` of the run if there is one run, else `report/` here.
    Raises: UserError if something named is missing, damaged or on another world than the rest.
    """
    paths = [find(run, Path(runs_dir)) for run in runs]
    folder = paths[0] / "plots" if len(paths) == 1 and paths[0].is_dir() else Path("report")
    folder = folder if out is None else Path(out)
    made = build_report(paths, folder, command=shlex.join(["marl", "report", *runs]))
    if as_json:
        console.say(dumps(_as_json(made), indent=2))
        return 0
    for section in made.sections:
        console.say(section.title)
        for line in [*_plain_table(section), *text.findings(section)]:
            console.say(f"  {line}")
    console.say(f"tables: {', '.join(sorted(p.name for p in made.files.values() if p.suffix != '.html'))} in {folder}")
    commands = [shlex.join(["marl", "evaluate", run]) for run in _untested(paths, made)][:MAX_COMMANDS]
    console.next_commands([*commands, shlex.join(["xdg-open", str(made.files["report.html"])])])
    return 0


def find(run: str, runs_dir: Path = Path("runs")) -> Path:
    """The path itself if it exists, else the run folder that a name or an id stands for. Raises: UserError."""
    path = Path(run)
    return path if path.exists() else resolve_run(run, runs_dir)


def build_report(
    paths: Sequence[Path],
    out: Path,
    *,
    command: str = "marl report",
    resamples: int = statistics.RESAMPLES,
    now: datetime.datetime | None = None,
) -> Report:
    """From run folders and evaluation files: report.html, table.md, four CSV files and evaluations.json in `out`.

    evaluations.json holds the records behind the tables: a report on it alone gives the same tables, so this is the
    file to commit.
    command: shown on the page.  now: the date on the page.
    Raises: UserError as `collect_runs`, and where `out` cannot be written; RunError if the disk is full.
    """
    collected = collect_runs(paths)
    sections = make_sections(collected, resamples=resamples)
    colours = _colours(sections, collected)
    series = {s.world: curve_series(s.curves, colours) for s in sections}
    moment = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%d %H:%M UTC")
    html = page(
        _title(collected),
        sections,
        series,
        collected.origins,
        collected.notes,
        colours,
        f"{moment} · {command}",
    )
    flat = [(s.title, tag, one) for s in sections for tag, many in series[s.world].items() for one in many]
    texts = {
        "report.html": html,
        "table.md": text.markdown(sections, collected.notes, command),
        "aggregate.csv": text.csv_text(text.aggregate_rows(sections)),
        "comparisons.csv": text.csv_text(text.comparison_rows(sections)),
        "episodes.csv": text.csv_text(text.episode_rows(sections)),
        "curves.csv": text.csv_text(text.curve_rows(flat)),
    }
    files = _write(out, texts)
    files["evaluations.json"] = out / "evaluations.json"
    write_evaluations(
        files["evaluations.json"], [e for s in sections for row in s.rows for e in row.method.evaluations]
    )
    return Report(sections, collected.origins, files)


def _write(out: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(out, error) from error
    if not out.is_dir():
        raise UserError(f"{out} is not a folder")
    for name, content in texts.items():
        write_text_atomic(out / name, content)
    return {name: out / name for name in texts}


def _title(collected: Collected) -> str:
    labels = list(dict.fromkeys(m.label for m in collected.methods if m.kind == "learned"))
    labels = labels or list(dict.fromkeys(origin.label for origin in collected.origins))
    return f"Report: {', '.join(labels[:4])}{f' and {len(labels) - 4} more' if len(labels) > 4 else ''}"


def _colours(sections: Sequence[Section], collected: Collected) -> dict[str, int]:
    """One colour a label, the same in every picture."""
    learned = [r.method.label for s in sections for r in s.rows if r.method.kind == "learned"]
    drawn = [c.label for curves in collected.curves.values() for c in curves]
    others = [r.method.label for s in sections for r in s.rows]
    return {label: i for i, label in enumerate(dict.fromkeys([*learned, *drawn, *others]))}


def _plain_table(section: Section) -> list[str]:
    columns, table = text.summary_table(section)
    names = [" ".join([row.method.label, *(f"({m})" for m in text.marks(row))]) for row in section.rows]
    rows = [columns, *([name, *cells[1:]] for name, cells in zip(names, table, strict=True))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _untested(paths: Sequence[Path], made: Report) -> list[str]:
    """The run folders that have no test episodes yet."""
    tested = {row.method.label for s in made.sections for row in s.rows if row.method.episodes_kind == "test"}
    labels = {origin.path: origin.label for origin in made.origins}
    return [str(p) for p in paths if p.is_dir() and labels.get(str(p.resolve()), "") not in {*tested, ""}]


def _as_json(made: Report) -> dict[str, object]:
    worlds = []
    for section in made.sections:
        methods = []
        for i, row in enumerate(section.rows):
            asked = ((kind, section.verdict(i, kind, metric)) for kind in REFERENCES for metric in section.returns)
            methods.append(
                {
                    "method": row.method.label,
                    "algorithm": row.method.algorithm,
                    "actions": row.method.actions,
                    "episodes_kind": row.method.episodes_kind,
                    "env_steps": row.env_steps,
                    "seeds": row.n_seeds,
                    "episodes": row.n_episodes,
                    "preliminary": row.preliminary,
                    "metrics": {name: interval._asdict() for name, interval in row.means.items()},
                    "iqm": {name: interval._asdict() for name, interval in row.iqms.items()},
                    "beats": [
                        {
                            "kind": kind,
                            "answer": verdict.answer,
                            "best": verdict.against.b.label,
                            "metric": verdict.against.metric,
                            "difference": verdict.against.difference._asdict(),
                        }
                        for kind, verdict in asked
                        if verdict is not None
                    ],
                }
            )
        worlds.append({"title": section.title, "world": section.world, "methods": methods})
    return {"files": {name: str(path) for name, path in made.files.items()}, "worlds": worlds}
