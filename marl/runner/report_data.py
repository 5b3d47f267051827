"""What a report is made from: run folders and evaluation files, read, checked and grouped by method."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import UserError
from marl.evaluate.records import Evaluation, read_evaluations
from marl.io.jsonl import iter_rows
from marl.runner.load import read_tree

MethodKind: TypeAlias = Literal["learned", "constant", "random", "scripted"]
Floats: TypeAlias = NDArray[np.float64]

CURVE_TAGS = ("eval/return/", "episode/return/", "eval/survival_s", "eval/success", "eval/speed_mps")
FALLBACK_TAGS = {f"eval/{name}": f"episode/{name}" for name in ("survival_s", "success", "speed_mps")}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where numbers came from, for the last section of the page. `config` is the text of config.yaml."""

    path: str
    label: str
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One tag of one training seed over env steps; both arrays `[n]`, steps rising."""

    label: str
    seed: int
    tag: str
    env_steps: Floats
    values: Floats


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table: the evaluations of one label that act alike, one a training seed.

    index: the held-out episodes that every seed played, `[E]`, rising.
    """

    label: str
    algorithm: str
    world: str
    kind: MethodKind
    episodes_kind: str
    greedy: bool
    evaluations: tuple[Evaluation, ...]
    index: NDArray[np.int64]

    @property
    def actions(self) -> str:
        """How actions were chosen: a scripted policy has nothing to sample from."""
        if self.kind in ("constant", "scripted"):
            return "scripted"
        return "greedy" if self.greedy and self.kind != "random" else "sampled"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names that every seed has."""
        first, *others = (e.episodes.metrics for e in self.evaluations)
        return tuple(name for name in first if all(name in other for other in others))

    def scores(self, metric: str, index: NDArray[np.int64] | None = None) -> Floats:
        """`[n_seeds, n_episodes]` on the episodes of `index` (default: all that every seed played)."""
        wanted = self.index if index is None else index
        rows = []
        for evaluation in self.evaluations:
            order = np.argsort(evaluation.episodes.seed_index)
            positions = order[np.searchsorted(np.asarray(evaluation.episodes.seed_index), wanted, sorter=order)]
            rows.append(evaluation.episodes.column(metric)[positions])
        return np.stack(rows)


@dataclasses.dataclass
class Collected:
    """Everything that was read. `notes` are sentences for the page: what was left out and why."""

    methods: list[Method]
    curves: dict[str, list[Curve]]  # by world
    origins: list[Origin]
    notes: list[str]


@dataclasses.dataclass
class _Folder:
    path: Path
    label: str
    config: str
    plain: dict[str, Any]
    evaluations: list[Evaluation]
    rows: list[dict[str, Any]]

    @property
    def seeds(self) -> set[int]:
        return {e.seed for e in self.evaluations} | {row["seed"] for row in self.rows}

    @property
    def settings(self) -> str:
        """The config without its seeds: what must agree for seeds of two runs to be replicates."""
        return json.dumps({k: v for k, v in self.plain.items() if k not in ("seed", "seeds")}, sort_keys=True)


def method_kind(algorithm: str) -> MethodKind:
    """What an algorithm's name says about how it came to act: `scripted/constant` and `always_*` repeat one action."""
    name = algorithm.rpartition("/")[2]
    if name == "random":
        return "random"
    if name.startswith(("constant", "always_", "always-")):
        return "constant"
    return "scripted" if algorithm.startswith("scripted/") else "learned"


def world_name(env: dict[str, Any]) -> str:
    """A world and its options in one line; only evaluations with the same line are compared.

    Left out is what changes neither scene nor reward: what agents see (`observation...`), and whether the time limit is
    called a termination, which concerns learners alone.
    """
    options = {k: v for k, v in env.items() if k not in ("id", "time_limit") and not k.startswith("observation")}
    shown = ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in sorted(options.items()))
    return f"{env['id']} ({shown})" if shown else str(env["id"])


def world_titles(worlds: Iterable[str]) -> dict[str, str]:
    """A short name for every world: its id, and of its options those in which the worlds differ."""
    split = {world: world.removesuffix(")").partition(" (") for world in worlds}
    options = {world: options.split(", ") for world, (_, _, options) in split.items()}
    common = (
        set.intersection(*map(set, options.values())) if len(options) > 1 else {o for v in options.values() for o in v}
    )
    titles = {}
    for world, (name, _, _) in split.items():
        own = ", ".join(option for option in options[world] if option not in common)
        titles[world] = f"{name}, {own}" if own else name
    return titles if len(set(titles.values())) == len(titles) else {world: world for world in titles}


def collect_runs(paths: Sequence[Path]) -> Collected:
    """Read run folders, evaluation files and folders of evaluation files.

    Raises: UserError for a path that is missing, holds nothing to report or is damaged, and for runs on different
    worlds.
    """
    if not paths:
        raise UserError("nothing to report: name at least one run folder or evaluation file")
    folders: list[_Folder] = []
    files: list[tuple[Path, list[Evaluation]]] = []
    for path in dict.fromkeys(p.resolve() for p in paths):
        if path.is_dir() and _is_run(path):
            folders.append(_read_folder(path))
        elif path.is_dir() and (inside := sorted(path.glob("*.json"))):
            files += [(file, read_evaluations(file)) for file in inside]
        elif path.is_file():
            files.append((path, read_evaluations(path)))
        else:
            what = "is neither a run folder nor an evaluation file" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}; expected a run (see `marl list runs`) or an evaluations.json")
    notes: list[str] = []
    _tell_apart(folders, notes)
    sources = [(folder.path, folder.evaluations) for folder in folders] + files
    evaluations = _merged(sources, notes)
    ids = {e.env["id"] for e in evaluations} | {f.plain["env"]["id"] for f in folders if f.rows}
    if len(ids) > 1:
        raise UserError(f"one report compares runs on one world; these are on {', '.join(sorted(ids))}")
    methods = _methods(evaluations, notes)
    curves: dict[str, list[Curve]] = defaultdict(list)
    for folder in folders:
        curves[world_name(folder.plain["env"])] += _curves(folder)
    if not methods and not any(curves.values()):
        raise UserError(f"nothing to report yet in {', '.join(str(p) for p in paths)}: no evaluations and no metrics")
    return Collected(methods, dict(curves), [_origin(f) for f in folders] + [_file_origin(*f) for f in files], notes)


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "meta.json"))


def _read_folder(path: Path) -> _Folder:
    tree = read_tree(path / "config.yaml").plain()
    env = tree.get("env") if isinstance(tree, dict) else None
    if not isinstance(env, dict) or not isinstance(env.get("id"), str) or not isinstance(tree.get("name"), str):
        raise UserError(f"{path / 'config.yaml'} is not the config of a run: it must hold `name` and `env.id`")
    stored = [path / "evaluations.json", *sorted(path.glob("seed_*/evaluations.json"))]
    evaluations = [e for file in stored if file.is_file() for e in read_evaluations(file)]
    rows = []
    if (path / "metrics.jsonl").is_file():
        for number, row in enumerate(iter_rows(path / "metrics.jsonl"), start=1):
            if row.get("kind") in ("train", "eval"):
                if not _whole(row.get("seed")) or not _whole(row.get("env_steps")):
                    raise UserError(f"{path / 'metrics.jsonl'}:{number}: `seed` and `env_steps` must be whole numbers")
                rows.append(row)
    text = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return _Folder(path, tree["name"], text, tree, evaluations, rows)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tell_apart(folders: Iterable[_Folder], notes: list[str]) -> None:
    """Seeds of runs with one name and the same settings are pooled; any other run of that name gets a label of its
    own.
    """
    known: dict[str, tuple[str, set[int]]] = {}
    for folder in folders:
        settings, seeds = known.get(folder.label, (folder.settings, set()))
        if settings == folder.settings and not seeds & folder.seeds:
            known[folder.label] = (settings, seeds | folder.seeds)
            continue
        new = f"{folder.label} ({folder.path.name})"
        why = "repeats a seed" if settings == folder.settings else "has other settings"
        notes.append(f"Run {folder.path.name} of {folder.label} {why}, so it stands on its own as {new}.")
        folder.evaluations = [e.model_copy(update={"label": new}) for e in folder.evaluations]
        folder.label = new
        known[new] = (folder.settings, folder.seeds)


def _merged(sources: Iterable[tuple[Path, list[Evaluation]]], notes: list[str]) -> list[Evaluation]:
    """One record for each label, seed, checkpoint and kind of episodes; the newer of two, if one setting made both."""
    kept: dict[object, tuple[Path, Evaluation]] = {}
    for path, evaluations in sources:
        for new in evaluations:
            before_path, before = kept.get(new.identity, (path, new))
            who = f"{new.label}, seed {new.seed}, {new.env_steps} env steps, {new.kind}"
            if before.config_hash != new.config_hash:
                raise UserError(f"{before_path} and {path} disagree about {who}: their settings differ; drop one")
            if before.episodes != new.episodes:
                notes.append(f"Of two evaluations of {who}, the newer one is shown.")
            if new.time >= before.time:
                kept[new.identity] = (path, new)
    return [evaluation for _, evaluation in kept.values()]


def _methods(evaluations: Iterable[Evaluation], notes: list[str]) -> list[Method]:
    groups: dict[tuple[str, str, bool], list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        groups[(world_name(evaluation.env), evaluation.label, evaluation.greedy)].append(evaluation)
    return [_method(world, label, greedy, group, notes) for (world, label, greedy), group in groups.items()]


def _method(world: str, label: str, greedy: bool, group: list[Evaluation], notes: list[str]) -> Method:
    """Test episodes if any seed has them, else validation episodes; of each seed the checkpoint with most env steps."""
    kind = "test" if any(e.kind == "test" for e in group) else "validation"
    chosen: dict[int, Evaluation] = {}
    for evaluation in sorted((e for e in group if e.kind == kind), key=lambda e: (e.env_steps, e.time)):
        chosen[evaluation.seed] = evaluation
    left_out = sorted({e.seed for e in group} - set(chosen))
    if left_out:
        notes.append(f"{label}: seeds {', '.join(map(str, left_out))} have no test episodes and are left out.")
    members = tuple(chosen[seed] for seed in sorted(chosen))
    if any(e.kind == kind == "test" and e.env_steps != chosen[e.seed].env_steps for e in group):
        notes.append(f"{label}: of test episodes at several checkpoints, those of each seed's last one are shown.")
    names = {e.algorithm for e in members}
    if len(names) > 1:
        raise UserError(f"'{label}' names several algorithms ({', '.join(sorted(names))}); expected a label for each")
    shapes = {tuple(sorted((role, len(rows[0])) for role, rows in e.episodes.returns.items())) for e in members}
    if len(shapes) > 1:
        raise UserError(f"the seeds of '{label}' have different roles or numbers of agents")
    shared = set.intersection(*(set(e.episodes.seed_index) for e in members))
    if not shared:
        raise UserError(f"the seeds of '{label}' were evaluated on different episodes: none is common to all")
    total = sum(len(e.episodes.seed_index) for e in members)
    if total != len(shared) * len(members):
        notes.append(f"{label}: only the {len(shared)} episodes that all its seeds played are used.")
    index = np.asarray(sorted(shared), np.int64)
    return Method(label, members[0].algorithm, world, method_kind(members[0].algorithm), kind, greedy, members, index)


def _curves(folder: _Folder) -> list[Curve]:
    """The plotted tags of every seed; the training figure stands in where there was no evaluation."""
    points: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    for row in folder.rows:
        for tag, value in row.items():
            if tag.startswith(CURVE_TAGS) or tag in FALLBACK_TAGS.values():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise UserError(f"{folder.path / 'metrics.jsonl'}: {tag} is {value!r:.40}, expected a number")
                if np.isfinite(value):
                    points[(int(row["seed"]), tag)][int(row["env_steps"])] = float(value)
    tags = {tag for _, tag in points}
    unused = {fallback for tag, fallback in FALLBACK_TAGS.items() if tag in tags}
    curves = []
    for (seed, tag), series in sorted(points.items()):
        if tag not in unused:
            steps = sorted(series)
            values = np.asarray([series[step] for step in steps], np.float64)
            curves.append(Curve(folder.label, seed, tag, np.asarray(steps, np.float64), values))
    return curves


def _origin(folder: _Folder) -> Origin:
    return _file_origin(folder.path, folder.evaluations, folder)


def _file_origin(path: Path, evaluations: list[Evaluation], folder: _Folder | None = None) -> Origin:
    labels = ", ".join(dict.fromkeys(e.label for e in evaluations)) if folder is None else folder.label
    seeds = {e.seed for e in evaluations} if folder is None else folder.seeds
    commits = tuple(sorted({e.commit for e in evaluations if e.commit}))
    return Origin(str(path), labels, tuple(sorted(seeds)), commits, "" if folder is None else folder.config)
