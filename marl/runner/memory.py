"""What a local run with worlds in Python will need, so that too large a one is refused before it is killed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from marl.runner.plan import Plan
from marl.runner.schema import ExperimentConfig, LocalConfig

USABLE = 0.9  # of what is free
ROW_COPIES = 3  # of every rollout: the open one, the one handed over, the batch
FLOAT_COPIES = 3  # of every observation as the learner reads it, f32: inputs, rows of an epoch, activations


def local_bytes(config: ExperimentConfig, plan: Plan) -> int:
    """Bytes for rollouts and batches, an estimate from shapes alone; networks and the worlds themselves come on top."""
    local, host = config.dataflow, plan.host
    if host is None or not isinstance(local, LocalConfig):
        return 0
    rollout = max((plan.policies[name].needs.rollout for name in plan.learners), default=1)
    rows = (rollout + 1) * local.num_envs
    row_bytes = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in host.spec.step)
    played = {role for name in plan.learners for role in plan.policies[name].roles}
    floats = sum(math.prod(f.shape) for f in host.spec.step if f.path[0] == "obs" and f.path[1] in played)
    each = rows * (row_bytes * (ROW_COPIES + local.max_staleness) + floats * 4 * FLOAT_COPIES)
    return each * len(config.seed_list)


def available_bytes() -> int | None:
    """Memory that programs can still get, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else None


def check_memory(config: ExperimentConfig, plan: Plan) -> None:
    """Raises: ConfigError if the rollouts of a local run do not fit into the memory that is free."""
    needed, free = local_bytes(config, plan), available_bytes()
    if free is None or needed <= USABLE * free:
        return
    rollout = max(plan.policies[name].needs.rollout for name in plan.learners)
    text = (
        f"{config.dataflow.num_envs} lanes with rollouts of {rollout} rows need about {needed / 2**30:.1f} GiB, and "
        f"{free / 2**30:.1f} GiB are free; expected fewer lanes or a shorter rollout"
    )
    raise config.source.error(("dataflow", "num_envs"), text)
