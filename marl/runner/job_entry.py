"""What a submitted job runs on the cluster: `python -m marl.runner.job_entry --dir DIR train|sweep ARGS...`.

It runs `marl train` or `marl sweep` and then packs what was written into an archive in Ray's log folder, the one place
that the dashboard hands out, and prints one line of JSON that tells the client where everything is. Imports no Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from marl.io.console import say

FACTS = "marl-job: "  # begins the line of JSON
MAX_BYTES = 4 << 30  # of files: more than this stays on the cluster
_NEVER = ("run.lock",)


def archive_name(job: str) -> str:
    """The name of a job's archive in Ray's log folder."""
    return f"{job}.tar.gz"


def log_folder() -> Path | None:
    """The folder of the file that Ray sends this job's output to; None where this is no Ray job."""
    try:
        output = Path(os.readlink("/proc/self/fd/1"))
    except OSError:
        return None
    return output.parent if output.name.startswith("job-driver-") and output.is_file() else None


def files_of(folder: Path, *, checkpoints: bool) -> Iterator[Path]:
    """The files of a folder of runs that travel: no locks, no links and, unless asked for, no checkpoints."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_symlink() or not path.is_file() or path.name in _NEVER:
            continue
        if checkpoints or "checkpoints" not in inside[:-1]:
            yield path


def pack(folder: Path, archive: Path, *, checkpoints: bool) -> dict[str, Any]:
    """Write an archive of the folder's files. Returns its `bytes` and `sha256`, or `left`: why there is none."""
    files = list(files_of(folder, checkpoints=checkpoints))
    size = sum(path.stat().st_size for path in files)
    if not files:
        return {"left": "the job wrote nothing"}
    if size > MAX_BYTES:
        return {"left": f"{size / 2**30:.1f} GiB of files, more than {MAX_BYTES / 2**30:.0f} GiB, stay on the cluster"}
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:gz", compresslevel=1) as opened:
        for path in files:
            opened.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False)
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    part.replace(archive)
    return {"bytes": archive.stat().st_size, "sha256": digest.hexdigest()}


def _run(words: Sequence[str]) -> int:
    """Run `marl ...` to its end. Ray signals every process of a job it stops, so this one has only to wait.

    In a copy of the job's files: Ray unpacks them anew when another node on the same machine needs them, and a process
    in the old folder is then nowhere.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # unlike SIG_IGN not inherited
    with tempfile.TemporaryDirectory(prefix="marl-job-") as copy:
        shutil.copytree(".", copy, dirs_exist_ok=True)
        code = subprocess.run([sys.executable, "-m", "marl.cli", *words], cwd=copy, check=False).returncode
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Train or sweep into a folder of this job's own; the exit code is that of `marl`."""
    parser = argparse.ArgumentParser(prog="job_entry")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("command", choices=("train", "sweep"))
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    folder = Path(options.dir).expanduser().resolve() / options.job
    where = ["--runs-dir", str(folder)] if options.command == "train" else ["--out", str(folder)]
    code = _run([options.command, *options.rest, *where])
    logs = log_folder()
    facts: dict[str, Any] = {"host": platform.node(), "folder": str(folder), "exit_code": code}
    try:
        if logs is None:
            facts["left"] = "this is no Ray job"
        else:
            facts |= pack(folder, logs / archive_name(options.job), checkpoints=options.checkpoints)
    except OSError as error:
        facts["left"] = f"packing failed: {error.strerror or error}"
    say(FACTS + json.dumps(facts))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
