"""From the results of `scripts/bench/ray` to Markdown, and into a page between its markers. Pure functions of the
JSON."""

from __future__ import annotations

import statistics
from typing import Any

from dataflow_table import spread, table
from ray_cases import WANTED, WORLDS

PARTS = ("impala", "waiting", "served", "ablation", "costs", "actors")  # in the order of their measurement
STYLES = {
    "shared": "SEED-style: one server, on the learner's core",
    "inline": "IMPALA-style: inference in the actors",
    "served": "decoupled: a server and a learner of their own",
}
KINDS = {"driver": "driver", "actor": "actors", "server": "server", "learner": "learner", "ray": "Ray"}


class PageError(Exception):
    """A page without the markers that tables go between."""


def ratios(record: dict[str, Any], name: str) -> list[float]:
    """A side's rate to that of the side that its group refers to, window by window."""
    of = record["sides"][record["of"]]["rate"]
    return [one / base for one, base in zip(record["sides"][name]["rate"], of, strict=False) if base]


def wanted(record: dict[str, Any], name: str) -> float | None:
    """What a side's ratio should be at least, None where nothing is asked of it."""
    if record["part"] == "impala" and name != record["of"]:
        return WANTED["impala"]
    if record["group"] == "served 64" and name == "served":
        return WANTED["served"]
    return WANTED.get(f"{record['group']} {name}")


def busiest(side: dict[str, Any]) -> str:
    """What the run itself says it was busy with, in most of the windows."""
    names = [max(busy, key=busy.__getitem__) for each in side["shares"] if (busy := without_waiting(each))]
    return statistics.mode(names) if names else "–"


def without_waiting(shares: dict[str, float]) -> dict[str, float]:
    return {name: share for name, share in shares.items() if name != "waiting" and share > 0}


def cores(side: dict[str, Any]) -> str:
    """Processor seconds a second, by kind of process; of a peer, in all."""
    if not any(side["by_kind"]):
        return f"{statistics.median(side['cores']):.1f}" if side["cores"] else "–"
    return ", ".join(
        f"{title} {statistics.median(values):.2f}"
        for kind, title in KINDS.items()
        if (values := [each[kind] for each in side["by_kind"] if kind in each])
    )


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """Every median ratio, and as `ratio` the smallest share of what was wanted. Of impala the better of ours counts."""
    found: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    for group, record in data.get("groups", {}).items():
        for name in record["sides"]:
            if name == record["of"] or not (values := ratios(record, name)):
                continue
            ratio = statistics.median(values)
            found.setdefault(group, {})[name] = round(ratio, 3)
            if (times := wanted(record, name)) is not None:
                key = group if record["part"] == "impala" else f"{group}/{name}"
                shares[key] = max(shares.get(key, 0.0), ratio / times)
    return {
        "what": "ratios of env steps per second of training; ratio: smallest share of the wanted ratios",
        "ratio": round(min(shares.values()), 3) if shares else None,
        "ratios": found,
        "machine": data.get("machine"),
    }


def tables(data: dict[str, Any]) -> dict[str, str]:
    """Markdown by marker: `conditions`, and one for each part; a part that was not measured says so."""
    found = {"conditions": _conditions(data)}
    for part in PARTS:
        if part == "costs":
            rows = [[case, record["text"]] for case, record in data.get("costs", {}).items()]
            lines = table(["what", "result"], rows) if rows else []
        elif part == "ablation":
            lines = _ablation(data)
        else:
            lines = _groups(data, part)
        found[part] = "\n".join(lines).strip() or "Not measured yet."
    return found


def _conditions(data: dict[str, Any]) -> str:
    records = [*data.get("groups", {}).values(), *data.get("costs", {}).values()]
    if not records:
        return "Nothing measured yet."
    times = sorted(record["when"] for record in records)
    loads = [record["load"] for record in records]
    commits = ", ".join(sorted({record["commit"] for record in records}))
    versions = {
        f"{'RLlib' if name == 'impala' else 'ours'}: {', '.join(f'{p} {v}' for p, v in side['versions'].items())}"
        for record in data.get("groups", {}).values()
        for name, side in record["sides"].items()
        if side.get("versions")
    }
    return (
        f"{data.get('machine', 'unknown machine')}; measured {times[0]} to {times[-1]}, commit {commits}; load average "
        f"{min(loads)} to {max(loads)} (of the measured processes and all others). {'; '.join(sorted(versions))}."
    )


def _groups(data: dict[str, Any], part: str) -> list[str]:
    lines = []
    for group, record in data.get("groups", {}).items():
        if record["part"] != part:
            continue
        head = ["side", "setting", "env steps/s", f"to {record['of']}", "wanted", "reached"]
        head += ["busiest, says the run", "processors", "others"]
        rows = [_row(record, name) for name in record["sides"]]
        lines += [f"{WORLDS[record['task']]} ({group}):", "", *table(head, rows)]
    scans = [r for r in data.get("scan", {}).values() if part == "impala" and r["part"] == part]
    if scans:
        rows = [[WORLDS[r["task"]], r["side"], r["label"], _scanned(r)] for r in scans]
        head = ["world", "side", "setting", "env steps/s"]
        lines += ["The settings that the fastest was looked for among, one window each:", "", *table(head, rows)]
    return lines


def _ablation(data: dict[str, Any]) -> list[str]:
    """The same windows as SRL's authors name the designs, each to the first."""
    record = data.get("groups", {}).get("served 64")
    if record is None:
        return []
    record = record | {"of": "shared"}
    rows = []
    for name, style in STYLES.items():
        rates, values = record["sides"][name]["rate"], ratios(record, name)
        rows.append([style, spread(rates), spread(values, 2) if name != "shared" else "1"])
    return table(["design", "env steps/s", "to SEED-style"], rows)


def _scanned(record: dict[str, Any]) -> str:
    return f"failed: {record['error']}" if "error" in record else f"{record['rate']:,.0f}"


def _row(record: dict[str, Any], name: str) -> list[str]:
    side = record["sides"][name]
    if "error" in side:
        return [name, side["label"], f"failed: {side['error']}", *["–"] * 6]
    values, times = ratios(record, name), wanted(record, name)
    reached = "–" if times is None or not values else "yes" if statistics.median(values) >= times else "no"
    return [
        name,
        side["label"],
        spread(side["rate"]),
        "–" if name == record["of"] else spread(values, 2),
        "–" if times is None else f"≥ {times:g}",
        reached,
        busiest(side),
        cores(side),
        f"{max(side['others']):.0%}" if side["others"] else "–",
    ]


def begin(marker: str) -> str:
    return f"<!-- begin {marker}: written by scripts/bench/ray --table -->"


def end(marker: str) -> str:
    return f"<!-- end {marker} -->"


def filled(page: str, found: dict[str, str]) -> str:
    """The page with what stands between its markers replaced, and nothing else. Raises: PageError if it has none."""
    if not any(begin(marker) in page for marker in found):
        raise PageError(f"no line '{begin('impala')}' to write tables after")
    for marker, text in found.items():
        before, opened, rest = page.partition(f"{begin(marker)}\n")
        if not opened:
            continue
        _, closed, after = rest.partition(end(marker))
        if not closed:
            raise PageError(f"'{begin(marker)}' is not followed by '{end(marker)}'")
        page = f"{before}{opened}\n{text}\n\n{closed}{after}"
    return page
