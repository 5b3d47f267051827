"""One trial of a sweep as a process of its own, which ends with a checkpoint when its sweep ends, however that comes.

`python -m marl.runner.trial train CONFIG ...` leaves a watcher behind that runs `marl train` and reads its standard
input. The end of that input, which the kernel brings about when the sweep is gone, is a SIGTERM for the runner. The
watcher is nobody's child: a Ray worker that ends kills its children outright, and a runner would lose its checkpoint.
Imports no Ray.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from marl.runner.sweep_grid import newest_run

_NOT_FOR_TRIALS = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")  # a trial is no part of the sweep's own cluster
_LOOK_EVERY_S = 0.2


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
    command, pipe = [sys.executable, "-m", "marl.runner.trial", *words], subprocess.PIPE
    with (out / "logs" / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=variables)
    assert started.stdin is not None
    assert started.stdout is not None
    with started:
        try:
            answer = started.stdout.read()
        except BaseException:  # KeyboardInterrupt, say
            started.stdin.close()
            started.stdout.read()
            raise
    return int(answer) if answer.strip().lstrip(b"-").isdigit() and int(answer) >= 0 else 1


def main(words: Sequence[str]) -> int:
    """Become the watcher of one runner; writes its exit code to standard output."""
    if os.fork():
        return 0
    os.setsid()  # Ctrl-C on the terminal is for the sweep, which tells us
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # unlike SIG_IGN not inherited by the runner
    command = [sys.executable, "-m", "marl.cli", *words]
    runner = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr)
    while runner.poll() is None:
        if select.select([0], [], [], _LOOK_EVERY_S)[0] and not os.read(0, 1):
            runner.send_signal(signal.SIGTERM)
            runner.wait()
    with contextlib.suppress(BrokenPipeError):  # the sweep is gone
        os.write(1, str(runner.returncode).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
