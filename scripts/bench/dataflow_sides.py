"""Environments and processes of the sides that `dataflow` compares."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dataflow_cases import Side

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_LIMIT_S, ANSWER_LIMIT_S = 300.0, 180.0  # for a side to be ready; to answer, beyond the window asked for
OUR_EXTRAS = "reference,atari"
OUR_PACKAGES = {"cartpole": "gymnasium", "spread": "mpe2", "atari": "ale_py"}
QUIET = {"PYTHONWARNINGS": "ignore", "SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
PEERS_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # with more, torch's threads wait for each other at every small operation
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "120",
}
HERTZ = os.sysconf("SC_CLK_TCK")


class SideError(Exception):
    """A side that could not be built, ended, or did not answer."""


# ---- environments --------------------------------------------------------------------------------------------------


def python_of(environment: str, task: str) -> str:
    """The interpreter of a side's environment, which is made on first use.

    Raises: SideError if it cannot be made.
    """
    if environment == "ours":
        return _our_python(OUR_PACKAGES.get(task, "jax"))
    requirements = HERE / "requirements" / f"{environment}.txt"
    return _made(ROOT / f".venv-bench-{environment}", ["-r", str(requirements)], requirements.read_text())


def _our_python(package: str) -> str:
    """`.venv` (made by scripts/marl) or this interpreter if it has what the task needs, else one of our own."""
    for python in (str(ROOT / ".venv" / "bin" / "python"), sys.executable):
        probe = [python, "-c", f"import flax, jax, optax, pydantic, {package}"]
        if Path(python).exists() and not subprocess.run(probe, capture_output=True, check=False).returncode:
            return python
    constraints = ROOT / "constraints" / f"py3{sys.version_info.minor}.txt"
    if not constraints.exists():
        raise SideError("Python 3.11 or 3.12 is needed")
    install = ["-c", str(constraints), "-e", f"{ROOT}[{OUR_EXTRAS}]"]
    return _made(ROOT / ".venv-bench-ours", install, OUR_EXTRAS)


def _made(folder: Path, install: list[str], stamp: str) -> str:
    """The interpreter of an environment; made anew unless it was finished (the stamp is written last) from `stamp`."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.read_text() != stamp:
        sys.stderr.write(f"dataflow: making {folder.name} (once, minutes)\n")
        log = folder.with_suffix(".log")
        shutil.rmtree(folder, ignore_errors=True)
        with log.open("w") as file:
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(python), "-m", "pip", "install", "--quiet", *install],
            ):
                if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
                    raise SideError(f"{folder.name} cannot be made: see {log}")
        log.unlink()
        ready.write_text(stamp)
    return str(python)


# ---- processes -----------------------------------------------------------------------------------------------------


class Process:
    """A side's process: ready when made, then idle but for the windows it is asked for.

    Raises: SideError if it cannot start, ends or does not answer in time.
    """

    def __init__(self, side: Side, log: Path, **more: Any) -> None:
        self.side = side
        python = python_of(side.environment, side.setting.get("task", ""))
        environment = {**os.environ, **QUIET}
        if side.environment == "ours":
            environment |= {"JAX_PLATFORMS": "cpu"}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        else:
            environment |= PEERS_ENVIRONMENT
            environment.pop("PYTHONPATH", None)
        self.log, self.broken = log, False
        began = time.perf_counter()
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", str(HERE / side.program), json.dumps(side.setting | more)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        try:
            self.about = self._read(START_LIMIT_S)
        except SideError:
            self.close()
            raise
        self.start_s = round(time.perf_counter() - began, 1)

    def _read(self, limit_s: float) -> dict[str, Any]:
        """The next line of its stdout; lines that are no JSON object are passed over."""
        pipe, text = self.process.stdout, b""
        deadline = time.monotonic() + limit_s
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.broken = True  # a late answer would be taken for that of the next question
                raise SideError(f"{self.side.name} did not answer in {limit_s:.0f} s; its output: {self.log}")
            byte = os.read(pipe.fileno(), 1)
            if not byte:
                self.broken = True
                raise SideError(f"{self.side.name} ended with {self.process.wait()}; its output: {self.log}")
            text += byte
            if text.endswith(b"\n") and not text.startswith(b"{"):
                text = b""
        answer: dict[str, Any] = json.loads(text)
        return answer

    def ask(self, request: dict[str, float]) -> dict[str, Any]:
        """Its answer, with `rate`, `cores` (processor seconds of its processes a second) and `others` (share of the
        machine that all other processes used)."""
        began, tree, machine = time.perf_counter(), tree_ticks(self.process.pid), machine_ticks()
        self.process.stdin.write(f"{json.dumps(request)}\n".encode())
        self.process.stdin.flush()
        answer = self._read(max(request.values()) + ANSWER_LIMIT_S)
        elapsed = time.perf_counter() - began
        used, after = tree_ticks(self.process.pid) - tree, machine_ticks()
        if not answer.get("seconds"):
            raise SideError(f"{self.side.name} measured nothing; its output: {self.log}")
        answer["rate"] = answer["env_steps"] / answer["seconds"]
        answer["cores"] = round(used / HERTZ / elapsed, 2)
        answer["others"] = round(max(0.0, (after[0] - machine[0] - used) / max(1, after[1] - machine[1])), 2)
        return answer

    def close(self) -> None:
        """End it: by closing its stdin, then by force."""
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its group, which may outlive it
        self.process.wait()
        self.process.stdout.close()


def tree_ticks(root: int) -> int:
    """Processor ticks of a process and its living descendants."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
            ticks[int(name)] = int(fields[11]) + int(fields[12])
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        total += ticks.get(process, 0)
        todo += children.get(process, [])
    return total


def machine_ticks() -> tuple[int, int]:
    """Busy and all processor ticks of the machine since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)
