"""The parts of a run from its resolved config, in any process of a cluster."""

from __future__ import annotations

import os
from typing import Any

from marl.core.algorithm import Algorithm
from marl.dataflow.parts import Parts
from marl.runner.build import frozen_params
from marl.runner.load import config_from
from marl.runner.plan import make_plan


def make_parts(config: dict[str, Any], folder: str = "") -> Parts:
    """config: an ExperimentConfig's values in JSON form.  folder: where to work from now on, if there is such a folder
    here.

    Raises: ConfigError if it means nothing in this process."""
    if os.path.isdir(folder):
        os.chdir(folder)
    plan = make_plan(config_from(config))

    def on_axis(name: str, axis: str) -> Algorithm:
        policy: Any = plan.with_axis(axis).policies[name]
        return policy  # type: ignore[no-any-return]

    worlds = plan.jax_env if plan.host is None else plan.host
    return Parts(worlds, plan.policies, plan.learners, frozen_params(plan), on_axis)
