"""The report as one HTML page that works offline: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from marl.runner import report_svg as svg
from marl.runner.report_data import Origin
from marl.runner.report_style import STYLE
from marl.runner.report_svg import Bar, Level, Series
from marl.runner.report_table import REFERENCES, Section, Summary
from marl.runner.report_text import (
    findings,
    heading,
    interval_text,
    marks,
    summary_table,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser refuses what escaping might have missed
MAX_MATRIX = 8

METHOD = """
<p>The unit of replication is the training seed. Means are over seeds and held-out test episodes; brackets are 95 %
percentile bootstrap intervals (10,000 resamples) that draw seeds and, independently, the episodes that all seeds share.
A policy that was not trained has no seeds, so its interval speaks of episodes only. <b>Preliminary</b>: fewer than five
training seeds; such intervals are too narrow (with three seeds a 95 % interval holds the truth about 85 % of the time).
<b>IQM</b> is the interquartile mean over all episodes of all seeds. A method <b>beats</b> a kind of policy if the
interval of its paired difference, episode by episode, to every policy of that kind lies above zero; shown is the
difference to the best of them. <b>Probability of improvement</b> is the share of pairs of runs in which the row's run
has the higher mean return, ties counted half. Curves are means over seeds, bands their pointwise 95 % bootstrap
intervals, thin lines single seeds. Columns <i>sampled</i> or <i>greedy</i> say how actions were drawn from the
policy.</p>
"""


def page(
    title: str,
    sections: Sequence[Section],
    series: Mapping[str, Mapping[str, Sequence[Series]]],
    origins: Sequence[Origin],
    notes: Sequence[str],
    colours: Mapping[str, int],
    made: str,
) -> str:
    """The whole page. series: by world and tag.  made: when and with what command."""
    body = [f"<header><h1>{escape(title)}</h1><p class='meta'>{escape(made)}</p></header>"]
    if len(sections) > 1:
        links = (f"<a href='#w{i}'>{escape(s.title)}</a>" for i, s in enumerate(sections))
        body.append(f"<nav>{' '.join(links)}</nav>")
    for i, section in enumerate(sections):
        about = f"<h2>{escape(section.title)}</h2>"
        about += f"<p class='meta about'>{escape(section.world)}</p>" if section.world != section.title else ""
        body.append(f"<section id='w{i}'>{about}")
        body += _section(section, series.get(section.world, {}), colours)
        body.append("</section>")
    body.append(f"<section><h2>How to read this</h2>{METHOD}")
    if notes:
        body.append(f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    body.append(f"</section><section><h2>Where the numbers come from</h2>{_origins(origins)}</section>")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(section: Section, series: Mapping[str, Sequence[Series]], colours: Mapping[str, int]) -> list[str]:
    parts = []
    if section.rows:
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(section))
        parts.append(f"<ul class='findings'>{said}</ul>" if said else "")
        for metric in section.returns:
            bars = [_bar(row, metric, colours) for row in section.rows if metric in row.means]
            name = heading(metric) if len(section.returns) > 1 else "return"
            title = f"{name} of an episode: mean with 95 % interval; small strokes are training seeds"
            parts.append(f"<figure class='scroll wide'>{svg.forest(title, bars)}</figure>")
        parts.append(_table(section, colours))
        parts += [_matrix(section, metric) for metric in section.returns]
        parts.append(_terms(section))
    else:
        parts.append("<p class='meta'>No evaluations yet: curves of the training episodes only.</p>")
    if series:
        parts.append("<h3>Learning curves</h3>")
        names = dict.fromkeys(s.label for tag in series.values() for s in tag)
        chips = (f"<span class='chip'><i class='b{colours[n] % svg.N_COLOURS}'></i>{escape(n)}</span>" for n in names)
        parts.append(f"<p class='legend'>{''.join(chips)}</p><div class='panels'>")
        for tag in sorted(series, key=_tag_order):
            panel = svg.curve_panel(_tag_title(tag), series[tag], _levels(section, tag))
            parts.append(f"<figure>{panel}</figure>")
        parts.append("</div>")
    return parts


def _bar(row: Summary, metric: str, colours: Mapping[str, int]) -> Bar:
    colour = colours[row.method.label] if row.method.kind == "learned" else None
    note = ", ".join([row.method.actions, *marks(row)]) if row.method.kind == "learned" else ""
    return Bar(row.method.label, colour, row.means[metric], row.seed_means[metric], note)


def _table(section: Section, colours: Mapping[str, int]) -> str:
    columns, table = summary_table(section)
    head = "".join(f"<th scope='col'>{escape(c)}</th>" for c in columns)
    rows = []
    for row, cells in zip(section.rows, table, strict=True):
        learned = row.method.kind == "learned"
        chip = f"<i class='b{colours[row.method.label] % svg.N_COLOURS}'></i>" if learned else "<i class='b-base'></i>"
        tags = "".join(f" <span class='mark'>{escape(mark)}</span>" for mark in marks(row))
        first = f"<th scope='row'>{chip}{escape(cells[0])}{tags}<small>{escape(row.method.algorithm)}</small></th>"
        rest = "".join(f"<td{_answer(cell)}>{_stacked(cell)}</td>" for cell in cells[1:])
        rows.append(f"<tr class='{row.method.kind}'>{first}{rest}</tr>")
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _stacked(cell: str) -> str:
    """A value above its interval, to keep the table narrow."""
    value, bracket, rest = cell.partition(" [")
    return f"{escape(value)}<small>[{escape(rest)}</small>" if bracket else escape(cell)


def _answer(cell: str) -> str:
    for start, name in (("yes: ", "yes"), ("no: ", "no"), ("not shown: ", "open")):
        if cell.startswith(start):
            return f" class='{name}'"
    return ""


def _matrix(section: Section, metric: str) -> str:
    """Probability of improvement of learned methods over each other and the best of each kind that did not learn.

    A method with one training seed has no row: over one run there is no probability.
    """
    learned = [i for i, row in enumerate(section.rows) if row.method.kind == "learned" and metric in row.means]
    tried = [i for i in learned if section.rows[i].n_seeds > 1][:MAX_MATRIX]
    others = [section.best(kind, metric) for kind in ("scripted", "random", "constant")]
    against = [*tried, *(i for i in learned if i not in tried)][:MAX_MATRIX]
    against += [i for i in others if i is not None]
    if not tried or len(against) < 2:
        return ""
    labels = [section.rows[j].method.label for j in against]
    names = [
        section.rows[j].name if labels.count(label) > 1 else label for j, label in zip(against, labels, strict=True)
    ]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    rows = []
    for i in tried:
        cells = []
        for j in against:
            found = section.comparisons.get((i, j, metric))
            if found is None:
                cells.append("<td class='self'>–</td>")
                continue
            value, low, high = found.improvement
            shade = "win" if value >= 0.5 else "loss"
            strength = round(abs(value - 0.5) * 2, 2)
            cells.append(
                f"<td class='{shade}' style='--a:{strength}'>{value:.2f}<small>[{low:.2f}, {high:.2f}]</small></td>"
            )
        rows.append(f"<tr><th scope='row'>{escape(names[against.index(i)])}</th>{''.join(cells)}</tr>")
    role = f" ({escape(heading(metric))})" if len(section.returns) > 1 else ""
    return (
        f"<h3>Probability of improvement{role}</h3><p class='meta'>of a run of the row over a run of the column</p>"
        f"<div class='scroll'><table class='matrix'><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _terms(section: Section) -> str:
    if not section.terms:
        return ""
    head = "".join(f"<th scope='col'>{escape(name.removeprefix('reward/'))}</th>" for name in section.terms)
    rows = []
    for row in section.rows:
        cells = (interval_text(row.means[n], n) if n in row.means else "–" for n in section.terms)
        rest = "".join(f"<td>{_stacked(cell)}</td>" for cell in cells)
        rows.append(f"<tr><th scope='row'>{escape(row.method.label)}</th>{rest}</tr>")
    return (
        "<details><summary>Where the return comes from: reward terms, summed over an episode, mean over a role's agents"
        f"</summary><div class='scroll'><table><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _levels(section: Section, tag: str) -> list[Level]:
    """What the policies that did not learn score in the figure of a curve: the best of each kind."""
    metric = tag.partition("/")[2]
    ranked = section.returns[0] if section.returns else metric
    found = [section.best(kind, ranked) for kind in (*REFERENCES, "random")]
    rows = [section.rows[i] for i in found if i is not None and metric in section.rows[i].means]
    names: dict[float, str] = {}
    for row in rows:
        value = row.means[metric].value
        names[value] = f"{names[value]}, {row.method.label}" if value in names else row.method.label
    return [Level(name, value) for value, name in names.items()]


def _tag_order(tag: str) -> tuple[int, str]:
    names = ("eval/return/", "episode/return/", "survival", "success", "speed")
    return next((i for i, name in enumerate(names) if name in tag), len(names)), tag


def _tag_title(tag: str) -> str:
    group, _, name = tag.partition("/")
    source = "evaluation episodes" if group == "eval" else "training episodes"
    return f"{name.replace('return/', 'return of ')}, {source}"


def _origins(origins: Sequence[Origin]) -> str:
    parts = []
    for origin in origins:
        seeds = f"seed{'s' if len(origin.seeds) != 1 else ''} {', '.join(map(str, origin.seeds)) or 'none'}"
        commits = f", commit {', '.join(origin.commits)}" if origin.commits else ""
        line = f"<b>{escape(origin.label)}</b> <code>{escape(origin.path)}</code> {escape(seeds + commits)}"
        config = f"<details><summary>config.yaml</summary><pre>{escape(origin.config)}</pre></details>"
        parts.append(f"<li>{line}{config if origin.config else ''}</li>")
    return f"<ul class='origins'>{''.join(parts)}</ul>"
