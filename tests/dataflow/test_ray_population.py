"""Evaluators on Ray: one or four, killed or stopped, the log is that of the local placement."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from marl.core.errors import MarlError
from marl.core.host_group import FaultPolicy
from marl.dataflow.parts import Blueprint
from marl.dataflow.population import PopulationRun
from marl.dataflow.population_crew import Crew, LocalCrew
from marl.dataflow.population_shell import EvaluatorJob, make_evaluator
from marl.runner.build import resolved
from marl.runner.load import config_from
from marl.runner.plan import make_plan

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]

LANES = 8
CONFIG = {
    "name": "population",
    "env": {"id": "gymnasium:CartPole-v1"},
    "agents": {
        "all": {
            "algorithm": "random_search",
            "population": 40,
            "candidates": 4,
            "candidate_episodes": 4,
            "hidden_sizes": [8],
        }
    },
    "dataflow": {"kind": "local", "num_envs": LANES},
    "stop": {"env_steps": 1},
}
PLAN = make_plan(config_from(CONFIG))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from marl.dataflow.ray_session import Session, SessionOptions

    session = Session(SessionOptions(cpus=6, object_store_bytes=100 * 2**20))
    yield
    session.close()


def on_ray(count: int, identity: str = "", **options: Any) -> Any:
    from marl.dataflow.ray_population import RayEvaluatorOptions, RayEvaluators

    data = resolved(PLAN).model_dump(mode="json")
    blueprint = Blueprint("marl.runner.parts:make_parts", {"config": data}, tuple(sys.path))
    job = EvaluatorJob("all", LANES, (0.05, 3, 60.0), identity or blueprint.identity())
    return RayEvaluators(blueprint, job, RayEvaluatorOptions(count, **options))


def log_of(crew: Crew, generations: int = 3, disturb: Any = lambda generation: None) -> list[dict[str, float]]:
    run = PopulationRun("all", PLAN.policies, {}, crew, [0], task_size=2 * LANES).init()
    log = []
    for generation in range(generations):
        disturb(generation)
        _, result = run.dispatch(run, [0])
        counts = {"env_steps": result.env_steps, "episodes": result.episodes}
        log.append({name: float(np.asarray(x)[0]) for name, x in {**result.metrics["all"], **counts}.items()})
    return log


@pytest.fixture(scope="module")
def expected() -> list[dict[str, float]]:
    """The log of the local placement."""
    assert PLAN.host is not None
    crew = LocalCrew([make_evaluator(PLAN.host, PLAN.policies, "all", {}, LANES, FaultPolicy())])
    log = log_of(crew)
    crew.close()
    return log


@pytest.mark.usefixtures("cluster")
def test_one_and_four_evaluators_give_the_log_of_the_local_placement(expected: list[dict[str, float]]) -> None:
    for count in (1, 4):
        crew = on_ray(count)
        assert log_of(crew) == expected
        assert crew.replaced == 0
        crew.close()


@pytest.mark.usefixtures("cluster")
def test_evaluators_that_are_killed_or_stopped_change_nothing(expected: list[dict[str, float]]) -> None:
    crew = on_ray(2, slow_s=1.0)
    stopped: list[int] = []

    def disturb(generation: int) -> None:
        pids = [member.about["pid"] for member in crew.members if member.about]
        if generation == 1:
            os.kill(pids[0], signal.SIGKILL)
        elif generation == 2:  # it takes a task and never answers
            stopped.append(pids[-1])
            os.kill(stopped[0], signal.SIGSTOP)

    try:
        assert log_of(crew, disturb=disturb) == expected
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert crew.replaced == 1
    assert crew.reissued == 1
    assert [name for name, _ in crew.take_events()] == ["evaluator replaced", "straggler"]
    crew.close()


@pytest.mark.usefixtures("cluster")
def test_what_goes_wrong_in_an_evaluator_ends_the_run_in_one_line() -> None:
    crew = on_ray(1, identity="another")
    with pytest.raises(MarlError, match=r"^this process runs other code or another experiment") as caught:
        log_of(crew, 1)
    assert "\n" not in str(caught.value)
    crew.close()
