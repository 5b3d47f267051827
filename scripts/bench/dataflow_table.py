"""From the results of `dataflow` to Markdown tables and one summary. Pure functions of the JSON."""

from __future__ import annotations

import statistics
from typing import Any

from dataflow_cases import PEERS, RAW_SHARE, RETURNS, TITLES, WANTED, WORLDS

FINDINGS = "## What it shows"
HEAD = """<!-- Tables by `scripts/bench/dataflow --table FILE` from what it measured; "What it shows" is kept. -->
# The local dataflow beside RLlib, Stable-Baselines3 and Sample Factory

Env steps per second of training, learning included, on one machine. Windows of ours and of the peer alternate, the
other side idle; medians, with the smallest and largest window in brackets. A ratio is the median of the ratios of
neighbouring windows. Start-up, compilation and the first update are not counted; ours does not count the row that
starts an episode. *matched*: 8 worlds, 128 steps, 4 epochs of 4 minibatches, the same 64 x 64 tanh networks for actor
and critic, parameters shared by all agents of simple_spread (IMPALA has no epochs). *best*: the fastest of 1, 8 and
16 worlds a runner and the matched setting, for ours and for the peer; the grid is below. *default*: RLlib with one
world a runner, as it comes, beside our matched setting. *cores*: processor seconds of
the side's processes a second; *others*: the largest share of the machine that other processes took in a window.
"""
COLUMNS = {"matched": 0, "best": 1}


def spread(values: list[float], digits: int = 0) -> str:
    """`median (min to max)`."""
    if not values:
        return "–"
    low, middle, high = (f"{x:,.{digits}f}" for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratios(pair: dict[str, Any]) -> list[float]:
    """Ours to the peer's rate, window by window."""
    both = zip(pair["ours"]["rate"], pair["theirs"]["rate"], strict=False)
    return [ours / theirs for ours, theirs in both if theirs]


def wanted(pair: dict[str, Any]) -> float | None:
    """How many times the peer's rate ours has to be, None where nothing is asked."""
    if pair["peer"] == "raw":
        return RAW_SHARE
    if pair["column"] not in COLUMNS:
        return None
    both = WANTED.get((pair["task"], pair["peer"]))
    return both[COLUMNS[pair["column"]]] if both else None


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def pairs_of(data: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """A task's pairs in the order of the table."""
    order = ["raw", *PEERS.get(task, ())]
    found = [pair for pair in data.get("pairs", {}).values() if pair["task"] == task and pair["peer"] in order]
    return sorted(found, key=lambda pair: (order.index(pair["peer"]), COLUMNS.get(pair["column"], 2)))


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """One object: every median ratio, and as `ratio` the smallest share of what was wanted that ours reached."""
    found: dict[str, Any] = {}
    shares = []
    for task in PEERS:
        for pair in pairs_of(data, task):
            if values := ratios(pair):
                ratio = statistics.median(values)
                found.setdefault(task, {}).setdefault(pair["peer"], {})[pair["column"]] = round(ratio, 2)
                if (times := wanted(pair)) is not None:
                    shares.append(ratio / times)
    return {
        "what": "ours / peer, env steps per second of training; ratio: smallest share of the wanted ratios",
        "ratio": round(min(shares), 3) if shares else None,
        "ratios": found,
        "machine": data.get("machine"),
    }


def with_findings(page: str, before: str) -> str:
    """The page with the paragraphs under FINDINGS of the one before it, which are written by hand."""
    _, found, rest = before.partition(f"{FINDINGS}\n")
    head, first, tables = page.partition("\n## ")
    if not found or not first:
        return page
    return f"{head}\n{FINDINGS}\n{rest.split(chr(10) + '## ')[0]}{first}{tables}"


def markdown(data: dict[str, Any]) -> str:
    """The page: a section for each task that was measured, then times to a return, then our own figures."""
    lines = [HEAD, f"{data.get('machine', 'unknown machine')}; {_when(data)}.", ""]
    for task, title in WORLDS.items():
        pairs = pairs_of(data, task)
        if pairs:
            lines += [f"## {title}", "", *_pair_table(pairs), *_versions(pairs)]
        lines += _scan_table(data, task)
    lines += _returns_tables(data)
    if data.get("own"):
        rows = [[key.replace("/", ": "), record["text"]] for key, record in data["own"].items()]
        lines += ["## Our own overheads", "", *table(["what", "result"], rows)]
    return "\n".join(lines).rstrip() + "\n"


def _when(data: dict[str, Any]) -> str:
    records = [record for part in ("pairs", "returns", "own") for record in data.get(part, {}).values()]
    if not records:
        return "nothing measured yet"
    times = sorted(record["when"] for record in records)
    loads = [record["load"] for record in records]
    commits = ", ".join(sorted({record["commit"] for record in records}))
    return (
        f"measured {times[0]} to {times[-1]}, commit {commits}; load average {min(loads)} to {max(loads)} (of the "
        "measured processes and all others)"
    )


def _pair_table(pairs: list[dict[str, Any]]) -> list[str]:
    head = ["peer", "column", "its setting", "peer, env steps/s", "our setting", "ours, env steps/s", "ratio"]
    head += ["wanted", "reached", "cores ours / peer", "others"]
    rows = []
    for pair in pairs:
        ours, theirs, times = pair["ours"], pair["theirs"], wanted(pair)
        values = ratios(pair)
        reached = "–" if times is None or not values else "yes" if statistics.median(values) >= times else "no"
        cores = " / ".join(f"{statistics.median(s['cores']):.1f}" if s["cores"] else "–" for s in (ours, theirs))
        others = [x for side in (ours, theirs) for x in side["others"]]
        rows.append(
            [
                TITLES.get(pair["peer"], "raw stepping"),
                pair["column"],
                theirs["label"],
                f"failed: {pair['error']}" if "error" in pair else spread(theirs["rate"]),
                ours["label"],
                spread(ours["rate"]),
                spread(values, 2),
                "–" if times is None else f"≥ {times:g}",
                reached,
                cores,
                f"{max(others):.0%}" if others else "–",
            ]
        )
    return table(head, rows)


def _versions(pairs: list[dict[str, Any]]) -> list[str]:
    found = {}
    for pair in pairs:
        for side in ("ours", "theirs"):
            name = "ours" if side == "ours" else TITLES.get(pair["peer"], "raw stepping")
            if about := pair[side].get("versions"):
                found[name] = ", ".join(f"{package} {version}" for package, version in about.items())
    return [f"- {name}: {text}" for name, text in found.items()] + [""]


def _scan_table(data: dict[str, Any], task: str) -> list[str]:
    records = [record for record in data.get("scan", {}).values() if record["task"] == task]
    if not records:
        return []
    rows = [
        [TITLES[r["name"]], r["label"], f"failed: {r['error']}" if "error" in r else f"{r['rate']:,.0f}"]
        for r in records
    ]
    return [f"The grid of {WORLDS[task]}, one window each:", "", *table(["side", "setting", "env steps/s"], rows)]


def _returns_tables(data: dict[str, Any]) -> list[str]:
    lines = []
    for task, until in RETURNS.items():
        records = [record for record in data.get("returns", {}).values() if record["task"] == task]
        if not records:
            continue
        names = [name for name in TITLES if any(record["name"] == name for record in records)]
        rows = []
        for name in names:
            runs = sorted((record for record in records if record["name"] == name), key=lambda record: record["seed"])
            reached = [run for run in runs if run.get("reached")]
            rows.append(
                [
                    TITLES[name],
                    runs[0]["label"],
                    f"{len(reached)} of {len(runs)}",
                    spread([run["seconds"] for run in reached]),
                    spread([run["env_steps"] for run in reached]),
                    spread([run["start_s"] for run in runs if "start_s" in run]),
                    ", ".join(f"{run['return']:.1f}" if "return" in run else "–" for run in runs),
                ]
            )
        head = ["side", "setting", "reached", "seconds", "env steps", "start-up, s", "best mean return, by seed"]
        title = f"## Wall time to a return of {until:g} on {WORLDS[task]}"
        note = (
            f"Fresh runs in the matched setting until the last 100 training episodes average {until:g} (one agent's "
            f"return), at most {records[0]['limit_s']:.0f} s each; seconds include our compilation, not the start-up."
        )
        lines += [title, "", note, "", *table(head, rows)]
    return lines
