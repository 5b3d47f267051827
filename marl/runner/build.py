"""From a plan to the parts that run it. Every `auto` is decided here, from sizes alone, so that a config repeats."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from marl.core.errors import UserError
from marl.core.types import Tree
from marl.dataflow.fused import Fused
from marl.evaluate.protocol import Evaluator
from marl.io.checkpoint import load_arrays
from marl.runner.plan import Plan
from marl.runner.schema import ExperimentConfig

ROWS_PER_DISPATCH = (
    16_384  # over all seeds: long enough to hide the host, short enough to show progress and react to signals
)
DEFAULT_CHECKPOINT_EVERY = 1_000_000  # env steps, for runs without a step budget


def learner_devices(config: ExperimentConfig) -> list[jax.Device]:
    """The devices the lanes are split over.

    Raises: ConfigError if the platform or that many devices are absent.
    """
    wanted = config.dataflow.devices.learner
    try:
        devices = jax.devices() if wanted == "auto" else jax.devices(wanted)
    except RuntimeError as error:
        have = ", ".join(sorted({d.platform for d in jax.devices()}))
        text = f"device '{wanted}' is not on this machine; expected auto or one that JAX sees: {have}"
        raise config.source.error(("dataflow", "devices", "learner"), text) from error
    asked = config.dataflow.data_parallel
    even = (n for n in range(1, len(devices) + 1) if config.dataflow.num_envs % n == 0)
    count: int = max(even) if asked == "auto" else asked
    if count > len(devices):
        text = f"{count} devices are asked for; expected at most the {len(devices)} that JAX sees"
        raise config.source.error(("dataflow", "data_parallel"), text)
    return devices[:count]


def updates_per_dispatch(config: ExperimentConfig, plan: Plan) -> int:
    """The configured number; `auto`: about ROWS_PER_DISPATCH rows, fewer where the run's own rhythm asks for it."""
    chosen = config.dataflow.updates_per_dispatch
    if chosen != "auto":
        return int(chosen)
    rollout = max((plan.policies[name].needs.rollout for name in plan.learners), default=1)
    rows = rollout * config.dataflow.num_envs
    limits = [ROWS_PER_DISPATCH // len(config.seed_list)]
    limits += [n for n in (config.evaluate.every, config.checkpoint.every) if n]
    if config.stop.env_steps:
        limits.append(math.ceil(config.stop.env_steps / 20))
    return max(1, min(limits) // rows)


def resolved(plan: Plan) -> ExperimentConfig:
    """The plan's config with everything that was left open replaced by what is decided here."""
    config = plan.config
    if config.checkpoint.every is None:
        every = max(1, config.stop.env_steps // 10) if config.stop.env_steps else DEFAULT_CHECKPOINT_EVERY
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": every})})
    dataflow = config.dataflow.model_copy(
        update={
            "updates_per_dispatch": updates_per_dispatch(config, plan),
            "data_parallel": len(learner_devices(config)),
        }
    )
    return config.model_copy(update={"dataflow": dataflow})


def frozen_params(plan: Plan) -> dict[str, Tree]:
    """Parameters of the roles that a `checkpoint:` freezes, by policy name.

    Raises: UserError if the checkpoint has no policy of that name.
    """
    loaded = {}
    for name, path in plan.frozen.items():
        params, _ = load_arrays(path)
        if name not in params and len(params) == 1:
            (params,) = params.values()
        elif name in params:
            params = params[name]
        else:
            raise UserError(f"agents.{name}.checkpoint: {path} holds {', '.join(params)}, not '{name}'")
        loaded[name] = jax.tree.map(jnp.asarray, params)
    return loaded


def build_fused(config: ExperimentConfig, plan: Plan) -> Fused:
    """The fused dataflow of a resolved config."""
    devices = learner_devices(config)
    if len(devices) > 1:
        from marl.dataflow.fused import MESH_AXIS

        plan = plan.with_axis(MESH_AXIS)
    return Fused(
        plan.env,
        plan.policies,
        plan.learners,
        frozen_params(plan),
        num_envs=config.dataflow.num_envs,
        seeds=config.seed_list,
        updates_per_dispatch=updates_per_dispatch(config, plan),
        devices=devices,
    )


def build_evaluator(config: ExperimentConfig, plan: Plan, greedy: bool | None = None) -> Evaluator:
    """The evaluator of a config; `greedy` overrides the config's choice."""
    return Evaluator(plan.env, plan.policies, greedy=config.evaluate.greedy if greedy is None else greedy)
