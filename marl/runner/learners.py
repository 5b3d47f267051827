"""Learners that share every batch: whether a config's batches can be shared, and who shares them in one process."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from marl.core.algorithm import Algorithm
from marl.dataflow.learner_sharded import ShardedLearner
from marl.dataflow.trainer import MakeLearner
from marl.runner.plan import Plan
from marl.runner.schema import DecoupledConfig, ExperimentConfig


def check_learners(config: ExperimentConfig, plan: Plan, asynchronous: bool) -> None:
    """Raises: ConfigError if gradients are applied one by one as they arrive, or the lanes of a batch cannot be split
    evenly over `dataflow.learners`."""
    own = config.dataflow
    assert isinstance(own, DecoupledConfig)
    if own.learners == 1:
        return
    text = ""
    if asynchronous:
        text = "share a batch, and asynchronous gradients are applied one by one; expected gradients: batch"
    elif own.num_envs % own.learners:
        text = f"cannot share batches of {own.num_envs} lanes evenly; expected a divisor of num_envs"
    for name in plan.learners:
        replay = plan.policies[name].needs.replay
        if replay is not None and replay.batch % own.learners:
            text = f"cannot share the {replay.batch} rollouts that '{name}' draws at once evenly; expected a divisor"
    if text:
        raise config.source.error(("dataflow", "learners"), f"{own.learners} learners {text}")


def on_devices(config: ExperimentConfig, plan: Plan, devices: Sequence[jax.Device]) -> MakeLearner | None:
    """Makes learners on as many of these devices as `dataflow.learners` says; None for one.

    Raises: ConfigError if there are fewer.
    """
    own = config.dataflow
    assert isinstance(own, DecoupledConfig)
    if own.learners == 1:
        return None
    if own.learners > len(devices):
        text = f"{own.learners} devices are asked for; expected at most the {len(devices)} that JAX sees"
        raise config.source.error(("dataflow", "learners"), text)

    def make(name: str, algorithm: Algorithm) -> ShardedLearner:
        del algorithm  # it averages over no mesh axis

        def on_axis(axis: str) -> Algorithm:
            policy: Algorithm = plan.with_axis(axis).policies[name]  # type: ignore[assignment]
            return policy

        return ShardedLearner(name, on_axis, devices[: own.learners])

    return make
