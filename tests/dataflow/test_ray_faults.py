"""Parts of a run on Ray that are killed while it trains: an actor, the policy server, the learner; and chunks that
arrive twice or damaged. Training goes on within bounds, and every chunk is trained on once or counted as lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from marl.core.errors import RunError
from marl.dataflow.ray_run import RayRun
from marl.dataflow.ray_session import Session, SessionOptions

from . import tiny_parts
from .ray_faults import all_ready, assert_books, bound, events_of, hand_of, kill, pid_of, start_run, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.long]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    joined = Session(SessionOptions(cpus=4, object_store_bytes=80 * 2**20))
    yield joined
    joined.close()


@pytest.fixture(scope="module")
def run(session: Session) -> Iterator[RayRun]:
    """Two actors, one policy server, one learner: every test leaves them as it found them."""
    started = start_run(session.folder, servers=1)
    started.run(2)
    yield started
    started.close()


def test_an_actor_that_is_killed_is_replaced_while_the_other_does_its_work(run: RayRun) -> None:
    """F1."""
    before = run.actors.lost
    kill(pid_of(hand_of(run, 0)))
    began = time.monotonic()
    run.run(1)
    assert time.monotonic() - began < bound(5)
    took = wait_for(run, lambda: run.actors.lost > before and all_ready(run)(), bound(30))
    assert took < bound(5) + 5
    run.run(2)
    seen = events_of(run)
    assert len(seen["actor lost"]) == len(seen["actor restarted"]) == 1
    assert "actor 0: its process died" in seen["actor lost"][0]
    assert len(seen["not reproducible"]) == 1
    assert_books(run)


def test_a_policy_server_that_is_killed_is_replaced_and_nothing_is_lost(run: RayRun) -> None:
    """F5."""
    lost = run.actors.lost, dict(run.ledger.lost)
    kill(pid_of(run.servers.servers[0]))
    began = time.monotonic()
    run.run(2)
    assert time.monotonic() - began < bound(10)
    assert list(events_of(run)) == ["policy server restarted"]
    assert (run.actors.lost, run.ledger.lost) == lost
    assert_books(run)


def test_a_learner_that_is_killed_goes_on_from_the_last_checkpoint(run: RayRun) -> None:
    """F7: while it works, and once more while nobody asks anything of it."""
    run.snapshot()
    run.run(3)
    good, version = run.learner.good["learned"], run.version
    assert run.learner.learned == good + 3
    timer = kill(pid_of(run.learner), after_s=0.02)
    versions = [version]
    deadline = time.monotonic() + bound(30)
    while not run.ledger.learners:
        run.run(1)
        versions.append(run.version)
        assert time.monotonic() < deadline
    timer.join()
    assert all(before < after for before, after in itertools.pairwise(versions))
    (words,) = events_of(run)["learner restarted"]
    assert "updates before" in words
    assert run.ledger.lost["chunks"] >= 3 * run.options.slots  # what was learned since the checkpoint, and counted
    assert_books(run)


def test_a_chunk_that_comes_twice_is_trained_on_once(run: RayRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """F18."""
    offer, offered = run.learner.offer, []

    def twice(goal: int, *chunks: Any) -> None:
        offer(goal, *chunks)
        if chunks and not offered:
            offered.append(chunks)
            tickets, _, arenas, hand = chunks
            offer(goal, tickets, {}, arenas, hand)

    monkeypatch.setattr(run.learner, "offer", twice)
    run.run(2)
    assert len(offered) == 1
    rejected = events_of(run)["chunk rejected"]
    assert len(rejected) == len(offered[0][0])
    assert all("duplicate" in words for words in rejected)
    assert_books(run)


def test_a_damaged_chunk_is_refused_and_its_actor_remembered(run: RayRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """F16."""
    import ray

    offer, damaged = run.learner.offer, []

    def torn(goal: int, *chunks: Any) -> None:
        if chunks and not damaged:
            tickets, frames, arenas, hand = chunks
            arena = np.array(ray.get(arenas[0]))
            arena[-100] ^= 255
            damaged.append(frames)
            chunks = (tickets, frames, [ray.put(arena)], hand)
        offer(goal, *chunks)

    monkeypatch.setattr(run.learner, "offer", torn)
    before = dict(run.ledger.lost)
    run.run(2)
    (words,) = events_of(run)["damaged chunk"]
    assert "actor" in words
    assert "CRC" in words
    assert sum(hand.damaged for hand in run.actors.hands) == 1
    assert run.ledger.lost["frames"] - before["frames"] == sum(damaged[0].values())
    assert_books(run)


def test_a_process_of_another_version_is_refused_in_one_sentence(session: Session) -> None:
    """F17: it is not an actor that dies again and again."""
    other = tiny_parts.blueprint(policy="tiny", world={})
    from marl.dataflow.ray_crew import ProcessOptions, Remote
    from marl.dataflow.shells import ActorJob, ActorShell

    job = ActorJob(0, 4, 2, (0, 1), 0, False, (1.0, 1, 60.0), identity="another")
    actor = Remote(ActorShell, (other, job), ProcessOptions(cpus=0.25))
    with pytest.raises(RunError, match=r"^this process runs other code or another experiment") as caught:
        actor.ask("start", 0, np.zeros(0, np.uint8))
    actor.kill()
    assert "\n" not in str(caught.value)
