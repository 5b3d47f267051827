"""What became of chunks, and when something that was lost is worth starting again."""

from __future__ import annotations

import pytest

from marl.dataflow.ray_crew import Clock, Losses
from marl.dataflow.ray_ledger import Ledger


def test_what_is_offered_is_taken_or_lost_whatever_the_learner_goes_back_to() -> None:
    ledger = Ledger()
    ledger.offer({1: 8, 2: 7})
    assert not ledger.exact  # the learner has not answered
    ledger.settle({1: 8, 2: 7}, {1})
    assert ledger.exact
    assert (ledger.taken, ledger.lost) == ({"chunks": 1, "frames": 8}, {"chunks": 1, "frames": 7})
    good = dict(ledger.taken)
    ledger.offer({3: 5, 4: 6})
    ledger.settle({3: 5}, {3})  # and 4 is on its way
    assert ledger.go_back(good) == {"chunks": 2, "frames": 11}
    assert ledger.exact
    again = Ledger()
    again.restore(ledger.snapshot())
    assert again.tags() == ledger.tags()
    assert again.exact


def test_a_part_that_is_lost_too_often_within_a_while_is_given_up() -> None:
    losses = Losses(limit=(3, 10.0))
    assert [losses.note(at) for at in (0.0, 1.0, 2.0)] == [0.5, 1.0, None]
    spread = Losses(limit=(3, 10.0))
    assert None not in [spread.note(at) for at in (0.0, 9.0, 18.0, 27.0)]
    assert spread.total == 4


def test_a_call_is_late_after_three_times_what_the_slowest_usually_take() -> None:
    clock = Clock(factor=3.0, floor_s=1.0)
    assert clock.late_after() == float("inf")
    for _ in range(20):
        clock.add(0.1)
    assert clock.late_after() == 1.0
    for _ in range(20):
        clock.add(2.0)
    assert clock.late_after() == pytest.approx(6.0)
