"""From a plan with a search in it to the crew that plays its individuals, whatever the placement."""

from __future__ import annotations

from typing import Any

import jax

from marl.core.evolution import evolves
from marl.core.host_group import FaultPolicy
from marl.dataflow.groups import GroupHandle, InlineGroup, RemoteGroup, WorkerProcess
from marl.dataflow.population import PopulationRun
from marl.dataflow.population_crew import Crew, LocalCrew
from marl.dataflow.population_evaluators import LANES_TIMES, HostEvaluator, JaxEvaluator
from marl.dataflow.population_shell import EvaluatorJob
from marl.runner.build import blueprint, device, frozen_params, learner_devices
from marl.runner.plan import Plan
from marl.runner.schema import DecoupledConfig, ExperimentConfig, FusedConfig, LocalConfig, RayConfig

# What the dataflow of a search cannot be asked for, and what it must be instead.
MEANINGLESS: dict[str, Any] = {
    "max_staleness": 0,
    "gradients": "batch",
    "inference": "inline",
    "learners": 1,
    "gpus_per_learner": 0.0,
    "gpus_per_server": 0.0,
}


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
    if dataflow.kind == "rllib":
        text = f"RLlib does not train the population of '{name}'; expected fused, local or ray"
        raise source.error(("dataflow", "kind"), text)
    for key, plain in MEANINGLESS.items():
        given = getattr(dataflow, key, plain)
        if given not in (plain, "auto"):
            text = f"{given} means nothing to the population of '{name}'; expected {plain}"
            raise source.error(("dataflow", key), text)
    if isinstance(dataflow, LocalConfig):
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
    """How many groups of lanes, which say how large a task is: as configured; `auto`: one without processes, else the
    least multiple of their number from 4 on, so that 1, 2 and 4 processes play the same tasks.

    Raises: ConfigError if the processes cannot share the lanes evenly.
    """
    own = config.dataflow
    assert isinstance(own, DecoupledConfig)
    if own.slots != "auto":
        return own.slots
    count = own.processes
    fitting = [n for n in (count * max(1, -(-4 // count)), count) if own.num_envs % n == 0] if count else [1]
    if not fitting:
        text = f"{count} processes cannot share {own.num_envs} lanes evenly; expected num_envs a multiple"
        raise config.source.error(("dataflow", own.processes_key), text)
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
        task_size=config.dataflow.num_envs // parts * (LANES_TIMES if plan.host is not None else 1),
        num_envs=config.dataflow.num_envs,
        generations=found["updates_per_dispatch"],
        max_steps=plan.env.max_steps,
        devices=devices,
    )


def _fixed(plan: Plan, name: str) -> dict[str, Any]:
    """Parameters of the policies that are not searched for."""
    frozen = frozen_params(plan)
    return {other: frozen.get(other, ()) for other in plan.policies if other != name}


def _crew(config: ExperimentConfig, plan: Plan, name: str, parts: int) -> tuple[Crew, list[jax.Device]]:
    """Evaluators for `parts` groups of lanes, and the devices that they use in this process."""
    dataflow, fixed = config.dataflow, _fixed(plan, name)
    lanes = dataflow.num_envs // parts
    if isinstance(dataflow, RayConfig):
        return _ray_crew(config, name, lanes), jax.devices()[:1]
    if plan.host is None:
        devices = learner_devices(config) if isinstance(dataflow, FusedConfig) else device(config, "actors")[:1]
        places = [devices[index % len(devices)] for index in range(parts)]
        return LocalCrew([JaxEvaluator(plan.jax_env, plan.policies, name, fixed, place) for place in places]), devices
    assert isinstance(dataflow, LocalConfig)
    faults, host = FaultPolicy(*_faults(dataflow)), plan.host
    place = device(config, "inference")[0]
    workers: list[WorkerProcess] = []
    handles: list[GroupHandle] = []
    for worker in range(dataflow.workers):
        own = list(range(worker, parts, dataflow.workers))
        workers.append(WorkerProcess(host.factory, host.spec, lanes, own, faults))
        handles += [RemoteGroup(workers[-1], slot) for slot in own]
    if not workers:
        handles.append(InlineGroup(host.factory, host.spec, lanes, faults))
    evaluators = [HostEvaluator(host, plan.policies, name, fixed, handle, place) for handle in handles]
    return LocalCrew(evaluators, workers), [place]


def _faults(dataflow: DecoupledConfig) -> tuple[float, int, float]:
    own = dataflow.world_faults
    return own.share, own.grace, own.timeout


def _ray_crew(config: ExperimentConfig, name: str, lanes: int) -> Crew:
    """Evaluators on the cluster that the config names, or on one that begins here and ends with the run."""
    from marl.dataflow.ray_crew import ProcessOptions
    from marl.dataflow.ray_session import Session, SessionOptions

    own = config.dataflow
    assert isinstance(own, RayConfig)
    cpus = own.actors * own.cpus_per_actor + 1
    session = Session(SessionOptions(own.address, cpus, own.object_store * 2**20, own.dashboard))
    try:
        from marl.dataflow.ray_population import RayEvaluatorOptions, RayEvaluators

        recipe = blueprint(config)
        job = EvaluatorJob(name, lanes, _faults(own), recipe.identity())
        process = ProcessOptions(cpus=own.cpus_per_actor)
        options = RayEvaluatorOptions(own.actors, process, call_limit_s=own.actor_timeout, least=own.min_actors)
        return RayEvaluators(recipe, job, options, session.close)
    except BaseException:
        session.close()
        raise
