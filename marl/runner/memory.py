"""What a local run with worlds in Python will need, so that too large a one is refused before it is killed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from marl.core.spaces import Dict, ObservationSpace
from marl.runner.plan import Plan
from marl.runner.schema import DecoupledConfig, ExperimentConfig, RayConfig

USABLE = 0.9  # of what is free
ROW_COPIES = 3  # of every rollout: the open one, the one handed over, the batch
STORE_SHARE = 0.4  # of Ray's object store that rollouts may take
FLOAT_COPIES = 3  # of every observation as the learner reads it, f32: inputs, rows of an epoch, activations


def local_bytes(config: ExperimentConfig, plan: Plan) -> int:
    """Bytes for rollouts and batches, an estimate from shapes alone; networks and the worlds themselves come on top."""
    local, host = config.dataflow, plan.host
    if host is None or not isinstance(local, DecoupledConfig):
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


def check_object_store(config: ExperimentConfig, plan: Plan) -> None:
    """Raises: ConfigError if the chunks that may be under way fill more than a part of a run's own object store, which
    would then move them to disk."""
    ray = config.dataflow
    assert isinstance(ray, RayConfig)
    rollout = max((plan.policies[name].needs.rollout for name in plan.learners), default=1)
    roles = [role for name in plan.learners for role in plan.policies[name].roles]
    specs = [spec for spec in plan.env.roles if spec.name in roles]
    row = sum(spec.size * (space_bytes(spec.observation_space) + space_bytes(spec.action_space) + 32) for spec in specs)
    row += sum(space_bytes(spec.state_space) for spec in specs[:1] if spec.state_space is not None)
    batches = 2 + ray.max_staleness  # being filled, held, learned from
    needed, budget = batches * (rollout + 1) * ray.num_envs * row, STORE_SHARE * ray.object_store * 2**20
    if needed > budget:
        text = (
            f"{ray.object_store} MiB; rollouts under way take about {needed / 2**20:.0f} MiB, which may be "
            f"{STORE_SHARE:.0%} of it; expected at least {math.ceil(needed / STORE_SHARE / 2**20)}"
        )
        raise config.source.error(("dataflow", "object_store"), text)


def space_bytes(space: ObservationSpace | None) -> int:
    """Of one value."""
    if space is None:
        return 0
    if isinstance(space, Dict):
        return sum(space_bytes(part) for _, part in space.items)
    return math.prod(space.shape) * np.dtype(space.dtype).itemsize
