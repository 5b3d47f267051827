"""Populations: tasks follow from sizes alone, and no number depends on who plays them, where, or what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.core.config import AgentConfig
from marl.core.errors import CheckpointError, UserError, WorldError
from marl.core.evolution import Evaluation, Evolution, EvolvedPolicy, Round, mean_fitness, team_return
from marl.core.host import HostFactory
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.types import EpisodeResult, LearnerState, RoleSpec
from marl.dataflow.groups import InlineGroup, RemoteGroup, WorkerProcess
from marl.dataflow.population import PopulationRun
from marl.dataflow.population_crew import LocalCrew
from marl.dataflow.population_evaluators import HostEvaluator, JaxEvaluator, decode_all, evaluate
from marl.dataflow.population_tasks import Task, cut, join
from marl.envs.probe.credit import Credit
from marl.evaluate.host import HostEvaluator as EvaluationOfHosts
from marl.evaluate.protocol import Evaluator, episode_keys
from marl.io import checkpoint

from .tiny import Tiny
from .tiny_host import TinyHost

PATIENT = FaultPolicy(share=1.0, grace=1000)


class TinySearch(EvolvedPolicy):
    """Steps from the best so far; the best two play again."""

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    rounds = (Round("first", 5, 2), Round("again", 2, 2))  # their tasks have one shape, for compilation

    def __init__(self, roles: tuple[RoleSpec, ...]) -> None:
        self.policy = Tiny(roles)

    def init(self, key: Any) -> LearnerState:
        shapes = jax.eval_shape(self.policy.init, key)
        start: LearnerState = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return start.replace(aux={"again": jnp.zeros((2,), jnp.uint32)})  # type: ignore[attr-defined, no-any-return]

    def publish(self, state: LearnerState) -> Any:
        return state.params

    def ask(self, state: LearnerState, round: Round, key: Any) -> Any:
        return state.aux["again"] if round.name == "again" else jax.random.bits(key, (round.size,), jnp.uint32)

    def decode(self, shared: Any, offspring: Any) -> Any:
        where = (offspring >> 8).astype(jnp.float32)
        return jax.tree.map(lambda x: x + jnp.sin(where + jnp.arange(x.size).reshape(x.shape)), shared)

    def score(self, episode: EpisodeResult) -> Any:
        fitness = team_return(episode, self.roles)
        return fitness, jnp.zeros((*fitness.shape, 0))

    def tell(self, state: LearnerState, round: Round, offspring: Any, evaluation: Evaluation) -> Any:
        fitness = mean_fitness(evaluation)
        order = jnp.argsort(-fitness, stable=True)
        if round.name == "first":
            return state.replace(aux={"again": offspring[order[:2]]}), {}  # type: ignore[attr-defined]
        best = self.decode(state.params, offspring[order[0]])
        return state.replace(params=best, updates=state.updates + 1), {"ga/told": fitness[order[0]]}  # type: ignore[attr-defined]

    def best(self, state: LearnerState) -> Any:
        return state.params


# One object each, so that its programs are compiled once for all tests.
CREDIT = Credit()
SEARCH, HOST_SEARCH = TinySearch(CREDIT.roles), TinySearch(TinyHost().roles)
CAST, HOST_CAST = {"all": SEARCH}, {"all": HOST_SEARCH}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny world can be found by name, here and in the processes that step worlds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def tiny_worlds(**options: Any) -> HostWorlds:
    return HostWorlds.of(HostFactory("tiny_host:TinyHost", options))[0]


def host_crew(evaluators: int, lanes: int = 2, faults: FaultPolicy = PATIENT, **options: Any) -> LocalCrew:
    worlds = tiny_worlds(**options)
    handles = [InlineGroup(worlds.factory, worlds.spec, lanes, faults) for _ in range(evaluators)]
    return LocalCrew([HostEvaluator(worlds, HOST_CAST, "all", {}, handle) for handle in handles])


def jax_crew(evaluators: int) -> LocalCrew:
    return LocalCrew([JaxEvaluator(CREDIT, CAST, "all", {}) for _ in range(evaluators)])


def started(crew: LocalCrew, cast: Any = HOST_CAST, seeds: tuple[int, ...] = (0,), **options: Any) -> PopulationRun:
    return PopulationRun("all", cast, {}, crew, seeds, **{"task_size": 4, **options}).init()


def drive(run: PopulationRun, generations: int) -> list[dict[str, list[float]]]:
    """The log of some generations: every metric and every counter."""
    log = []
    for _ in range(generations):
        _, result = run.dispatch(run, [0] * len(run.seeds))
        counts = {name: getattr(result, name) for name in ("env_steps", "agent_steps", "episodes", "length")}
        row = {**result.metrics["all"], **counts, **result.returns}
        log.append({name: np.asarray(value).tolist() for name, value in row.items()})
    run.close()
    return log


# ---- tasks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "episodes", "lanes"), [(5, 2, 4), (7, 1, 4), (3, 10, 4), (1, 1, 64), (100, 1, 32)])
def test_tasks_cover_every_episode_once_and_have_one_shape(size: int, episodes: int, lanes: int) -> None:
    round = Round("r", size, episodes)
    keys = np.arange(2 * episodes, dtype=np.uint32).reshape(episodes, 2)
    tasks = cut(round, lanes, {"seed": np.arange(size, dtype=np.uint32)}, keys)
    assert len({(task.offspring["seed"].shape, task.keys.shape) for task in tasks}) == 1
    assert all(len(task.keys) <= lanes for task in tasks)
    assert all(len(task.offspring["seed"]) * len(task.keys) <= max(lanes, len(task.keys)) for task in tasks)
    played = []
    for task in tasks:
        name = 1000 * task.offspring["seed"][:, None] + task.keys[None, :, 0] // 2
        played.append(EpisodeResult({"a": name[..., None]}, name, name, {}))  # type: ignore[arg-type]
    whole = join(round, lanes, tasks, played)
    np.testing.assert_array_equal(whole.length, 1000 * np.arange(size)[:, None] + np.arange(episodes))
    assert whole.returns["a"].shape == (size, episodes, 1)


def test_the_search_is_what_the_protocol_asks_for() -> None:
    assert isinstance(SEARCH, Evolution)


# ---- who plays makes no difference ---------------------------------------------------------------------------------


def test_one_and_four_evaluators_give_the_same_log() -> None:
    assert drive(started(host_crew(1)), 3) == drive(started(host_crew(4)), 3)
    assert drive(started(jax_crew(1), CAST), 3) == drive(started(jax_crew(4), CAST), 3)


def test_the_lanes_of_a_task_do_not_enter_the_results() -> None:
    one, other = drive(started(host_crew(1)), 2), drive(started(host_crew(1, lanes=3), task_size=10), 2)
    for before, after in zip(one, other, strict=True):
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=1e-6, err_msg=name)


def test_worlds_in_processes_change_nothing_even_if_one_dies() -> None:
    worlds = tiny_worlds()
    worker = WorkerProcess(worlds.factory, worlds.spec, 2, [0, 1], PATIENT)
    evaluators = [HostEvaluator(worlds, HOST_CAST, "all", {}, RemoteGroup(worker, slot)) for slot in (0, 1)]
    run = started(LocalCrew(evaluators, [worker]))
    log = [run.dispatch(run, [0])[1]]
    assert worker._process is not None
    worker._process.kill()  # found out while the next generation is played
    log.append(run.dispatch(run, [0])[1])
    assert worker.restarts == 1
    assert any("died" in words for _, _, words in run.take_events())
    run.close()
    expected = drive(started(host_crew(1)), 2)
    for result, known in zip(log, expected, strict=True):
        assert {tag: value.tolist() for tag, value in result.metrics["all"].items()}.items() <= known.items()
        assert result.env_steps.tolist() == known["env_steps"]


def test_seeds_do_not_see_each_other() -> None:
    both = drive(started(jax_crew(1), CAST, (0, 1)), 2)
    alone = drive(started(jax_crew(1), CAST, (1,)), 2)
    for together, own in zip(both, alone, strict=True):
        assert {name: value[1:] for name, value in together.items()} == own


def test_several_generations_a_dispatch_are_the_same_search() -> None:
    one, three = started(jax_crew(1), CAST), started(jax_crew(1), CAST, generations=3)
    log = drive(one, 3)
    (whole,) = drive(three, 1)
    assert whole["env_steps"][0] == sum(row["env_steps"][0] for row in log)
    for a, b in zip(*(jax.tree.leaves(run.published(run, 0)) for run in (one, three)), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what is played ------------------------------------------------------------------------------------------------


def task_of(size: int, episodes: int, lanes: int = 64) -> Task:
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), episodes)))
    (task,) = cut(Round("r", size, episodes), lanes, np.arange(size, dtype=np.uint32), keys)
    return task


def test_an_episode_is_the_same_for_all_individuals_and_counts_are_exact() -> None:
    crew = host_crew(1, lanes=3)
    shared = jax.device_get(HOST_SEARCH.publish(HOST_SEARCH.init(jax.random.key(0))))
    played = evaluate(crew.evaluators[0], shared, task_of(4, 3))
    # How long an episode of this world is follows from its seed alone.
    np.testing.assert_array_equal(played.length, np.broadcast_to(played.length[0], (4, 3)))
    np.testing.assert_array_equal(played.agent_steps, 3 * played.length)
    alone = evaluate(crew.evaluators[0], shared, task_of(1, 3))
    np.testing.assert_allclose(alone.returns["one"][0], played.returns["one"][0], rtol=1e-6)
    crew.close()


def test_a_jax_world_is_played_as_in_an_evaluation() -> None:
    shared = jax.device_get(SEARCH.publish(SEARCH.init(jax.random.key(0))))
    task = task_of(2, 2)
    played = evaluate(JaxEvaluator(CREDIT, CAST, "all", {}), shared, task)
    params = jax.tree.map(lambda x: x[1], decode_all(SEARCH, shared, task.offspring))
    keys = jax.random.wrap_key_data(task.keys, impl="threefry2x32")
    known = Evaluator(CREDIT, {"all": SEARCH.policy}, greedy=False)._run({"all": params}, keys)
    for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(played), strict=True):
        np.testing.assert_allclose(b[1], a, rtol=1e-6)


def test_a_world_in_python_is_played_as_in_an_evaluation() -> None:
    crew = host_crew(1)
    shared = jax.device_get(HOST_SEARCH.publish(HOST_SEARCH.init(jax.random.key(0))))
    keys = np.asarray(jax.random.key_data(episode_keys("test", 0, 3)))
    (task,) = cut(Round("r", 2, 3), 8, np.arange(2, dtype=np.uint32), keys)
    played = evaluate(crew.evaluators[0], shared, task)
    crew.close()
    params = jax.tree.map(lambda x: x[1], decode_all(HOST_SEARCH, shared, task.offspring))
    policies = {"all": HOST_SEARCH.policy}
    known = EvaluationOfHosts(tiny_worlds(), policies, greedy=False, faults=PATIENT, lanes=2)
    for a, b in zip(jax.tree.leaves(known.run({"all": params}, "test", 3)), jax.tree.leaves(played), strict=True):
        np.testing.assert_allclose(b[1], a, rtol=1e-6)
    known.close()


def test_one_individual_decodes_to_its_row_of_all() -> None:
    shared = SEARCH.publish(SEARCH.init(jax.random.key(0)))
    seeds = np.arange(5, dtype=np.uint32)
    whole, one = decode_all(SEARCH, shared, seeds), decode_all(SEARCH, shared, seeds[2:3])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(a[2], b[0])


def test_a_world_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Credit()
    monkeypatch.setattr(type(endless), "max_steps", None)
    with pytest.raises(UserError, match="no max_steps"):
        JaxEvaluator(endless, CAST, "all", {})


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_an_episode_that_always_fails_ends_at_its_last_good_row() -> None:
    crew = host_crew(1, fault="raise", at=2, every=1)
    run = started(crew)
    _, result = run.dispatch(run, [0])
    assert result.env_steps[0] == result.episodes[0] == 5 * 2 + 2 * 2
    events = run.take_events()
    assert len(events) == 2 * result.episodes[0]
    assert "the tiny world broke" in events[0][2]
    run.close()


def test_worlds_that_fail_too_often_stop_the_run() -> None:
    run = started(host_crew(1, faults=FaultPolicy(share=0.0, grace=1), fault="raise", every=1))
    with pytest.raises(WorldError, match="so the run stops"):
        run.dispatch(run, [0])
    run.close()


def test_what_is_not_a_number_is_the_lowest_fitness() -> None:
    episode = EpisodeResult({}, jnp.zeros(()), jnp.zeros(()), {})
    fitness = jnp.array([[1.0, 3.0], [jnp.nan, 9.0]])
    assert mean_fitness(Evaluation(fitness, jnp.zeros((2, 2, 0)), episode)).tolist() == [2.0, -np.inf]


# ---- checkpoint ----------------------------------------------------------------------------------------------------


def test_a_resumed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = drive(started(host_crew(1)), 4)
    first = started(host_crew(1))
    begun = [first.dispatch(first, [0])[1] for _ in range(2)]
    path = checkpoint.save(tmp_path, 7, first.snapshot(first), {"progress": {}})
    first.close()
    second = started(host_crew(2))
    second, header = second.load(path, second)
    assert header["progress"] == {}
    assert [result.env_steps.tolist() for result in begun] == [row["env_steps"] for row in whole[:2]]
    assert drive(second, 2) == whole[2:]


@pytest.mark.parametrize(("kind", "look"), [("host", 40), ("jax", 28)])
def test_a_generation_that_was_abandoned_has_not_happened(kind: str, look: int) -> None:
    def make() -> PopulationRun:
        if kind == "host":
            return started(host_crew(1), seeds=(0, 1))
        return started(jax_crew(1), CAST, (0, 1))

    expected, run = drive(make(), 2), make()
    looks = 0

    def soon() -> bool:
        nonlocal looks
        looks += 1
        return looks == look

    run.should_stop = soon  # the second seed is under way by then
    while True:
        before = run.snapshot(run)
        _, result = run.dispatch(run, [0, 0])
        if not result.env_steps.any():
            break
    assert looks == look
    assert result.updates["all"].tolist() == [0, 0]
    again = drive(make().restore(before), 1)
    assert again == expected[before["runs"][0]["generation"] :][:1]
    run.close()


def test_a_checkpoint_of_another_search_is_refused() -> None:
    run, other = started(host_crew(1)), started(jax_crew(1), CAST)
    with pytest.raises(CheckpointError, match="other shapes"):
        run.restore(other.snapshot(other))
    run.close()
