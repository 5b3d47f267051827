"""The one training loop: dispatch, log, evaluate, checkpoint, stop. It sees arrays and counters, never an algorithm."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from marl.core.errors import CheckpointError, MarlError, RunError
from marl.dataflow.fused import Fused
from marl.dataflow.learning import DispatchResult
from marl.dataflow.local import Local
from marl.dataflow.population import PopulationRun
from marl.dataflow.ray_placement import RayPlacement
from marl.evaluate.records import append_evaluation
from marl.io import checkpoint as checkpoints
from marl.io.jsonl import JsonlSink
from marl.io.metrics import Event, Row, Sinks, event_row
from marl.runner.build import AnyEvaluator
from marl.runner.policies import save_policy
from marl.runner.progress import Progress
from marl.runner.results import evaluation_record, evaluation_row, mean_return
from marl.runner.rllib import RllibRun
from marl.runner.schema import ExperimentConfig

AnyDataflow: TypeAlias = Fused | Local | RayPlacement | PopulationRun | RllibRun

GIVE_UP_AFTER = 100  # updates in a row that were not finite, in every seed, before the run is called failed
RETRY_CHECKPOINT_S = (5.0, 300.0)  # first and longest wait before a failed periodic checkpoint is tried again


class CheckLock(Protocol):
    """`RunLock.check`."""

    def __call__(self, *, look: bool = False) -> None: ...


def no_lock(*, look: bool = False) -> None:
    """For a loop whose folder nobody else can know."""


class TrainingLoop:
    """Drives a run of either dataflow from `progress` to its stop rule.

    sinks: where rows go, `metrics` (metrics.jsonl) among them.  should_stop: True once the run was asked to stop.
    check_lock: raises RunError once another process has the run folder.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataflow: AnyDataflow,
        evaluator: AnyEvaluator | None,
        run_dir: Path,
        sinks: Sinks,
        metrics: JsonlSink,
        progress: Progress,
        policy_header: dict[str, Any],
        *,
        should_stop: Callable[[], bool],
        check_lock: CheckLock = no_lock,
        video: Callable[[int, dict[str, Any], int], None] | None = None,
    ) -> None:
        self.config = config
        self.dataflow = dataflow
        self.evaluator = evaluator
        self.run_dir = run_dir
        self.sinks = sinks
        self.metrics = metrics
        self.progress = progress
        self.policy_header = policy_header
        self.should_stop = should_stop
        self.check_lock = check_lock
        self.video = video
        self._retry_at = 0.0
        self._retry_wait = RETRY_CHECKPOINT_S[0]
        self._session_start = time.perf_counter()
        self._wall_before = progress.wall_s
        self.device_s = 0.0

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, state: Any, *, save: bool = True) -> tuple[Any, str]:
        """Train until a stop rule holds or the run is asked to stop. Returns the last state and why it ended.

        save: write checkpoints (a benchmark does not).

        Raises: RunError if every seed has diverged or another process took the run folder over; CheckpointError if the
        final checkpoint cannot be written.
        """
        self._session_start, self.device_s = time.perf_counter(), 0.0
        reason = self._reached()
        rows: list[Row] = []
        while reason is None:
            started = time.perf_counter()
            dataflow: Any = self.dataflow  # its own kind of state goes in and comes out
            state, result = dataflow.dispatch(state, self.progress.env_steps)
            self._write(rows)  # the previous dispatch's rows, while the device works on this one
            host: DispatchResult = jax.device_get(result)
            elapsed = time.perf_counter() - started
            self.device_s += elapsed
            self.check_lock()
            self._count(host)
            rows = self._train_rows(host, elapsed) if np.any(host.env_steps) else []  # an abandoned one says nothing
            self._check_finite(host)
            for seed, name, words in self.dataflow.take_events():
                self.event(name, f"seed {seed}: {words}")
            reason = "interrupted" if self.should_stop() else self._reached()
            evaluate = self._due(self.config.evaluate.every, "evaluations")
            checkpoint = self._due(self.config.checkpoint.every, "checkpoints")
            if evaluate or checkpoint or reason is not None:
                self.check_lock(look=True)
                self._write(rows)
                rows = []
                if (evaluate or reason not in (None, "interrupted")) and self.evaluator is not None:
                    self.evaluate(state)
                    reason = reason or self._return_reached()
                if save and (checkpoint or reason is not None):
                    self._checkpoint(state, final=reason is not None)
        return state, reason

    def _reached(self) -> str | None:
        stop = self.config.stop
        if stop.env_steps is not None and min(self.progress.env_steps) >= stop.env_steps:
            return "env_steps"
        if stop.wall_time is not None and self._wall() >= stop.wall_time:
            return "wall_time"
        return None

    def _return_reached(self) -> str | None:
        wanted = self.config.stop.return_
        latest = self._latest_returns
        return "return" if wanted is not None and latest and min(latest) >= wanted else None

    def _wall(self) -> float:
        return self._wall_before + time.perf_counter() - self._session_start

    def _due(self, every: int | None, counter: str) -> bool:
        """Has another multiple of `every` env steps been passed? Counts it when so."""
        if not every:
            return False
        passed = min(self.progress.env_steps) // every
        due = passed > getattr(self.progress, counter)
        setattr(self.progress, counter, passed)
        return bool(due)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _count(self, result: DispatchResult) -> None:
        totals = self.progress
        totals.dispatches += 1
        for index in range(len(totals.env_steps)):
            totals.env_steps[index] += int(result.env_steps[index])
            totals.agent_steps[index] += int(result.agent_steps[index])
            totals.updates[index] += max((int(u[index]) for u in result.updates.values()), default=0)
            totals.episodes[index] += int(result.episodes[index])

    def _train_rows(self, result: DispatchResult, elapsed: float) -> list[Row]:
        now = time.time()
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        session = time.perf_counter() - self._session_start
        rows = []
        for index in range(len(self.dataflow.seeds)):
            row: Row = self._header("train", index, now)
            episodes = int(result.episodes[index])
            if episodes:
                row["episode/count"] = episodes
                row["episode/length"] = float(result.length[index]) / episodes
                for role, total in result.returns.items():
                    row[f"episode/return/{role}"] = float(total[index]) / episodes
                for name, total in result.info.items():
                    tag = name if name.startswith("reward/") else f"episode/{name}"
                    row[tag] = float(total[index]) / episodes
            for policy, metrics in result.metrics.items():
                for tag, value in metrics.items():
                    group, _, rest = tag.partition("/")
                    row[f"{group}/{policy}/{rest}"] = float(value[index])
                row[f"flow/skipped_updates/{policy}"] = int(result.skipped[policy][index])
            row["flow/policy_lag"] = 0.0
            row.update({tag: float(value[index]) for tag, value in result.flow.items()})
            row["flow/agent_steps"] = self.progress.agent_steps[index]
            row["flow/episodes"] = self.progress.episodes[index]
            row["perf/env_steps_per_s"] = float(result.env_steps.sum()) / elapsed
            row["perf/agent_steps_per_s"] = float(result.agent_steps.sum()) / elapsed
            row["perf/updates_per_s"] = sum(int(u[index]) for u in result.updates.values()) / elapsed
            row["perf/host_share"] = max(0.0, 1.0 - self.device_s / session)
            row["perf/memory_mb"] = memory_mb
            rows.append(row)
        return rows

    def _header(self, kind: str, index: int, now: float) -> Row:
        return {
            "kind": kind,
            "seed": self.dataflow.seeds[index],
            "env_steps": self.progress.env_steps[index],
            "updates": self.progress.updates[index],
            "time": now,
        }

    def _write(self, rows: list[Row]) -> None:
        for row in rows:
            self.sinks.write(row)

    def event(self, name: str, detail: str) -> None:
        """Record something that happened to the run, and show it."""
        totals = self.progress
        self.sinks.write(event_row(Event(name, detail), self.dataflow.seeds[0], totals.env_steps[0], totals.updates[0]))

    def _check_finite(self, result: DispatchResult) -> None:
        for policy, skipped in result.skipped.items():
            if int(skipped.min()) >= GIVE_UP_AFTER:
                raise RunError(
                    f"'{policy}' has diverged: its last {int(skipped.min())} updates were not finite in every seed; "
                    "a smaller learning_rate or max_grad_norm usually helps"
                )
            for index, seed in enumerate(self.dataflow.seeds):
                if int(skipped[index]) > 0:
                    self.event(
                        "update skipped",
                        f"seed {seed}: {int(skipped[index])} updates in a row of '{policy}' were not finite "
                        "and were not applied",
                    )

    # ---- evaluation ------------------------------------------------------------------------------------------------

    _latest_returns: tuple[float, ...] = ()

    def evaluate(self, state: Any) -> None:
        """Validation episodes for every seed; the best parameters so far go to `policy_best/`."""
        assert self.evaluator is not None
        episodes = self.config.evaluate.episodes
        latest = []
        for index in range(len(self.dataflow.seeds)):
            params = self.dataflow.published(state, index)
            started = time.perf_counter()
            result = self.evaluator.run(params, "validation", episodes)
            self.device_s += time.perf_counter() - started
            value = mean_return(result)
            latest.append(value)
            row = {**self._header("eval", index, time.time()), **evaluation_row(result)}
            self.sinks.write(row)
            record = evaluation_record(
                self.config,
                result,
                seed=self.dataflow.seeds[index],
                env_steps=self.progress.env_steps[index],
                kind="validation",
                greedy=self.evaluator.greedy,
            )
            self._keep("evaluation", append_evaluation, self.seed_dir(index) / "evaluations.json", record)
            best = self.progress.best_return[index]
            if (best is None or value > best) and self._keep(
                "best policy", self._save_policy, index, params, "policy_best", value
            ):
                self.progress.best_return[index] = value
                self.progress.best_env_steps[index] = self.progress.env_steps[index]
            if self.video is not None and self.config.evaluate.video:
                self._film(index, params)
        self._latest_returns = tuple(latest)

    def _keep(self, what: str, write: Callable[..., None], *arguments: Any) -> bool:
        """Write what training can do without; whether it worked. A failure is an event."""
        try:
            write(*arguments)
        except MarlError as error:
            self.event(f"{what} not stored", f"{error}; training goes on")
            return False
        return True

    def _film(self, index: int, params: dict[str, Any]) -> None:
        """Show an episode. A world that cannot be drawn is reported once, and trains on."""
        assert self.video is not None
        try:
            self.video(index, params, self.progress.env_steps[index])
        except MarlError as error:
            self.video = None
            self.event("no video", str(error))

    def seed_dir(self, index: int) -> Path:
        """Where a seed's own files go: the run folder itself, or `seed_<n>/` in a group."""
        if len(self.dataflow.seeds) == 1:
            return self.run_dir
        return self.run_dir / f"seed_{self.dataflow.seeds[index]}"

    def _save_policy(
        self, index: int, params: dict[str, Any], which: str, validation_return: float | None = None
    ) -> None:
        header = {
            **self.policy_header,
            "seed": self.dataflow.seeds[index],
            "env_steps": self.progress.env_steps[index],
            "updates": self.progress.updates[index],
            "validation_return": validation_return,
        }
        save_policy(self.seed_dir(index) / which, params, header)

    # ---- checkpoint ------------------------------------------------------------------------------------------------

    def _checkpoint(self, state: Any, *, final: bool) -> None:
        """Save the whole state. A periodic one that fails is an event, tried again later; a final one must succeed."""
        if not final and time.perf_counter() < self._retry_at:
            self.progress.checkpoints -= 1  # still due
            return
        try:
            self.save(state)
            self._retry_wait = RETRY_CHECKPOINT_S[0]
        except CheckpointError as error:
            if final:
                raise
            self.progress.checkpoints -= 1
            wait = self._retry_wait
            self._retry_at = time.perf_counter() + wait
            self._retry_wait = min(2 * wait, RETRY_CHECKPOINT_S[1])
            self.event("checkpoint failed", f"{error}; training goes on, trying again in {wait:.0f} s")

    def save(self, state: Any) -> Path:
        """Write a checkpoint and the current policy; prune old checkpoints.

        Raises: CheckpointError if it cannot be written, RunError if the run folder is another process's by now; the
        previous checkpoint is untouched.
        """
        self.check_lock(look=True)  # an evaluation takes long
        self.sinks.flush()
        self.progress.wall_s = self._wall()
        self.progress.metrics_offset = self.metrics.offset
        folder = self.run_dir / "checkpoints"
        step = max(self.progress.env_steps)
        best = list(self.progress.best_checkpoint)
        for index, env_steps in enumerate(self.progress.env_steps):
            if self.progress.best_return[index] is not None and self.progress.best_env_steps[index] == env_steps:
                best[index] = checkpoints.path_of(folder, step).name
        header = {
            "progress": {**self.progress.to_header(), "best_checkpoint": best},
            "seeds": list(self.dataflow.seeds),
        }
        path = checkpoints.save(folder, step, self.dataflow.snapshot(state), header)
        self.progress.best_checkpoint = best
        for index in range(len(self.dataflow.seeds)):
            self._save_policy(index, self.dataflow.published(state, index), "policy")
        checkpoints.prune(folder, self.config.checkpoint.keep, [folder / name for name in best if name is not None])
        return path
