"""From a plan with a search in it to the crew that plays its individuals, whatever the placement."""

from __future__ import annotations

from typing import Any

import jax

from marl.core.errors import ConfigError
from marl.core.evolution import evolves
from marl.core.host_group import FaultPolicy
from marl.dataflow.groups import GroupHandle, InlineGroup, RemoteGroup, WorkerProcess
from marl.dataflow.population import PopulationRun
from marl.dataflow.population_crew import Crew, LocalCrew
from marl.dataflow.population_evaluators import Evaluator, HostEvaluator, JaxEvaluator
from marl.runner.build import device, frozen_params, learner_devices
from marl.runner.load import config_from
from marl.runner.plan import Plan, make_plan
from marl.runner.schema import ExperimentConfig, FusedConfig, LocalConfig


def check_population(config: ExperimentConfig, plan: Plan, name: str) -> None:
    """What can be known of a search before it begins.

    Raises: ConfigError if somebody else learns beside it, its episodes have no end, or the dataflow is asked for what
    only gradients have.
    """
    source, dataflow = config.source, config.dataflow
    for other in plan.learners:
        if other != name:
            how = "is searched for, too" if evolves(plan.policies[other]) else "learns by gradients"
            text = f"'{other}' {how} beside the population of '{name}'; expected a scripted or frozen policy"
            raise source.error(("agents", other), text)
    if plan.host is None and plan.env.max_steps is None:
        raise source.error(("env",), "a population plays whole episodes; expected a world with max_steps")
    if isinstance(dataflow, LocalConfig):
        for key, plain in (("max_staleness", 0), ("gradients", "batch")):
            given = getattr(dataflow, key)
            if given not in (plain, "auto"):
                text = f"{given} means nothing to the population of '{name}'; expected {plain}"
                raise source.error(("dataflow", key), text)
        for part in ("actors", "inference"):
            device(config, part)


def resolve_population(config: ExperimentConfig, plan: Plan, name: str) -> dict[str, Any]:
    """What the dataflow of a search leaves open, decided. Raises: ConfigError as `check_population`."""
    check_population(config, plan, name)
    dataflow = config.dataflow
    chosen = dataflow.updates_per_dispatch
    found: dict[str, Any] = {"updates_per_dispatch": 1 if chosen == "auto" else chosen}
    if isinstance(dataflow, FusedConfig):
        return found | {"data_parallel": len(learner_devices(config))}
    return found | {"slots": slots(config), "gradients": "batch", "random_phase": False}


def slots(config: ExperimentConfig) -> int:
    """How many groups of lanes, each an evaluator: as configured; `auto`: one without processes, else two a process, so
    that one moves while the other one's actions are inferred.

    Raises: ConfigError if the processes cannot share the lanes evenly.
    """
    local = config.dataflow
    assert isinstance(local, LocalConfig)
    if local.slots != "auto":
        return local.slots
    wanted = [2 * local.workers, local.workers] if local.workers else [1]
    fitting = [count for count in wanted if local.num_envs % count == 0]
    if not fitting:
        text = f"{local.workers} processes cannot share {local.num_envs} lanes evenly; expected num_envs a multiple"
        raise config.source.error(("dataflow", "workers"), text)
    return fitting[0]


def build_population(config: ExperimentConfig, plan: Plan, name: str) -> PopulationRun:
    """The search of a resolved config. Raises: ConfigError as `check_population`."""
    found = resolve_population(config, plan, name)
    parts = found.get("data_parallel") or found.get("slots") or 1
    crew, devices = _crew(config, plan, name, parts)
    return PopulationRun(
        name,
        plan.policies,
        frozen_params(plan),
        crew,
        config.seed_list,
        lanes=config.dataflow.num_envs // parts,
        generations=found["updates_per_dispatch"],
        max_steps=plan.env.max_steps,
        devices=devices,
    )


def make_evaluator(experiment: dict[str, Any], policy: str, lanes: int, faults: list[float]) -> Evaluator:
    """An evaluator of its own for a process of its own, its worlds in the same process.

    experiment: `env` and `agents` of a resolved config, as plain values.  policy: the one that is searched for.
    faults: the fields of `FaultPolicy`.
    """
    plan = make_plan(config_from({**experiment, "name": "evaluator", "stop": {"env_steps": 1}}))
    fixed = _fixed(plan, policy)
    if plan.host is None:
        return JaxEvaluator(plan.jax_env, plan.policies, policy, fixed)
    share, grace, timeout = faults
    handle = InlineGroup(plan.host.factory, plan.host.spec, lanes, FaultPolicy(share, int(grace), timeout))
    return HostEvaluator(plan.host, plan.policies, policy, fixed, handle)


def evaluator_blueprint(config: ExperimentConfig, policy: str, lanes: int, faults: FaultPolicy) -> dict[str, Any]:
    """`function` and `arguments` (JSON) with which any process makes the evaluator of a resolved config."""
    plain = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, section in config.agents.items():
        plain["agents"][key] |= section.options
    experiment = {"env": plain["env"] | config.env.options, "agents": plain["agents"]}
    limits = [faults.share, faults.grace, faults.timeout_s]
    return {
        "function": "marl.runner.populations:make_evaluator",
        "arguments": {"experiment": experiment, "policy": policy, "lanes": lanes, "faults": limits},
    }


def _fixed(plan: Plan, name: str) -> dict[str, Any]:
    """Parameters of the policies that are not searched for."""
    frozen = frozen_params(plan)
    return {other: frozen.get(other, ()) for other in plan.policies if other != name}


def _crew(config: ExperimentConfig, plan: Plan, name: str, parts: int) -> tuple[Crew, list[jax.Device]]:
    """Evaluators in this process for `parts` groups of lanes, and the devices that they use."""
    others = _fixed(plan, name)
    if plan.host is None:
        devices = learner_devices(config) if isinstance(config.dataflow, FusedConfig) else device(config, "actors")[:1]
        places = [devices[index % len(devices)] for index in range(parts)]
        return LocalCrew([JaxEvaluator(plan.jax_env, plan.policies, name, others, place) for place in places]), devices
    local = config.dataflow
    if not isinstance(local, LocalConfig):
        raise ConfigError(f"dataflow.kind {local.kind} cannot play {config.env.id} for a population; expected local")
    faults = FaultPolicy(local.world_faults.share, local.world_faults.grace, local.world_faults.timeout)
    lanes, host = local.num_envs // parts, plan.host
    handles: list[GroupHandle] = []
    workers: list[WorkerProcess] = []
    for worker in range(local.workers):
        own = list(range(worker, parts, local.workers))
        workers.append(WorkerProcess(host.factory, host.spec, lanes, own, faults))
        handles += [RemoteGroup(workers[-1], slot) for slot in own]
    if not workers:
        handles += [InlineGroup(host.factory, host.spec, lanes, faults) for _ in range(parts)]
    place = device(config, "inference")[0]
    evaluators = [HostEvaluator(host, plan.policies, name, others, handle, place) for handle in handles]
    return LocalCrew(evaluators, workers), [place]
