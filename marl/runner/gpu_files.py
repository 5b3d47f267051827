"""Run folders as a few small archives, and back."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from marl.io.checkpoint import list_checkpoints, newest_valid
from marl.runner.runs import list_runs

ARCHIVES = 5  # beside two result files this stays under 8
ARCHIVE_BYTES = 15 * 2**20
_NAME = "runs-{}.tar.gz"
_LEAVE_OUT = {"tb", "videos", "quarantine"}


def pack_runs(runs_dir: Path, out: Path, *, notice: Callable[[str], None]) -> list[Path]:
    """Pack what a run needs to go on: metrics, results, policies and its newest checkpoint. Returns the archives.

    Every archive is whole or absent. A run for which there is no room is named and left out.
    """
    pieces: list[tuple[int, str, Path]] = []
    packed = out / ".packing"
    for info in list_runs(runs_dir):
        _archive([info.path], runs_dir, packed)
        pieces.append((packed.stat().st_size, f"{info.name}/{info.id}", info.path))
    packed.unlink(missing_ok=True)
    bins: list[list[Path]] = []
    sizes: list[int] = []
    for size, label, path in sorted(pieces, reverse=True):
        place = next((i for i, used in enumerate(sizes) if used + size <= ARCHIVE_BYTES), len(bins))
        if size > ARCHIVE_BYTES or place == ARCHIVES:
            notice(f"no room for run {label} ({size / 2**20:.0f} MiB): it will start anew next time")
            continue
        if place == len(bins):
            bins.append([])
            sizes.append(0)
        bins[place].append(path)
        sizes[place] += size
    made = []
    for index, runs in enumerate(bins, start=1):
        target = out / _NAME.format(index)
        _archive(runs, runs_dir, packed)
        os.replace(packed, target)
        made.append(target)
    for stale in set(out.glob(_NAME.format("*"))) - set(made):
        stale.unlink()
    return made


def unpack_runs(folder: Path, runs_dir: Path) -> None:
    """Put the runs of an earlier call back. What is no plain file inside the folder is refused by `tarfile` itself."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob(_NAME.format("*"))):
        with tarfile.open(path, "r:gz") as archive:
            archive.extractall(runs_dir, filter="data")


def _archive(runs: list[Path], runs_dir: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for run in runs:
            for path in _files(run):
                archive.add(path, arcname=str(path.relative_to(runs_dir)), recursive=False)


def _files(run: Path) -> list[Path]:
    checkpoints = run / "checkpoints"
    newest = newest_valid(checkpoints, lambda event: None, repair=False)
    unwanted = {path.name for path in list_checkpoints(checkpoints) if path != newest} | _LEAVE_OUT
    found = []
    for path in sorted(run.rglob("*")):
        parts = path.relative_to(run).parts
        partial = any(part.endswith((".tmp", ".replaced")) for part in parts)
        if path.is_file() and not partial and not unwanted.intersection(parts) and not parts[-1].startswith("."):
            found.append(path)
    return found
