"""A checkout whose interpreter and pip are stand-ins (shell scripts): nothing is installed and no network is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

VERSION = ".".join(map(str, sys.version_info[:2]))
CONSTRAINTS = f"py{VERSION.replace('.', '')}.txt"

# Stands for `python3`: says its version, makes an environment whose python stands for pip too, or runs a script.
PYTHON = """#!/bin/sh
case "$1 ${2:-}" in
"-c "*) echo "${FAKE_VERSION:-@VERSION@}" ;;
"-m venv")
    if [ -e "$FAKE/no-venv" ]; then echo "$0: No module named venv" >&2; exit 1; fi
    echo venv >> "$FAKE/log"
    mkdir -p "$3/bin"
    cp "$FAKE/environment-python" "$3/bin/python" ;;
*) exec "@REAL@" "$@" ;;
esac
"""
ENVIRONMENT_PYTHON = """#!/bin/sh
case "$1" in
-c) echo "@VERSION@"; exit ;;
esac
echo pip "$@" >> "$FAKE/log"
if [ -p "$FAKE/gate" ]; then echo in >&2; read -r _ < "$FAKE/gate"; fi
if [ -e "$FAKE/offline" ]; then echo "WARNING: Retrying: NewConnectionError('Name or service not known')"; exit 1; fi
if [ -e "$FAKE/conflict" ]; then echo "ERROR: No matching distribution found for zipp==0"; exit 1; fi
for name in marl ruff mypy lint-imports pytest; do
    program=$(dirname "$0")/$name
    printf '#!/bin/sh\\necho "%s $*"\\nexit "${FAKE_%s:-0}"\\n' "$name" "$(echo $name | tr a-z- A-Z_)" > "$program"
    chmod +x "$program"
done
"""


class Checkout:
    """A small copy of the repository, in a folder whose name has spaces, with a stand-in for Python."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.root = folder / "a check out"
        self.fake = folder / "fake"
        self.processes: list[subprocess.Popen[str]] = []
        self.fake.mkdir(parents=True)
        (self.root / "scripts").mkdir(parents=True)
        for name in ("marl", "test", "setup.sh", "setup_venv.py"):
            shutil.copy(repository / "scripts" / name, self.root / "scripts" / name)
        shutil.copytree(repository / "constraints", self.root / "constraints")
        shutil.copy(repository / "pyproject.toml", self.root / "pyproject.toml")
        for name, text in (("python", PYTHON), ("environment-python", ENVIRONMENT_PYTHON)):
            (self.fake / name).write_text(text.replace("@VERSION@", VERSION).replace("@REAL@", sys.executable))
            (self.fake / name).chmod(0o755)
        self.environment = {**os.environ, "FAKE": str(self.fake), "MARL_PYTHON": str(self.fake / "python")}

    def start(self, *arguments: str, script: str = "marl", **environment: str) -> subprocess.Popen[str]:
        command = [str(self.root / "scripts" / script), *arguments]
        variables = {**self.environment, **environment}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables, cwd=self.fake)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End what a failed test left behind."""
        for process in self.processes:
            with process:  # closes the pipes and waits
                process.kill()

    def run(self, *arguments: str, script: str = "marl", **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def log(self) -> list[str]:
        """What the stand-ins were asked to do: `venv`, `pip`."""
        path = self.fake / "log"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(repository, tmp_path)
    yield made
    made.close()
