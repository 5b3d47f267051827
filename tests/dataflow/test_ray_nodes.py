"""Nodes that come and go under a run: two and more Ray nodes on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marl.dataflow.ray_crew import ProcessOptions
from marl.dataflow.ray_run import RayRun
from marl.dataflow.ray_session import Session, SessionOptions

from .ray_faults import all_ready, assert_books, bound, events_of, hand_of, pid_of, running, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.fault,
    pytest.mark.slow,
    # A socket that Ray's own test cluster looks for a port with.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HEAD_CPUS = 2
LOST_AFTER_S = 90.0
# A node that says nothing for two seconds is lost; Ray's own patience is half a minute.
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 1000,
}
STORE = 80 * 2**20


class Nodes:
    """A cluster of which every node is a process here, joined by this one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": HEAD_CPUS, "object_store_memory": STORE, "_system_config": QUICK}
        head["include_dashboard"] = False
        self.cluster: Any = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.session = Session(SessionOptions(address=self.cluster.address))

    def add(self, cpus: int) -> Any:
        return self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE)

    def remove(self, node: Any) -> None:
        """The node vanishes without a word."""
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self.session.close()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        if "RAY_AUTH_MODE" not in os.environ:
            patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Nodes()
        yield made
        made.close()
    shutil.rmtree(folder, ignore_errors=True)


def node_of(pid: int) -> int:
    """The process that started it: its node's."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def train_until(run: RayRun, what: Any) -> float:
    return wait_for(run, what, bound(LOST_AFTER_S))


def test_actors_join_when_a_node_comes_and_the_run_goes_on_when_it_is_lost(nodes: Nodes) -> None:
    """F19 and F10: the head has room for the learner and one actor of two."""
    whole = ProcessOptions(cpus=1.0)
    with running(None, actor=whole, learner=whole, heartbeat_s=1.0) as run:
        assert run.actors.ready == 1
        run.run(2)  # by the one that is there
        train_until(run, lambda: run.actors.hands[1].absent or run.actors.hands[0].absent)
        second = nodes.add(1)
        train_until(run, all_ready(run))
        seen = events_of(run)
        assert "waits for 1 free CPUs" in seen["actor waits"][0]
        assert len(seen["actor joined"]) == 1
        assert len(seen["not reproducible"]) == 1
        run.run(3)
        assert_books(run)

        nodes.remove(second)
        began = time.monotonic()
        train_until(run, lambda: run.actors.lost == 1)
        assert time.monotonic() - began < bound(LOST_AFTER_S)
        run.run(3)
        assert run.actors.ready == 1
        assert_books(run)

        third = nodes.add(1)
        train_until(run, all_ready(run))
        run.run(2)
        assert_books(run)
    nodes.remove(third)


def test_chunks_that_are_lost_with_their_node_are_counted_and_the_learner_lives(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10: they were brought, and the node went before the learner had fetched them."""
    second, third = nodes.add(1), nodes.add(1)
    whole = ProcessOptions(cpus=1.0)
    # The head has room for the learner only. Large chunks stay in their node's store; small ones travel with answers.
    with running(None, actor=whole, learner=ProcessOptions(cpus=2.0), num_envs=2048, heartbeat_s=1.0) as run:
        train_until(run, all_ready(run))
        learner = pid_of(run.learner)
        raylet = second.all_processes["raylet"][0].process.pid
        (there,) = [hand for hand in run.actors.hands if node_of(pid_of(hand)) == raylet]
        run.run(1)
        offer, held = run.learner.offer, []

        def late(goal: int, *chunks: Any) -> None:
            if chunks and chunks[3] is there and not held:
                held.append(chunks)
                nodes.remove(second)
                time.sleep(1.0)
            offer(goal, *chunks)

        monkeypatch.setattr(run.learner, "offer", late)
        train_until(run, lambda: run.actors.lost == 1)
        run.run(2)
        seen = events_of(run)
        assert len(seen.get("chunk lost", ())) == 1, seen
        assert f"actor {there.index}" in seen["chunk lost"][0]
        assert run.ledger.lost["frames"] == sum(held[0][1].values())
        assert run.ledger.learners == 0
        assert pid_of(run.learner) == learner
        assert_books(run)
    nodes.remove(third)


def test_a_learner_that_is_lost_with_its_node_goes_on_elsewhere(nodes: Nodes) -> None:
    """F10 and F7."""
    second = nodes.add(3)
    quarter = ProcessOptions(cpus=0.25)
    with running(None, actor=quarter, learner=ProcessOptions(cpus=3.0), heartbeat_s=1.0) as run:
        run.snapshot()
        run.run(3)
        version = run.version
        nodes.add(3)
        nodes.remove(second)
        took = train_until(run, lambda: run.ledger.learners == 1 and run.actors.ready == 2)
        assert took < bound(LOST_AFTER_S)
        run.run(2)
        assert run.version > version
        assert len(events_of(run)["learner restarted"]) == 1
        assert hand_of(run, 0).ready
        assert_books(run)
