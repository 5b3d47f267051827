"""Are all trials of a sweep possible? `python -m marl.runner.trial_check` builds the world and the policies of each.

In a process of its own, on the CPU: whoever starts trials must not itself have taken an accelerator's memory, nor have
the threads of JAX. Imports no Ray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from marl.core.errors import ConfigError, MarlError, RunError
from marl.runner.load import load_experiment
from marl.runner.sweep_grid import Trial


def check_trials(path_or_name: str, trials: Sequence[Trial]) -> None:
    """Raises: ConfigError naming the first trial that cannot be trained, and why."""
    command = [sys.executable, "-m", "marl.runner.trial_check", path_or_name]
    asked = json.dumps([[trial.name, trial.overrides] for trial in trials])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == ConfigError.exit_code:
        raise ConfigError(done.stdout.strip())
    if done.returncode:
        raise RunError(f"the trials could not be checked: {' | '.join(done.stderr.strip().splitlines()[-2:])}")


def main(path_or_name: str) -> int:
    """Check the trials given on standard input; the first error on standard output."""
    from marl.runner.plan import make_plan

    seen: set[str] = set()
    for name, overrides in json.load(sys.stdin):
        config = load_experiment(path_or_name, overrides).config
        what = config.model_dump_json(include={"env", "agents", "dataflow"})
        try:
            if what not in seen and not make_plan(config).learners:
                raise ConfigError("nobody learns in this experiment")
        except MarlError as error:
            sys.stdout.write(f"trial {name}: {error}\n")
            return error.exit_code
        seen.add(what)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
