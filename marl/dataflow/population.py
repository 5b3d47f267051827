"""Populations in every placement: a generation is asked for, played by a crew of evaluators, and told about.

The loop below is the same in one process and on a cluster; a crew says who plays. Keys come from the run's seed, the
generation and the round, results are taken in the order of their tasks: so the numbers of a run depend neither on the
crew nor on what died in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.evolution import Evaluation, Evolution, Offspring, Round
from marl.core.prng import stream
from marl.core.types import EpisodeResult, Key, LearnerState, Metrics, Tree
from marl.dataflow.learning import DispatchResult, pack, unpack
from marl.dataflow.population_crew import AbandonedError, Crew, never
from marl.dataflow.population_tasks import cut, join
from marl.io import checkpoint


class Generations:
    """One seed's search."""

    def __init__(self, name: str, evolution: Evolution, seed: int) -> None:
        self.name, self.evolution, self.seed = name, evolution, seed
        self.state: LearnerState = _init(evolution, stream(seed, "init", name))
        self.generation = 0

    def run(
        self, crew: Crew, task_size: int, env_steps: int, should_stop: Callable[[], bool]
    ) -> tuple[Metrics, list[EpisodeResult]]:
        """One generation: its metrics, and the results of its rounds. env_steps: of the run so far.

        Raises: AbandonedError if it is to stop; then nothing has happened.
        """
        evolution, state = self.evolution, self.state
        metrics: Metrics = {}
        played: list[EpisodeResult] = []
        crew.share(jax.device_get(_publish(evolution, state)))
        for index, round in enumerate(evolution.rounds):
            path = (self.generation, index)
            offspring = jax.device_get(_ask(evolution, round, state, stream(self.seed, "ask", *path)))
            keys = _episode_keys(round.episodes, stream(self.seed, "episodes", *path))
            tasks = cut(round, task_size, offspring, np.asarray(keys))
            episode = join(round, task_size, tasks, crew.play(tasks, should_stop))
            env_steps += int(episode.length.sum())
            state, own, fitness = _tell(evolution, round, state, offspring, episode, np.float32(env_steps))
            metrics |= _statistics(round, index, np.asarray(fitness))
            metrics |= jax.device_get(own)
            played.append(episode)
        metrics["ga/env_steps"] = np.float32(sum(int(episode.length.sum()) for episode in played))  # type: ignore[assignment]
        self.state = state
        self.generation += 1
        return metrics, played


class PopulationRun:
    """The search of every seed, one after another in each dispatch. Used as `Fused` and `Local` are.

    name, policies: the policy that evolves, among all that play.  fixed: parameters of the others.
    task_size: episodes a task, which with JAX worlds fixes the shapes of the compiled programs; with other shapes the
    numbers may differ in their last bits.  generations: a dispatch.  num_envs, max_steps, devices: to be told of.
    """

    def __init__(
        self,
        name: str,
        policies: Mapping[str, Any],
        fixed: Mapping[str, Tree],
        crew: Crew,
        seeds: Sequence[int],
        *,
        task_size: int,
        generations: int = 1,
        num_envs: int | None = None,
        max_steps: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.name, self.crew, self.generations, self.task_size = name, crew, generations, task_size
        self.num_envs = num_envs or task_size
        self.evolution: Evolution = policies[name]
        self.fixed = {other: fixed.get(other, ()) for other in policies if other != name}
        self.seeds = tuple(seeds)
        self.devices = jax.devices()[:1] if devices is None else list(devices)
        self.max_steps = max_steps
        self.runs: list[Generations] = []
        self.should_stop: Callable[[], bool] = never  # a generation may take too long to wait for its end

    def init(self) -> PopulationRun:
        """Start every seed. The state of this placement is the placement itself."""
        self.runs = [Generations(self.name, self.evolution, seed) for seed in self.seeds]
        return self

    def dispatch(self, state: PopulationRun, env_steps: Sequence[int]) -> tuple[PopulationRun, DispatchResult]:
        """`generations` of every seed. env_steps: totals so far, one a seed.

        Once `should_stop` says so, all of them go back to where they were, and nothing has been played.
        """
        begun = [(run.state, run.generation) for run in self.runs]
        try:
            results = [self._dispatch_seed(run, before) for run, before in zip(self.runs, env_steps, strict=True)]
        except AbandonedError:
            for run, (before, generation) in zip(self.runs, begun, strict=True):
                run.state, run.generation = before, generation
            results = [self._nothing()] * len(self.runs)
        return state, jax.tree.map(lambda *parts: np.stack(parts), *results)

    def _dispatch_seed(self, run: Generations, env_steps: int) -> DispatchResult:
        reports, episodes = [], []
        for _ in range(self.generations):
            metrics, played = run.run(self.crew, self.task_size, env_steps, self.should_stop)
            env_steps += sum(int(episode.length.sum()) for episode in played)
            reports.append(metrics)
            episodes += played
        make: Any = DispatchResult  # of NumPy's numbers
        result: DispatchResult = make(
            metrics={self.name: {tag: np.float32(np.mean([r[tag] for r in reports])) for tag in reports[0]}},
            env_steps=_total(episodes, lambda e: e.length),
            agent_steps=_total(episodes, lambda e: e.agent_steps),
            updates={self.name: np.int64(self.generations)},
            skipped={self.name: np.int64(0)},
            episodes=np.int64(sum(e.length.size for e in episodes)),
            returns={
                role: np.float64(sum(e.returns[role].mean(-1, dtype=np.float64).sum() for e in episodes))
                for role in episodes[0].returns
            },
            length=_total(episodes, lambda e: e.length),
            info={
                name: np.float64(sum(e.info[name].sum(dtype=np.float64) for e in episodes)) for name in episodes[0].info
            },
        )
        return result

    def _nothing(self) -> DispatchResult:
        """What a dispatch reports that was abandoned."""
        make: Any = DispatchResult  # of NumPy's numbers
        zero = np.int64(0)
        counts = dict.fromkeys(("env_steps", "agent_steps", "episodes", "length"), zero)
        by_policy = {name: {self.name: zero} for name in ("updates", "skipped")}
        result: DispatchResult = make(metrics={}, returns={}, info={}, **counts, **by_policy)
        return result

    def published(self, state: PopulationRun, seed_index: int) -> dict[str, Tree]:
        """Parameters of every policy, those of the best individual so far for the one that evolves."""
        return {**self.fixed, self.name: _best(self.evolution, state.runs[seed_index].state)}

    def rows_per_dispatch(self) -> int:
        """The most rows that a seed plays in a dispatch; 0 if its worlds do not say how long episodes are."""
        episodes = sum(round.size * round.episodes for round in self.evolution.rounds)
        return self.generations * episodes * (self.max_steps or 0)

    def snapshot(self, state: PopulationRun) -> dict[str, Any]:
        """The whole state as a plain tree of arrays. Tasks under way do not exist between generations."""
        return {"runs": [{"state": pack(r.state), "generation": np.int64(r.generation)} for r in state.runs]}

    def restore(self, stored: Mapping[str, Any]) -> PopulationRun:
        """Started runs, brought to where a snapshot was taken. Raises: CheckpointError if it is of another run."""
        for run, own in zip(self.runs, stored["runs"], strict=True):
            run.state = unpack(own["state"], run.state, f"search '{self.name}'")
            run.generation = int(own["generation"])
        return self

    def compile(self, state: PopulationRun) -> None:
        """Nothing to do ahead: programs are compiled when they are first called."""

    def load(self, path: Path, state: PopulationRun) -> tuple[PopulationRun, dict[str, Any]]:
        """The started runs brought to where a checkpoint was taken, and its header.

        Raises: CheckpointError if it is damaged or of another run.
        """
        stored, header = checkpoint.load_plain(path)
        return state.restore(stored), header

    def describe(self) -> str:
        """What runs where, in words."""
        rounds = ", then ".join(f"{round.size} x {round.episodes}" for round in self.evolution.rounds)
        return (
            f"a generation is {rounds} episodes, {self.task_size} a task; {self.crew.describe()}; "
            f"{'one seed' if len(self.seeds) == 1 else f'{len(self.seeds)} seeds one after another'}; reproducible"
        )

    def bottleneck(self) -> str:
        """Evaluators are all there is."""
        return ""

    def take_events(self) -> list[tuple[int, str, str]]:
        """(seed, name, words) of what happened since the last call."""
        return [(self.seeds[0], name, words) for name, words in self.crew.take_events()]

    def close(self) -> None:
        """End the evaluators and close their worlds."""
        self.crew.close()


def _statistics(round: Round, index: int, fitness: NDArray[np.float32]) -> dict[str, Any]:
    """The `ga/` tags of a round; all but those of the first carry its name. fitness: by individual."""
    prefix = "ga/" if index == 0 else f"ga/{round.name}_"
    finite = fitness[np.isfinite(fitness)]
    found = {"invalid": np.float32(fitness.size - finite.size)}
    if finite.size:
        found |= {"best": finite.max(), "mean": finite.mean(), "median": np.float32(np.median(finite))}
    else:
        found |= dict.fromkeys(("best", "mean", "median"), np.float32("nan"))
    return {prefix + name: np.float32(value) for name, value in found.items()}


def _total(episodes: Sequence[EpisodeResult], part: Any) -> np.int64:
    return np.int64(sum(part(episode).sum(dtype=np.int64) for episode in episodes))


# Compiled once for an evolution object, whichever seeds and crews call them.


@partial(jax.jit, static_argnums=0)
def _init(evolution: Evolution, key: Key) -> LearnerState:
    return evolution.init(key)


@partial(jax.jit, static_argnums=0)
def _publish(evolution: Evolution, state: LearnerState) -> Tree:
    return evolution.publish(state)


@partial(jax.jit, static_argnums=0)
def _best(evolution: Evolution, state: LearnerState) -> Tree:
    return evolution.best(state)


@partial(jax.jit, static_argnums=(0, 1))
def _ask(evolution: Evolution, round: Round, state: LearnerState, key: Key) -> Offspring:
    return evolution.ask(state, round, key)


@partial(jax.jit, static_argnums=(0, 1))
def _tell(
    evolution: Evolution, round: Round, state: Any, offspring: Offspring, episode: EpisodeResult, env_steps: Any
) -> tuple[LearnerState, Metrics, Any]:
    fitness, descriptor = evolution.score(episode)
    state = state.replace(env_steps=env_steps)
    state, metrics = evolution.tell(state, round, offspring, Evaluation(fitness, descriptor, episode))
    return state, metrics, fitness.mean(axis=-1)


@partial(jax.jit, static_argnums=0)
def _episode_keys(count: int, key: Key) -> Any:
    """Of the episodes of a round, as numbers u32 `[count, 2]`."""
    return jax.random.key_data(jax.random.split(key, count))
