"""From a plan to the parts that run it. Every `auto` is decided here, from sizes alone, so that a config repeats."""

from __future__ import annotations

import math
import os
import sys
from typing import TypeAlias

import jax
import jax.numpy as jnp

from marl.core.errors import ConfigError, UserError
from marl.core.host_group import FaultPolicy
from marl.core.types import Tree
from marl.dataflow.fused import Fused
from marl.dataflow.local import Local, LocalOptions
from marl.dataflow.parts import Blueprint
from marl.dataflow.population import PopulationRun
from marl.dataflow.ray_crew import ProcessOptions
from marl.dataflow.ray_placement import RayPlacement
from marl.dataflow.ray_run import RayOptions
from marl.dataflow.ray_session import SessionOptions
from marl.dataflow.stage import common_rollout
from marl.evaluate.host import HostEpisodePlayer, HostEvaluator
from marl.evaluate.protocol import EpisodePlayer, Evaluator
from marl.io.checkpoint import load_arrays
from marl.runner.learners import check_learners, on_devices
from marl.runner.memory import check_memory, check_object_store
from marl.runner.plan import Plan
from marl.runner.rllib import RllibRun, build_rllib, check_trained_by
from marl.runner.schema import DecoupledConfig, ExperimentConfig, FusedConfig, LocalConfig, RayConfig, RllibConfig

ROWS_PER_DISPATCH = (
    16_384  # over all seeds: long enough to hide the host, short enough to show progress and react to signals
)
HOST_ROWS_PER_DISPATCH = 4096  # the same for worlds in Python, which are slower by far
DEFAULT_CHECKPOINT_EVERY = 1_000_000  # env steps, for runs without a step budget


def device(config: ExperimentConfig, part: str) -> list[jax.Device]:
    """The devices that `dataflow.devices.<part>` can mean, at least one.

    Raises: ConfigError if there is none on this machine.
    """
    wanted = getattr(config.dataflow.devices, part)
    kind, _, number = wanted.partition(":")
    have = ", ".join(f"{d.platform}:{d.id}" for d in jax.devices())
    try:
        devices: list[jax.Device] = jax.devices() if kind == "auto" else jax.devices(kind)
        return [devices[int(number)]] if number else devices
    except (RuntimeError, IndexError) as error:
        text = f"device '{wanted}' is not on this machine; expected auto or one that JAX sees: {have}"
        raise config.source.error(("dataflow", "devices", part), text) from error


def learner_devices(config: ExperimentConfig) -> list[jax.Device]:
    """The devices the lanes of a fused run are split over.

    Raises: ConfigError if the platform or that many devices are absent.
    """
    assert isinstance(config.dataflow, FusedConfig)
    devices = device(config, "learner")
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
    if isinstance(config.dataflow, DecoupledConfig) and asynchronous(config, plan):
        rows //= slots(config, plan)
    limits = [(ROWS_PER_DISPATCH if plan.host is None else HOST_ROWS_PER_DISPATCH) // len(config.seed_list)]
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
    check_trained_by(config, plan)
    if plan.population is not None:
        from marl.runner.populations import resolve_population

        found = resolve_population(config, plan, plan.population)
        return config.model_copy(update={"dataflow": config.dataflow.model_copy(update=found)})
    if isinstance(config.dataflow, RllibConfig):
        return config
    found = {"updates_per_dispatch": updates_per_dispatch(config, plan)}
    if isinstance(config.dataflow, FusedConfig):
        found["data_parallel"] = len(learner_devices(config))
    else:
        check_local(config, plan)
        if isinstance(config.dataflow, RayConfig):
            check_ray(config, plan)
        local = config.dataflow
        phase = local.random_phase
        found["slots"] = slots(config, plan)
        found["gradients"] = "asynchronous" if asynchronous(config, plan) else "batch"
        found["random_phase"] = phase if phase != "auto" else plan.host is not None and local.max_staleness > 0
    return config.model_copy(update={"dataflow": config.dataflow.model_copy(update=found)})


def check_local(config: ExperimentConfig, plan: Plan) -> None:
    """What can be known of a local run before it begins.

    Raises: ConfigError if a device is absent, a learner cannot stand data as stale as `dataflow.max_staleness` lets it
    be, the learners' rollouts differ, a batch cannot be split over the learners, or the rollouts do not fit into the
    memory that is free.
    """
    local = config.dataflow
    assert isinstance(local, DecoupledConfig)
    check_learners(config, plan, asynchronous(config, plan))
    if plan.host is not None and local.devices.actors.partition(":")[0] not in ("auto", "cpu"):
        text = f"'{local.devices.actors}' is asked for, but worlds in Python run on the CPU; expected auto or cpu"
        raise config.source.error(("dataflow", "devices", "actors"), text)
    for part in ("actors", "inference", "learner"):
        device(config, part)
    for name in plan.learners:
        stands = plan.policies[name].needs.max_staleness
        if local.max_staleness > stands and not asynchronous(config, plan):
            text = (
                f"'{name}' learns from data at most {stands} versions old, got {local.max_staleness}; "
                "expected less, or agents with correction: vtrace"
            )
            raise config.source.error(("dataflow", "max_staleness"), text)
    try:
        common_rollout({name: plan.policies[name] for name in plan.learners})
    except ConfigError as error:
        raise config.source.error(("agents",), str(error)) from error
    check_memory(config, plan)


def slots(config: ExperimentConfig, plan: Plan) -> int:
    """How many groups of lanes: as configured; `auto`: two a process that steps worlds, so that one moves while the
    other one's actions are inferred; without processes one (a small network answers sooner than a call of its own
    costs), or where each is a worker with gradients of its own up to four.

    Raises: ConfigError if the processes cannot share the lanes evenly.
    """
    local = config.dataflow
    assert isinstance(local, DecoupledConfig)
    if local.slots != "auto":
        return local.slots
    wanted = [4, 2, 1] if asynchronous(config, plan) else [1]
    if local.processes:
        # An actor of its own infers and steps by turns, and one call serves all its lanes.
        wanted = [2 * local.processes, local.processes] if isinstance(local, LocalConfig) else [local.processes]
    if isinstance(local, RayConfig) and local.inference == "served":
        wanted = [2 * local.processes, local.processes]  # one moves while the other one's actions are inferred
    fitting = [count for count in wanted if local.num_envs % count == 0]
    if not fitting:
        text = f"{local.processes} processes cannot share {local.num_envs} lanes evenly; expected num_envs a multiple"
        raise config.source.error(("dataflow", local.processes_key), text)
    return fitting[0]


def asynchronous(config: ExperimentConfig, plan: Plan) -> bool:
    """Whether gradients are applied as they arrive: as configured; `auto`: where every learner gives gradients.

    Raises: ConfigError if it is asked for and a learner has no gradients to give.
    """
    local = config.dataflow
    assert isinstance(local, DecoupledConfig)
    able = [name for name in plan.learners if plan.policies[name].needs.gradients]
    if local.gradients == "asynchronous" and len(able) < len(plan.learners):
        other = next(name for name in plan.learners if name not in able)
        text = f"'{other}' gives no gradients; expected batch, or an algorithm that does, such as a3c"
        raise config.source.error(("dataflow", "gradients"), text)
    return local.gradients == "asynchronous" or (local.gradients == "auto" and len(able) == len(plan.learners) > 0)


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
    """The fused dataflow of a resolved config.

    Raises: ConfigError if a learner needs what only the decoupled dataflow has.
    """
    for name in plan.learners:
        if plan.policies[name].needs.replay is not None:
            text = f"'{name}' learns from replay, which dataflow.kind fused does not have yet; expected local"
            raise config.source.error(("dataflow", "kind"), text)
    devices = learner_devices(config)
    if len(devices) > 1:
        from marl.dataflow.fused import MESH_AXIS

        plan = plan.with_axis(MESH_AXIS)
    return Fused(
        plan.jax_env,
        plan.policies,
        plan.learners,
        frozen_params(plan),
        num_envs=config.dataflow.num_envs,
        seeds=config.seed_list,
        updates_per_dispatch=updates_per_dispatch(config, plan),
        devices=devices,
    )


def build_local(config: ExperimentConfig, plan: Plan) -> Local:
    """The local dataflow of a resolved config. Raises: ConfigError as `check_local`."""
    check_local(config, plan)
    local = config.dataflow
    assert isinstance(local, LocalConfig)
    is_asynchronous = asynchronous(config, plan)
    faults = local.world_faults
    options = LocalOptions(
        num_envs=local.num_envs,
        slots=slots(config, plan),
        workers=local.workers if plan.host is not None else 0,
        max_staleness=None if is_asynchronous else local.max_staleness,
        asynchronous=is_asynchronous,
        random_phase=bool(local.random_phase) and local.random_phase != "auto",
        updates_per_dispatch=updates_per_dispatch(config, plan),
        faults=FaultPolicy(faults.share, faults.grace, faults.timeout),
        make_learner=on_devices(config, plan, device(config, "learner")),
        **_devices(config),
    )
    worlds = plan.jax_env if plan.host is None else plan.host
    return Local(worlds, plan.policies, plan.learners, frozen_params(plan), options, config.seed_list)


def _devices(config: ExperimentConfig) -> dict[str, jax.Device]:
    """By part of a local run its device; none where all are left to JAX, so that nothing is moved about.

    One that is left open beside another that is not must be JAX's default device, not wherever its input comes from.
    """
    parts = ("actors", "inference", "learner")
    if all(getattr(config.dataflow.devices, part) == "auto" for part in parts):
        return {}
    return {part: device(config, part)[0] for part in parts}


def check_ray(config: ExperimentConfig, plan: Plan) -> None:
    """What can be known of a run on Ray before it begins, beside `check_local`.

    Raises: ConfigError if it has several seeds, or the chunks under way would fill the object store.
    """
    ray = config.dataflow
    assert isinstance(ray, RayConfig)
    source = config.source
    if len(config.seed_list) > 1:
        text = f"dataflow.kind ray trains one seed a run, got {len(config.seed_list)}; expected one, or marl sweep"
        raise source.error(("seeds",), text)
    if ray.gpus_per_learner and ray.gpus_per_learner < ray.learners:
        text = f"{ray.learners} learners with {ray.gpus_per_learner:g} GPUs; expected a GPU each"
        raise source.error(("dataflow", "gpus_per_learner"), text)
    if ray.inference == "served" and plan.host is None:
        text = "served inference is for worlds in Python; a world in JAX infers where it runs: expected inline"
        raise source.error(("dataflow", "inference"), text)
    if ray.address is None:
        check_object_store(config, plan)


def blueprint(config: ExperimentConfig) -> Blueprint:
    """How any process of a run on Ray makes its parts: from the same config, and in the same folder if it has it, as a
    config may name files and modules of the folder where it was run."""
    assert isinstance(config.dataflow, RayConfig)
    path = () if config.dataflow.address else tuple(sys.path)
    arguments = {"config": config.model_dump(mode="json"), "folder": os.getcwd()}
    return Blueprint("marl.runner.parts:make_parts", arguments, path)


def build_ray(config: ExperimentConfig, plan: Plan) -> RayPlacement:
    """The dataflow on Ray of a resolved config; its processes are not started yet.

    Raises: ConfigError as `check_local` and `check_ray`; UserError if the cluster cannot be joined.
    """
    check_local(config, plan)
    check_ray(config, plan)
    ray = config.dataflow
    assert isinstance(ray, RayConfig)
    is_asynchronous = asynchronous(config, plan)
    faults = ray.world_faults
    servers = ray.servers if ray.inference == "served" else 0
    options = RayOptions(
        num_envs=ray.num_envs,
        slots=slots(config, plan),
        actors=ray.actors,
        max_staleness=ray.max_staleness,
        asynchronous=is_asynchronous,
        random_phase=bool(ray.random_phase) and ray.random_phase != "auto",
        updates_per_dispatch=updates_per_dispatch(config, plan),
        min_actors=ray.min_actors,
        learners=ray.learners,
        learner_processes=ray.learner_processes,
        servers=servers,
        faults=(faults.share, faults.grace, faults.timeout),
        call_limit_s=ray.actor_timeout,
        actor=ProcessOptions(cpus=ray.cpus_per_actor),
        learner=ProcessOptions(
            gpus=ray.gpus_per_learner / ray.learner_processes,
            memory_fraction=ray.memory_fraction,
            host_devices=1 if ray.gpus_per_learner else ray.learners // ray.learner_processes,
        ),
        server=ProcessOptions(gpus=ray.gpus_per_server, memory_fraction=ray.memory_fraction),
    )
    session = SessionOptions(
        address=ray.address,
        cpus=ray.actors * ray.cpus_per_actor + ray.learner_processes + servers,
        object_store_bytes=ray.object_store * 2**20,
        dashboard=ray.dashboard,
    )
    length = common_rollout({name: plan.policies[name] for name in plan.learners})
    fixed = frozen_params(plan)
    not_learning = {name: fixed.get(name, ()) for name in plan.policies if name not in plan.learners}
    return RayPlacement(blueprint(config), plan.learners, not_learning, options, session, config.seed_list[0], length)


def build_dataflow(config: ExperimentConfig, plan: Plan) -> Fused | Local | PopulationRun | RllibRun | RayPlacement:
    """The dataflow of a resolved config. Raises: ConfigError as `build_fused`, `build_local`, `build_population`."""
    if plan.population is not None:
        from marl.runner.populations import build_population

        return build_population(config, plan, plan.population)
    if isinstance(config.dataflow, RllibConfig):
        return build_rllib(config, plan)
    if isinstance(config.dataflow, RayConfig):
        return build_ray(config, plan)
    return build_fused(config, plan) if isinstance(config.dataflow, FusedConfig) else build_local(config, plan)


AnyEvaluator: TypeAlias = Evaluator | HostEvaluator
AnyPlayer: TypeAlias = EpisodePlayer | HostEpisodePlayer


def build_evaluator(config: ExperimentConfig, plan: Plan, greedy: bool | None = None) -> AnyEvaluator:
    """The evaluator of a config; `greedy` overrides the config's choice."""
    act_greedily = config.evaluate.greedy if greedy is None else greedy
    if plan.host is None:
        return Evaluator(plan.jax_env, plan.policies, greedy=act_greedily)
    assert not isinstance(config.dataflow, FusedConfig)
    own = config.dataflow.world_faults
    faults = FaultPolicy(own.share, own.grace, own.timeout)
    lanes = config.dataflow.num_envs
    return HostEvaluator(plan.host, plan.policies, greedy=act_greedily, faults=faults, lanes=lanes)


def build_player(plan: Plan, greedy: bool) -> AnyPlayer:
    """What films episodes of a plan's world."""
    if plan.host is None:
        return EpisodePlayer(plan.jax_env, plan.policies, greedy=greedy)
    return HostEpisodePlayer(plan.host, plan.policies, greedy=greedy)
