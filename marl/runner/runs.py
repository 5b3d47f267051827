"""Run folders: making one, finding one, listing them. `runs/<name>/<time>-<id>/`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
import secrets
from pathlib import Path
from typing import Any

from marl.core.errors import UserError, did_you_mean
from marl.io.files import read_json, write_failure
from marl.io.lock import lock_owner
from marl.runner.schema import valid_name

LATEST = "latest"
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """A run folder and what its `meta.json` says, as far as it can be read."""

    path: Path
    name: str
    id: str
    meta: dict[str, Any]

    @property
    def status(self) -> str:
        """`running`, `done`, `interrupted`, `failed`; `killed` if its process is gone; `unknown` without meta.json."""
        status = str(self.meta.get("status", "unknown"))
        return "killed" if status == "running" and lock_owner(self.path) is None else status


def create_run_folder(runs_dir: Path, name: str) -> Path:
    """Make the folder of a new run. Nothing is left behind where that fails.

    Raises: UserError if the name cannot be a folder or the place cannot be written; RunError if the disk is full.
    """
    try:
        valid_name(name)
    except ValueError as error:
        raise UserError(f"name '{name}': {error}") from None
    started = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    parent = runs_dir / name
    absent = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = parent / f"{started}-{secrets.token_hex(3)}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        for made in absent:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise write_failure(runs_dir, error) from error


def list_runs(runs_dir: Path) -> list[RunInfo]:
    """All runs in a runs folder, oldest first; none if there is no such folder."""
    found = [path for path in runs_dir.glob("*/*") if _ID.fullmatch(path.name) and path.is_dir()]
    return [_info(path) for path in sorted(found, key=lambda path: (path.name, path.parent.name))]


def resolve_run(text: str, runs_dir: Path = Path("runs")) -> Path:
    """The folder of a run given by its path, its id (or the start or end of it), its name (the newest) or `latest`.

    Raises: UserError if there is none or an id fits several, with the nearest name.
    """
    if not text:
        raise UserError("no run given; expected a path, an id, a name or latest")
    with contextlib.suppress(OSError, ValueError):
        if (Path(text) / "config.yaml").is_file():
            return Path(text)
    runs = list_runs(runs_dir)
    if not runs:
        raise UserError(f"no run '{text}': there are no runs in '{runs_dir}'; start one with: marl train quickstart")
    if text == LATEST:
        return runs[-1].path
    named = [run for run in runs if text in (run.name, f"{run.name}/{run.id}", run.id)]
    if named:
        return named[-1].path
    near = [run for run in runs if len(text) >= 4 and (run.id.startswith(text) or run.id.endswith(text))]
    if len(near) == 1:
        return near[0].path
    if near:
        raise UserError(f"run '{text}' fits {', '.join(run.id for run in near)}; expected one of them")
    names = sorted({run.name for run in runs})
    hint = did_you_mean(text, [*names, LATEST, *(run.id for run in runs)])
    raise UserError(
        f"no run '{text}' in '{runs_dir}'; expected a path, an id, {LATEST} or one of {', '.join(names)}{hint}"
    )


def _info(path: Path) -> RunInfo:
    try:
        meta = read_json(path / "meta.json")
    except UserError:
        meta = {}
    return RunInfo(path, path.parent.name, path.name, meta if isinstance(meta, dict) else {})
