"""One trial of a sweep as a process of its own: `python -m marl.runner.trial PARENT_PID train CONFIG ...`.

It becomes `marl train` or `marl resume` after asking the kernel for a SIGTERM when the thread that started it is gone,
however that came about, so that no runner outlives its sweep and each still saves its checkpoint. Imports no Ray.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from marl.io.console import error
from marl.runner.sweep_grid import newest_run

_PR_SET_PDEATHSIG = 1
_NOT_FOR_TRIALS = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")  # a trial is no part of the sweep's own cluster


def run_trial(name: str, overrides: Sequence[str], out: Path, environment: Mapping[str, str] | None = None) -> int:
    """Train a trial in a new process, or go on with it; nothing if it is done. Returns the exit code, 1 for a crash.

    Its output goes to `logs/<name>.log`. Asked to stop, it asks the trial to stop and waits for its checkpoint.
    """
    found = newest_run(out / "runs", name)
    if found is not None and found.status == "done":
        return 0
    if found is not None:
        words = ["resume", str(found.path), "--quiet"]
    else:
        words = ["train", str(out / "config.yaml"), *overrides, "--runs-dir", str(out / "runs"), "--quiet"]
    (out / "logs").mkdir(exist_ok=True)
    variables = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_TRIALS}
    variables |= dict(environment or {})
    command = [sys.executable, "-m", "marl.runner.trial", str(os.getpid()), *words]
    with (out / "logs" / f"{name}.log").open("ab") as log:
        # A session of its own: Ctrl-C on the terminal would reach it twice, and a second signal skips the checkpoint.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=variables, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:  # KeyboardInterrupt, or whatever ends the thread
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a job that is stopped has signalled all its processes
                process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return code if code >= 0 else 1


def main(arguments: Sequence[str]) -> int:
    """Tie this process to its parent, then become `marl`."""
    parent, *words = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # stays across exec
    if os.getppid() != int(parent):
        error("the sweep is gone")
        return 1
    os.execv(sys.executable, [sys.executable, "-m", "marl.cli", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
