"""What there is: worlds, algorithms, experiments, runs. Nothing is imported to list it, so listing is instant."""

from __future__ import annotations

import ast
import datetime
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from marl import agents, envs
from marl.core.errors import UserError
from marl.core.registry import Registry
from marl.runner.load import packaged_experiments, read_tree
from marl.runner.runs import RunInfo, list_runs

Kind = Literal["envs", "agents", "experiments", "runs"]


def rows(kind: Kind, runs_dir: Path = Path("runs")) -> list[dict[str, Any]]:
    """One flat dict for each thing of a kind, with the same keys in each."""
    if kind == "envs":
        return _registered(envs.REGISTRY)
    if kind == "agents":
        return _registered(agents.REGISTRY)
    if kind == "experiments":
        return [_experiment(name, path) for name, path in packaged_experiments().items()]
    return [_run(run) for run in reversed(list_runs(runs_dir))]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Dicts with the same keys as columns of plain text, the last one not padded."""
    head = list(found[0])
    lines = [head, *([str(row[name]) for name in head] for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def summary(target: str) -> str:
    """The first sentence about `package.module:Class`, read from its source; empty if it cannot be found."""
    module, _, name = target.partition(":")
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if path.is_file():
                return _first_sentence(path, name)
    return ""


def _first_sentence(path: Path, name: str) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ""
    docs = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    text = next((doc for doc in (*docs, ast.get_docstring(tree)) if doc), "")
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _registered(registry: Registry) -> list[dict[str, Any]]:
    targets = registry.targets()
    return [{"name": name, "target": targets[name], "summary": summary(targets[name])} for name in registry.names()]


def _experiment(name: str, path: Path) -> dict[str, Any]:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    try:
        data = read_tree(path).plain()
        env, policies = data["env"]["id"], data["agents"].values()
    except (UserError, KeyError, TypeError, AttributeError):
        env, policies = "(not readable)", ()
    return {
        "name": name,
        "env": env,
        "algorithm": ", ".join(dict.fromkeys(section["algorithm"] for section in policies)),
        "summary": first.removeprefix("#").strip() if first.startswith("#") else "",
    }


def _run(run: RunInfo) -> dict[str, Any]:
    created = run.meta.get("created")
    env = run.meta.get("env")
    return {
        "name": run.name,
        "id": run.id,
        "status": run.status,
        "started": _local_time(created) if isinstance(created, (int, float)) else "",
        "env": env.get("id", "") if isinstance(env, dict) else "",
        "algorithm": run.meta.get("algorithm", ""),
        "seeds": len(run.meta.get("seeds", [])) or "",
        "path": str(run.path),
    }


def _local_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M")
