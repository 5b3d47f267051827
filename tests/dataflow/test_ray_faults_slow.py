"""What else goes wrong on Ray: crash loops, worlds that raise or hang, stragglers, updates that are not finite, an
object store that is full; and a soak with a fault every few seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.errors import RunError, WorldError
from marl.dataflow.arena import unpack
from marl.dataflow.chunks import Chunk
from marl.dataflow.ray_crew import now
from marl.dataflow.ray_session import Session, SessionOptions
from marl.dataflow.shells import LearnerJob, LearnerShell

from . import tiny_mesh
from .ray_faults import (
    all_ready,
    assert_books,
    bound,
    events_of,
    hand_of,
    kill,
    params_of,
    pid_of,
    running,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    joined = Session(SessionOptions(cpus=4, object_store_bytes=80 * 2**20))
    yield joined
    joined.close()


def test_an_actor_that_keeps_dying_is_given_up_and_too_few_actors_end_the_run(session: Session) -> None:
    """F2."""
    with running(session.folder, give_up=(2, 600.0)) as run:
        run.run(1)
        for _ in range(2):
            wait_for(run, all_ready(run), bound(60))
            kill(pid_of(hand_of(run, 0)))
            lost = run.actors.lost
            wait_for(run, lambda lost=lost: run.actors.lost > lost, bound(60))
        assert hand_of(run, 0).start_at is None
        assert "is given up" in events_of(run)["actor lost"][-1]
        run.run(3)  # by the one that is left
        assert_books(run)
        kill(pid_of(hand_of(run, 1)))
        lost = run.actors.lost
        wait_for(run, lambda: run.actors.lost > lost, bound(60))
        wait_for(run, lambda: run.actors.ready == 1, bound(60))
        kill(pid_of(hand_of(run, 1)))
        with pytest.raises(RunError, match=r"0 of 2 actors are left, and dataflow.min_actors is 1"):
            run.run(100)


def test_worlds_that_raise_are_begun_anew_in_the_same_process(session: Session) -> None:
    """F3."""
    with running(session.folder, {"fault": "raise", "every": 3}) as run:
        pids = [pid_of(hand) for hand in run.actors.hands]
        run.run(8)
        seen = events_of(run)
        assert "the tiny world broke" in seen["world fault"][0]
        assert set(seen) == {"world fault"}
        assert [pid_of(hand) for hand in run.actors.hands] == pids
        assert_books(run)
    with (
        running(session.folder, {"fault": "raise", "every": 1}, faults=(0.05, 3, 60.0)) as run,
        pytest.raises(WorldError, match="so the run stops"),
    ):
        run.run(20)


def test_a_world_that_hangs_is_begun_anew_in_the_same_process(session: Session) -> None:
    """F4, where the interpreter can be interrupted."""
    with running(session.folder, {"fault": "hang", "every": 5}, faults=(1.0, 10**6, 0.3)) as run:
        pids = [pid_of(hand) for hand in run.actors.hands]
        run.run(6)
        assert "did not answer within 0.3 s" in events_of(run)["world fault"][0]
        assert [pid_of(hand) for hand in run.actors.hands] == pids
        assert_books(run)


def test_an_actor_that_hangs_for_good_is_ended_and_replaced(session: Session) -> None:
    """F4, where it cannot."""
    with running(session.folder, faults=(1.0, 10**6, 1.0)) as run:
        run.actors.clock.floor_s = 1.0
        run.run(10)
        hanging = pid_of(hand_of(run, 0))
        kill(hanging, number=signal.SIGSTOP)
        began = time.monotonic()
        wait_for(run, lambda: run.actors.lost == 1, bound(30))
        limit = max(run.actors.clock.late_after(), 1.0)
        assert time.monotonic() - began < bound(limit + 3)
        wait_for(run, all_ready(run), bound(60))
        seen = events_of(run)
        assert "did not answer for" in seen["actor lost"][0]
        assert pid_of(hand_of(run, 0)) != hanging
        kill(hanging, number=signal.SIGCONT)  # a process that is stopped cannot even end
        deadline = time.monotonic() + bound(20)
        while os.path.exists(f"/proc/{hanging}"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert_books(run)


@pytest.mark.parametrize("options", [{}, {"servers": 1, "max_staleness": 1}], ids=["inline", "served"])
def test_the_work_of_a_straggler_is_done_by_others_and_what_it_brings_late_is_refused(
    session: Session, options: dict[str, Any]
) -> None:
    """F6; a server that is new has the parameters that the straggler still acts with."""
    with running(session.folder, **options) as run:
        run.actors.clock.floor_s = 0.5
        run.run(10)
        slow = pid_of(hand_of(run, 0))
        kill(slow, number=signal.SIGSTOP)
        kill(slow, after_s=4.0, number=signal.SIGCONT)
        began = time.monotonic()
        run.run(5)
        assert time.monotonic() - began < bound(2.5)  # not the four seconds that it is away
        assert len(events_of(run)["straggler"]) >= 1
        if options:
            kill(pid_of(run.servers.servers[0]))
        while not any(name == "late chunk" for name, _ in run.events):
            run.run(1)
            assert time.monotonic() - began < bound(30)
        assert run.actors.lost == 0
        assert run.ledger.lost["chunks"] >= 1
        assert run.ledger.lost["frames"] > 0
        assert pid_of(hand_of(run, 0)) == slow
        assert_books(run)


def test_nobody_is_late_while_the_program_itself_was_away(session: Session) -> None:
    """It evaluates for minutes, say: answers that wait to be heard were given in time."""
    with running(session.folder, max_staleness=1, faults=(1.0, 10**6, 0.5)) as run:
        run.actors.clock.floor_s = 0.5
        run.run(10)
        assert run.actors.calls
        time.sleep(2.0)
        run.run(3)
        assert events_of(run) == {}
        assert_books(run)


def test_updates_that_are_not_finite_are_never_published_and_end_the_run_after_two_rollbacks(
    session: Session, tmp_path: Path
) -> None:
    """F9."""
    with running(session.folder, {"fault": "huge", "every": 1, "at": 1}) as run:
        run.learner.post_mortem = tmp_path / "logs"
        first = params_of(run)

        def train() -> None:
            for _ in range(20):
                run.run(1)
                assert all(np.isfinite(leaf).all() for leaf in params_of(run))

        with pytest.raises(RunError, match=r"has diverged: 3 updates in a row were not finite") as caught:
            train()
        assert "\n" not in str(caught.value)
        assert len(events_of(run)["rolled back"]) == 2
        assert run.ledger.rollbacks == 2
        for one, other in zip(params_of(run), first, strict=True):
            np.testing.assert_array_equal(one, other)
        saved = sorted((tmp_path / "logs").glob("not-finite-*.arena"))
        chunks = [Chunk.restored(tree) for tree in unpack(np.fromfile(saved[0], np.uint8))]
        assert max(float(chunk.trajectory.step.reward["one"].max()) for chunk in chunks) > 1e38


def test_a_learner_that_went_back_learns_more_slowly() -> None:
    """F9: by half, where the learning rate is part of its state."""
    blueprint = tiny_mesh.blueprint(ppo=True)
    job = LearnerJob(seed=0, batch=2, ordered=True, capacity=8, identity=blueprint.identity())
    learner = LearnerShell(blueprint, job)
    about, _ = learner.start(0, None)
    assert not about["slower"]
    core: Any = learner.trainer.stages["all"].learner
    before = float(core.state.hyper["learning_rate"])
    about, _ = learner.start(1, learner.snapshot(), 0.5)
    assert about["slower"]
    assert float(core.state.hyper["learning_rate"]) == pytest.approx(before / 2)


def test_rollouts_wait_while_the_object_store_is_full_and_spilling_is_told(session: Session) -> None:
    """F11."""
    import ray

    with running(session.folder, max_staleness=1) as run:
        run.run(2)
        assert run.store.spilled == 0
        block = ray.put(np.zeros(60 * 2**20, np.uint8))
        wait_for(run, lambda: run.store.full, bound(30))
        assert "no rollouts are begun" in events_of(run)["store full"][0]
        run.run(5)  # it goes on, one rollout after another
        assert run.store.spilled == 0
        more = ray.put(np.zeros(30 * 2**20, np.uint8))
        wait_for(run, lambda: run.store.spilled > 0, bound(30))
        (words,) = events_of(run)["store spilling"]
        assert "dataflow.object_store" in words
        del block, more
        wait_for(run, lambda: not run.store.full, bound(30))
        assert_books(run)


def test_an_idle_actor_that_dies_is_noticed_by_its_heartbeat(session: Session) -> None:
    with running(session.folder, heartbeat_s=0.5) as run:
        run.run(1)
        kill(pid_of(hand_of(run, 1)))
        began = now()
        while not run.actors.lost:
            run.actors.look_after()
            if run.actors.references():
                run._hear(0.1)
            assert now() - began < bound(10)
        assert run.actors.calls is False
        wait_for(run, all_ready(run), bound(60))
        assert_books(run)


def test_a_soak_with_faults_keeps_its_books_and_its_memory(tmp_path: Path, repository: Path) -> None:
    """F20: MARL_SOAK_S seconds of it, a fault every few. After it nothing is left."""
    seconds = float(os.environ.get("MARL_SOAK_S", "120"))
    out = tmp_path / "soak.json"
    every = min(seconds / 12, 20.0)
    command = [sys.executable, "-m", "tests.dataflow.ray_soak"]
    command += ["--seconds", str(seconds), "--every", str(every), "--out", str(out)]
    before = set(Path("/tmp").glob("marl-ray-*"))
    program = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=seconds + 300, check=False
    )
    assert program.returncode == 0, program.stdout + program.stderr
    found = json.loads(out.read_text())
    assert found["exact"]
    assert found["faults_total"] >= min(30, seconds / every - 5)
    assert found["spilled_bytes"] == 0
    assert found["memory_growth"] < (0.03 if seconds >= 600 else 0.1)
    assert not set(Path("/tmp").glob("marl-ray-*")) - before
