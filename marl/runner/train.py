"""`marl train` and `marl resume`: a run folder from a config, and on from its last checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from marl.core.errors import ConfigError, InterruptedRunError, MarlError
from marl.core.inference import run_at_once
from marl.dataflow.fused import Fused
from marl.dataflow.population import PopulationRun
from marl.dataflow.ray_placement import RayPlacement
from marl.io import checkpoint as checkpoints
from marl.io.console import ConsoleSink, Panel, next_commands, say
from marl.io.files import write_text_atomic
from marl.io.jsonl import JsonlSink, read_json, read_rows, write_json_atomic
from marl.io.lock import RunLock
from marl.io.metrics import Event, MetricSink, Sinks
from marl.io.tensorboard import TensorBoardSink
from marl.runner.build import build_dataflow, build_evaluator, build_player, resolved
from marl.runner.load import load_experiment, resolved_yaml
from marl.runner.loop import TrainingLoop
from marl.runner.memory import local_bytes
from marl.runner.origin import code_commit, config_hash, machine, versions
from marl.runner.plan import Plan, make_plan
from marl.runner.progress import Progress
from marl.runner.results import algorithms
from marl.runner.runs import create_run_folder, resolve_run
from marl.runner.schema import ExperimentConfig, LocalConfig

MAY_CHANGE = ("stop", "evaluate", "checkpoint")
# Who does the work on Ray is not part of what a run is: a checkpoint goes on with others, as long as the slots are the
# same.
_WORKERS = ("actors", "min_actors", "actor_timeout", "cpus_per_actor", "inference", "servers", "gpus_per_server")
_LEARNERS = ("learners", "learner_processes", "gpus_per_learner", "memory_fraction")
MAY_CHANGE_ON_RAY = tuple(f"dataflow.{k}" for k in (*_WORKERS, *_LEARNERS, "address", "object_store", "dashboard"))


def train(config: ExperimentConfig, *, runs_dir: str | None = None, quiet: bool = False) -> int:
    """Train a config from the start in a new run folder. Returns the exit code.

    Raises: UserError for bad input; RunError or CheckpointError if the run fails; InterruptedRunError if stopped.
    """
    with Panel(config.name, _limits(config), quiet=quiet) as panel:
        panel.phase("building", f"{config.env.id}, {algorithms(config)}")
        set_up_jax(config)
        plan = make_plan(config)
        if not plan.learners:
            raise ConfigError("nobody learns in this experiment; to measure it: marl evaluate CONFIG")
        config = resolved(plan)
        with _new_run(config, plan, Path(runs_dir or config.runs_dir)) as (run_dir, lock):
            return _run(config, plan, run_dir, panel, lock)


def resume(run: str, overrides: Sequence[str], *, runs_dir: str = "runs", quiet: bool = False) -> int:
    """Go on with a run from its newest valid checkpoint (from the start if it has none). Returns the exit code.

    overrides may change `stop`, `evaluate` and `checkpoint` only, and with dataflow.kind ray who does the work; they
    are recorded in meta.json.
    Raises: as `train`.
    """
    run_dir = resolve_run(run, Path(runs_dir))
    stored = str(run_dir / "config.yaml")
    on_ray = bool(overrides) and load_experiment(stored).config.dataflow.kind == "ray"
    allowed = MAY_CHANGE + (MAY_CHANGE_ON_RAY if on_ray else ())
    config = load_experiment(stored, list(overrides), only=allowed).config
    with Panel(config.name, _limits(config), quiet=quiet) as panel:
        panel.phase("building", f"{config.env.id}, {algorithms(config)}")
        set_up_jax(config)
        plan = make_plan(config)
        config = resolved(plan)
        with RunLock(run_dir, notice=say) as lock:
            if not (run_dir / "meta.json").exists():  # killed while it began
                start_run_folder(run_dir, config, plan, status="running")
            meta = read_json(run_dir / "meta.json")
            if overrides:
                write_text_atomic(run_dir / "config.yaml", resolved_yaml(config))
            change = {"time": round(time.time(), 3), "overrides": list(overrides), "commit": code_commit()}
            meta["resumed"] = [*meta.get("resumed", []), change]
            write_json_atomic(run_dir / "meta.json", {**meta, "status": "running"})
            return _run(config, plan, run_dir, panel, lock)


def dry_run(config: ExperimentConfig) -> tuple[str, dict[str, Any]]:
    """The resolved config as YAML, and what it would take: devices, lanes, rows a dispatch, memory in MiB.

    Compiles the program and trains nothing.
    """
    set_up_jax(config)
    plan = make_plan(config)
    config = resolved(plan)
    dataflow: Any = build_dataflow(config, plan)
    with contextlib.closing(dataflow):
        state = dataflow.init()
        params = jax.eval_shape(lambda: dataflow.published(state, 0))
        found = {
            "dataflow": dataflow.describe(),
            "devices": [f"{d.platform}:{d.id} ({d.device_kind})" for d in dataflow.devices],
            "seeds": list(dataflow.seeds),
            "lanes": dataflow.num_envs,
            "rows_per_dispatch": dataflow.rows_per_dispatch(),
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
        }
        if isinstance(dataflow, Fused):
            found["memory_mb"] = round(_compiled_bytes(dataflow, state) / 2**20, 1)
        else:
            found["memory_mb"] = round(local_bytes(config, plan) / 2**20, 1)
    return resolved_yaml(config), found


def _compiled_bytes(fused: Fused, state: Any) -> int:
    """What the compiled program needs: its arguments, its temporaries, its code."""
    memory = fused.compile(state).memory_analysis()
    if not memory:
        return 0
    return int(memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)


def set_up_jax(config: ExperimentConfig) -> None:
    """Keep compiled programs between processes, unless the config or JAX's own variable says otherwise, and run them as
    suits the dataflow."""
    local = config.dataflow
    if isinstance(local, LocalConfig) and not local.workers:
        # With processes that step worlds, an update is computed while they go on.
        run_at_once()
    if config.compilation_cache and jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "marl" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _limits(config: ExperimentConfig) -> dict[str, float | None]:
    stop = config.stop
    return {"env_steps": stop.env_steps, "wall_time": stop.wall_time, "return": stop.return_}


@contextlib.contextmanager
def _new_run(config: ExperimentConfig, plan: Plan, runs_dir: Path) -> Iterator[tuple[Path, RunLock]]:
    """A new run folder, locked. If it cannot be begun (the disk is full), nothing of it stays behind."""
    run_dir = create_run_folder(runs_dir, config.name)
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(RunLock(run_dir, notice=say))
            start_run_folder(run_dir, config, plan, status="running")
        except (MarlError, KeyboardInterrupt):
            shutil.rmtree(run_dir, ignore_errors=True)
            with contextlib.suppress(OSError):
                run_dir.parent.rmdir()
            raise
        yield run_dir, lock


def start_run_folder(run_dir: Path, config: ExperimentConfig, plan: Plan, *, status: str) -> None:
    """Write config.yaml and meta.json: what the run is, what made it, where."""
    write_text_atomic(run_dir / "config.yaml", resolved_yaml(config))
    meta = {
        "format": 1,
        "name": config.name,
        "status": status,
        "seeds": list(config.seed_list),
        "algorithm": algorithms(config),
        "env": {"id": config.env.id, **config.env.options},
        "roles": {spec.name: spec.size for spec in plan.env.roles},
        "commit": code_commit(),
        "config_hash": config_hash(config),
        "versions": versions(),
        "machine": machine(),
        "created": round(time.time(), 3),
    }
    write_json_atomic(run_dir / "meta.json", meta)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second one ends the program at once."""
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say(f"{signal.Signals(number).name} received: finishing this dispatch, then saving a checkpoint")

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _run(config: ExperimentConfig, plan: Plan, run_dir: Path, panel: Panel, lock: RunLock) -> int:
    with _stop_signals() as received:
        status = "failed"
        try:
            reason = _train_from_newest(config, plan, run_dir, panel, received, lock)
            status = "interrupted" if reason == "interrupted" else "done"
        finally:
            with contextlib.suppress(MarlError):
                lock.check(look=True)  # the status of a run that was taken over is the other process's to write
                meta = read_json(run_dir / "meta.json")
                write_json_atomic(run_dir / "meta.json", {**meta, "status": status, "ended": round(time.time(), 3)})
    panel.stop()
    if status == "interrupted":
        next_commands([f"marl resume {run_dir}"])
        raise InterruptedRunError(f"interrupted; everything up to here is in the checkpoint of {run_dir}")
    say(f"run folder: {run_dir}")
    next_commands(
        [
            f"marl evaluate {run_dir}",
            f"marl render {run_dir} -o episode.gif",
            f"marl tensorboard {run_dir}",
            f"marl report {run_dir}",
        ]
    )
    return 0


def _train_from_newest(
    config: ExperimentConfig, plan: Plan, run_dir: Path, panel: Panel, received: list[int], lock: RunLock
) -> str:
    events: list[Event] = []
    dataflow: Any = build_dataflow(config, plan)  # its own kind of state goes in and comes out
    with contextlib.closing(dataflow):
        return _train_with(dataflow, config, plan, run_dir, panel, received, events, lock)


def _train_with(
    dataflow: Any,
    config: ExperimentConfig,
    plan: Plan,
    run_dir: Path,
    panel: Panel,
    received: list[int],
    events: list[Event],
    lock: RunLock,
) -> str:
    newest = checkpoints.newest_valid(run_dir / "checkpoints", events.append)
    if isinstance(dataflow, PopulationRun | RayPlacement):
        dataflow.should_stop = lambda: bool(received)
    if isinstance(dataflow, RayPlacement):
        dataflow.post_mortem = run_dir / "logs"
    state = dataflow.init()
    progress = Progress.start(len(dataflow.seeds))
    if newest is not None:
        seeds = checkpoints.read_header(newest)["seeds"]
        if tuple(seeds) != dataflow.seeds:
            raise ConfigError(f"{newest} holds seeds {seeds}, the config says {list(dataflow.seeds)}")
        state, header = dataflow.load(newest, state)
        progress = Progress.from_header(header["progress"])
        panel.resumed(progress.wall_s)
        say(f"resuming at {min(progress.env_steps):,} env steps from {newest.name}")

    metrics = JsonlSink(run_dir / "metrics.jsonl", progress.metrics_offset)
    board = TensorBoardSink(run_dir, list(dataflow.seeds), resolved_yaml(config), _hparams(config), notice=say)
    # The event files follow metrics.jsonl: rebuilt from it, they have neither gap nor duplicate.
    board.rebuild(read_rows(run_dir / "metrics.jsonl"))
    sinks: list[MetricSink] = [metrics, board, ConsoleSink(panel)]
    can_end = plan.host is not None or plan.env.max_steps is not None
    evaluator = build_evaluator(config, plan) if can_end else None
    loop = TrainingLoop(
        config,
        dataflow,
        evaluator,
        run_dir,
        Sinks(sinks),
        metrics,
        progress,
        {
            "name": config.name,
            "algorithm": algorithms(config),
            "commit": code_commit(),
            "config_hash": config_hash(config),
        },
        should_stop=lambda: bool(received),
        check_lock=lock.check,
        video=_video(config, plan, board) if evaluator is not None else None,
    )
    try:
        for event in events:
            loop.event(event.name, event.message)
        panel.phase("compiling", dataflow.describe())
        dataflow.compile(state)
        panel.phase("training", "")
        _, reason = loop.run(state)
        if dataflow.bottleneck():
            say(f"the bottleneck is: {dataflow.bottleneck()}")
        return reason
    finally:
        if lock.lost:
            metrics.drop()
        loop.sinks.close()


def _hparams(config: ExperimentConfig) -> dict[str, Any]:
    """Flat values for TensorBoard's hparams page."""
    flat: dict[str, Any] = {"env": config.env.id}
    flat.update({f"env.{key}": value for key, value in config.env.options.items()})
    for name, section in config.agents.items():
        flat[f"{name}.algorithm"] = section.algorithm
        flat.update({f"{name}.{key}": value for key, value in section.options.items()})
    flat["num_envs"] = config.dataflow.num_envs
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()}


def _video(config: ExperimentConfig, plan: Plan, board: TensorBoardSink) -> Any:
    """A function that shows one validation episode of a seed as an animated image in TensorBoard."""
    player = build_player(plan, config.evaluate.greedy)

    def show(index: int, params: dict[str, Any], env_steps: int) -> None:
        if index == 0:
            frames, _ = player.frames(params, "validation", 0)
            board.video("eval/episode", frames, env_steps)

    return show
