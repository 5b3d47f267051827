"""What the driver makes of answers that came while it was at something else, without a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marl.dataflow import ray_actors, ray_learner
from marl.dataflow.learning import Counts, plain_counts, tree_of
from marl.dataflow.ray_actors import Actors, Call, RayOptions
from marl.dataflow.ray_crew import now
from marl.dataflow.ray_learner import LearnerSeat, Offer
from marl.dataflow.ray_ledger import Ledger
from marl.dataflow.tickets import Ticket, Tickets


class FakeRemote:
    """A process that is there. skipped: updates that it threw away in a row."""

    def __init__(self) -> None:
        self.killed, self.skipped, self.snapshot = False, 0, np.zeros(1)

    def kill(self) -> None:
        self.killed = True

    def ask(self, method: str) -> Any:
        return {"skipped": self.skipped} if method == "health" else self.snapshot

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        return {"slower": False}, None


OPTIONS = RayOptions(num_envs=2, slots=2, actors=2, max_staleness=1)


def seat() -> LearnerSeat:
    own: Any = None
    made = LearnerSeat(own, "", OPTIONS, 0, Tickets(2, 1), Ledger())
    made.remote = FakeRemote()  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("away_s", [15.0, 700.0])
@pytest.mark.parametrize("there", [True, False])
def test_an_answer_that_waited_for_the_driver_is_not_late(
    monkeypatch: pytest.MonkeyPatch, away_s: float, there: bool
) -> None:
    monkeypatch.setattr(ray_actors, "silent", lambda reference: not there)
    given_up: list[Call] = []
    blueprint: Any = None
    actors = Actors(
        blueprint, "", 1, OPTIONS, 0, newest=lambda: (0, None), endpoints=lambda _: None, give_up=given_up.append
    )
    for _ in range(20):
        actors.clock.add(0.2)
    remotes = [FakeRemote() for _ in actors.hands]
    for hand, remote in zip(actors.hands, remotes, strict=True):
        hand.remote, hand.start_at, hand.answers = remote, None, 20  # type: ignore[assignment]
        hand.calls[object()] = Call([Ticket(1 + hand.index, hand.index, 0)], 0, 0, now() - away_s, [])
    actors.look_after()
    assert len(given_up) == (0 if there else 2)
    assert [remote.killed for remote in remotes] == [not there and away_s > 60.0] * 2


@pytest.mark.parametrize("there", [True, False])
def test_a_learner_whose_answer_waited_for_the_driver_lives(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(ray_learner, "silent", lambda reference: not there)
    learner, lost = seat(), list[str]()
    monkeypatch.setattr(learner, "lost", lost.append)
    learner.offers[object()] = Offer([], {}, None, None, now() - 2 * OPTIONS.call_limit_s)
    learner.look_after(1)
    assert len(lost) == (not there)


def test_a_run_that_was_resumed_never_goes_back_to_a_fresh_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_learner, "get", lambda reference: reference)
    learner = seat()
    learner.keep()
    learner.remote.skipped, learner.remote.snapshot = 1, np.ones(1)  # type: ignore[union-attr]
    learner.restore("stored", 500, 499)
    assert learner.good["learner"].tolist() == [1.0]
    assert learner.good["learned"] == 499


def test_counts_travel_as_a_plain_tree() -> None:
    make: Any = Counts
    counts = make(np.int64(8), np.int64(16), np.int64(1), {"all": np.float64(2.0)}, np.int64(8), {})
    assert plain_counts(tree_of(counts)) == counts
