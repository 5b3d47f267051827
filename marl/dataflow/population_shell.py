"""What a process of a cluster holds that evaluates individuals: a shell around a plain `Evaluator`.

Nothing here imports Ray; calls bring and give back plain values and arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from marl.core.algorithm import Policy
from marl.core.env import AnyEnvironment
from marl.core.evolution import Shared
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.types import EpisodeResult, Tree
from marl.dataflow.groups import InlineGroup
from marl.dataflow.parts import Blueprint
from marl.dataflow.population_evaluators import Evaluator, HostEvaluator, JaxEvaluator, evaluate
from marl.dataflow.population_tasks import Task
from marl.dataflow.shells import about

Sent = tuple[int, int, int, Any, Any]  # a task: index, count, episodes, offspring, keys


@dataclasses.dataclass(frozen=True)
class EvaluatorJob:
    """What an evaluator is told when it is made; plain values. policy: the one that is searched for.  lanes: side by
    side, of worlds in Python.  identity: of the blueprint, as the driver sees it."""

    policy: str
    lanes: int
    faults: tuple[float, int, float]
    identity: str


def make_evaluator(
    worlds: AnyEnvironment | HostWorlds,
    policies: Mapping[str, Policy],
    name: str,
    fixed: Mapping[str, Tree],
    lanes: int,
    faults: FaultPolicy,
) -> Evaluator:
    """An evaluator whose worlds are stepped in this process."""
    if not isinstance(worlds, HostWorlds):
        return JaxEvaluator(worlds, policies, name, fixed)
    handle = InlineGroup(worlds.factory, worlds.spec, lanes, faults)
    return HostEvaluator(worlds, policies, name, fixed, handle)


class EvaluatorShell:
    """An evaluator in a process of its own. Nothing is made before `start`, so that what goes wrong is told there."""

    def __init__(self, blueprint: Blueprint, job: EvaluatorJob) -> None:
        self.blueprint, self.job = blueprint, job
        self._version: int | None = None
        self._shared: Shared = None

    def start(self) -> dict[str, Any]:
        """Make the evaluator. Returns what process this is.

        Raises: RunError if the process runs other code than the driver; WorldError if the worlds cannot be made.
        """
        self.blueprint.check(self.job.identity)
        parts, own = self.blueprint.make(), self.job
        fixed = {name: parts.fixed.get(name, ()) for name in parts.policies if name != own.policy}
        self.evaluator = make_evaluator(
            parts.worlds, parts.policies, own.policy, fixed, own.lanes, FaultPolicy(*own.faults)
        )
        return about()

    def evaluate(self, version: int, shared: Shared, sent: Sent) -> dict[str, Any]:
        """The results of a task. version: of what is shared, which is brought to the device once."""
        if version != self._version:
            self._version, self._shared = version, jax.device_put(shared)
        result = evaluate(self.evaluator, self._shared, Task(*sent))
        plain = {name: getattr(result, name) for name in ("returns", "length", "agent_steps", "info")}
        return {**plain, "faults": self.evaluator.new_faults()}


def to_send(task: Task) -> Sent:
    """A task as plain values and arrays."""
    return task.index, task.count, task.episodes, task.offspring, task.keys


def received(answer: Mapping[str, Any]) -> EpisodeResult:
    """The result in an answer of `EvaluatorShell.evaluate`."""
    return EpisodeResult(answer["returns"], answer["length"], answer["agent_steps"], answer["info"])
