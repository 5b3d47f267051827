"""`marl bench`: our own env steps per second, and where the time of a training run goes."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from marl import envs
from marl.agents.scripted.policies import Random
from marl.core.algorithm import Policy
from marl.core.collect import collect, init_lanes
from marl.core.env import AnyEnvironment
from marl.core.errors import ConfigError
from marl.core.host import HostFactory
from marl.core.host_rows import HostWorlds
from marl.core.prng import stream
from marl.core.types import Tree
from marl.io.console import next_commands, say
from marl.io.jsonl import JsonlSink, read_rows
from marl.io.metrics import Sinks
from marl.io.tensorboard import TensorBoardSink
from marl.runner.bench_local import dispatcher, host_stepper, nothing_learned, shares
from marl.runner.build import build_dataflow, build_fused, build_local, resolved
from marl.runner.listing import table
from marl.runner.load import load_experiment, resolved_yaml
from marl.runner.loop import TrainingLoop
from marl.runner.origin import code_commit, machine
from marl.runner.plan import WORLD_FACTORY, Plan, make_plan
from marl.runner.progress import Progress
from marl.runner.schema import HOST_WORLDS, ExperimentConfig
from marl.runner.train import set_up_jax

REPEATS = 5
WINDOW_S = 2.0
ENV_LANES, ENV_ROWS = 64, 64


def bench(what: str, *, as_json: bool = False) -> int:
    """Measure a world (uniform random actions) or an experiment, print a table or one JSON object.

    Every figure is the median of REPEATS windows with its spread; compile time is left out and said apart.
    Raises: UserError if there is no such world or experiment.
    """
    id = what
    if what.partition(":")[0].endswith(".py"):
        from marl.interop.worlds import in_file

        id = in_file(what)
    if id.startswith(HOST_WORLDS):
        result = _bench_host_world(id)
    elif id in envs.REGISTRY.names() or (":" in id and not Path(id).is_file()):
        result = _bench_env(envs.REGISTRY.resolve(id)())
    else:
        result = _bench_experiment(what)
    result = {"what": what, **result, "machine": machine(), "load": os.getloadavg()[0], "commit": code_commit()}
    if as_json:
        say(json.dumps(result, indent=2))
        return 0
    rows = [
        {"measure": name, **values}
        for name, values in result.items()
        if isinstance(values, dict) and "median" in values
    ]
    say(table(rows))
    if "shares" in result:
        say("shares of wall time: " + ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items()))
    say(f"{result['setting']}; {REPEATS} windows; load {result['load']:.1f} on {result['machine']['cores']} cores")
    next_commands([f"marl bench {what} --json"])
    return 0


def windows(step: Callable[[], int], repeats: int = REPEATS) -> list[float]:
    """`step` (which says how many env steps it did) repeated for WINDOW_S, `repeats` times: env steps per second."""
    step()
    rates = []
    for _ in range(repeats):
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < WINDOW_S:
            done += step()
        rates.append(done / elapsed)
    return rates


def spread(rates: list[float]) -> dict[str, float]:
    """Median, smallest and largest of some rates."""
    return {"median": round(statistics.median(rates), 1), "min": round(min(rates), 1), "max": round(max(rates), 1)}


def collector(
    env: AnyEnvironment, policies: dict[str, Policy], params: dict[str, Tree], lanes_count: int, rows: int
) -> Callable[[], int]:
    """A function that steps lanes for `rows` rows and returns how many env steps that were."""
    keys = jax.random.split(stream(0, "bench"), lanes_count)
    lanes = jax.jit(lambda p, k: init_lanes(env, policies, p, k))(params, keys)

    def run(params: dict[str, Tree], lanes: Any) -> Any:
        after, rollout = collect(env, policies, params, lanes, rows)
        return after, (~rollout.step.last[:-1]).sum()

    compiled = jax.jit(run, donate_argnums=1)

    def step() -> int:
        nonlocal lanes
        lanes, done = compiled(params, lanes)
        return int(done)

    return step


def random_policies(env: AnyEnvironment) -> dict[str, Policy]:
    """Uniform random actions for every role; its parameters are `{"random": ()}`."""
    return {"random": Random(Random.Config(), env.roles)}


def _bench_env(env: AnyEnvironment) -> dict[str, Any]:
    rates = windows(collector(env, random_policies(env), {"random": ()}, ENV_LANES, ENV_ROWS))
    agents = sum(spec.size for spec in env.roles)
    return {
        "setting": f"{ENV_LANES} lanes, uniform random actions, resets included, {agents} agents",
        "env_steps_per_s": spread(rates),
    }


def _bench_host_world(id: str) -> dict[str, Any]:
    worlds, _ = HostWorlds.of(HostFactory(WORLD_FACTORY, {"id": id, "options": {}}))
    group, step = host_stepper(worlds, 1)
    with contextlib.closing(group):
        rates = windows(step)
    agents = sum(spec.size for spec in worlds.roles)
    return {
        "setting": f"1 copy in this process, uniform random actions, resets included, {agents} agents",
        "env_steps_per_s": spread(rates),
    }


def _bench_experiment(name: str) -> dict[str, Any]:
    config = load_experiment(name).config
    set_up_jax(config)
    plan = make_plan(config)
    if not plan.learners:
        raise ConfigError("nobody learns in this experiment; to measure its world alone: marl bench WORLD")
    config = resolved(plan)
    if config.dataflow.kind == "rllib":
        raise ConfigError(
            "RLlib's own dataflow is measured beside ours by scripts/bench/dataflow; expected another kind"
        )
    if plan.population is not None:
        return _bench_population(config, plan)
    return _bench_local(config, plan) if config.dataflow.kind == "local" else _bench_fused(config, plan)


def _bench_population(config: ExperimentConfig, plan: Plan) -> dict[str, Any]:
    """Whole generations, whoever plays them; the first, in which programs are compiled, apart."""
    run: Any = build_dataflow(config, plan)
    with contextlib.closing(run), tempfile.TemporaryDirectory() as folder:
        state = run.init()
        started = time.perf_counter()
        run.dispatch(state, [0] * len(run.seeds))
        first_s = time.perf_counter() - started
        training, host = _train_windows(config, run, state, Path(folder))
        return {
            "setting": run.describe(),
            "env_steps_per_s": spread(training),
            "first_dispatch_s": round(first_s, 1),
            "shares": {"generations": 1.0 - host, "host": host},
        }


def _bench_local(config: ExperimentConfig, plan: Plan) -> dict[str, Any]:
    """The world alone, in one process; acting in it and gathering batches; and training."""
    with contextlib.closing(build_local(config, plan)) as local:
        local.init()
        if plan.host is None:
            lanes = local.num_envs // local.options.slots
            world = windows(collector(plan.jax_env, random_policies(plan.jax_env), {"random": ()}, lanes, ENV_ROWS))
        else:
            group, step = host_stepper(plan.host, local.num_envs // local.options.slots)
            with contextlib.closing(group):
                world = windows(step)
        started = time.perf_counter()
        local.dispatch(local, [0] * len(local.seeds))
        first_s = time.perf_counter() - started
        with nothing_learned(local):
            acting = windows(dispatcher(local))
        with tempfile.TemporaryDirectory() as folder:
            training, host = _train_windows(config, local, local, Path(folder))
            parts = shares([row for row in read_rows(Path(folder) / "metrics.jsonl") if row["kind"] == "train"])
        return {
            "setting": f"{local.describe()}; {local.rows_per_dispatch()} rows a dispatch",
            "env_steps_per_s": spread(training),
            "without_learning_env_steps_per_s": spread(acting),
            "world_only_env_steps_per_s": spread(world),
            "first_dispatch_s": round(first_s, 1),
            "bottleneck": local.bottleneck(),
            "shares": {**{part: share * (1.0 - host) for part, share in parts.items()}, "host": host},
        }


def _bench_fused(config: ExperimentConfig, plan: Plan) -> dict[str, Any]:
    fused = build_fused(config, plan)
    state = fused.init()
    started = time.perf_counter()
    fused.compile(state)
    compile_s = time.perf_counter() - started
    params = fused.published(state, 0)
    lanes = fused.num_envs * len(fused.seeds)
    world = windows(collector(plan.jax_env, random_policies(plan.jax_env), {"random": ()}, lanes, fused.tick))
    acting = windows(collector(plan.jax_env, dict(plan.policies), params, lanes, fused.tick))
    with tempfile.TemporaryDirectory() as folder:
        training, host = _train_windows(config, fused, state, Path(folder))
    per_step = {name: 1.0 / statistics.median(rates) for name, rates in (("world", world), ("acting", acting))}
    total = 1.0 / statistics.median(training)
    device = 1.0 - host
    world_share = min(per_step["world"] / total, device)
    inference = max(0.0, min(per_step["acting"] / total, device) - world_share)
    return {
        "setting": f"{fused.num_envs} lanes x {len(fused.seeds)} seeds, {fused.rows_per_dispatch()} rows a dispatch",
        "env_steps_per_s": spread(training),
        "world_only_env_steps_per_s": spread(world),
        "acting_env_steps_per_s": spread(acting),
        "compile_s": round(compile_s, 1),
        "shares": {
            "world": world_share,
            "inference": inference,
            "update": max(0.0, device - world_share - inference),
            "host": host,
        },
    }


def _train_windows(config: Any, dataflow: Any, state: Any, folder: Path) -> tuple[list[float], float]:
    """Env steps per second of the training loop with its sinks, window by window, and the host's share of the time."""
    metrics = JsonlSink(folder / "metrics.jsonl", 0)
    board = TensorBoardSink(folder, list(dataflow.seeds), resolved_yaml(config), {})
    deadline = 0.0
    endless = config.model_copy(
        update={
            "stop": config.stop.model_copy(update={"env_steps": None, "wall_time": None, "return_": None}),
            "evaluate": config.evaluate.model_copy(update={"every": None}),
            "checkpoint": config.checkpoint.model_copy(update={"every": None}),
        }
    )
    loop = TrainingLoop(
        endless,
        dataflow,
        None,
        folder,
        Sinks([metrics, board]),
        metrics,
        Progress.start(len(dataflow.seeds)),
        {},
        should_stop=lambda: time.perf_counter() >= deadline,
    )
    rates, hosts = [], []
    for _ in range(REPEATS):
        before, started = sum(loop.progress.env_steps), time.perf_counter()
        deadline = started + WINDOW_S
        state, _ = loop.run(state, save=False)
        elapsed = time.perf_counter() - started
        rates.append((sum(loop.progress.env_steps) - before) / elapsed)
        hosts.append(max(0.0, 1.0 - loop.device_s / elapsed))
    loop.sinks.close()
    return rates, statistics.median(hosts)
