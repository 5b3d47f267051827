"""Tickets bound staleness, and no number is lost or given to two."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.dataflow.tickets import Ticket, Tickets

from .made import through_a_file

quick = settings(deadline=None, derandomize=True, max_examples=150)


def issued(tickets: Tickets, version: int, limit: int = 100) -> list[int]:
    found = []
    while len(found) < limit and (ticket := tickets.issue(0, version)):
        found.append(ticket.number)
    return found


@pytest.mark.parametrize(
    ("max_staleness", "version", "count"), [(0, 0, 4), (0, 1, 8), (1, 0, 8), (2, 3, 24), (None, 0, 100)]
)
def test_tickets_are_issued_up_to_the_bound(max_staleness: int | None, version: int, count: int) -> None:
    assert issued(Tickets(4, max_staleness), version) == list(range(1, count + 1))


def test_returned_numbers_go_first_lowest_first() -> None:
    tickets = Tickets(4, 0)
    out = [tickets.issue(slot, 0) for slot in range(4)]
    assert tickets.issue(9, 0) is None
    for ticket in (out[2], out[0]):
        assert ticket is not None
        tickets.cancel(ticket)
    assert [t.number for t in (tickets.issue(7, 0), tickets.issue(8, 0)) if t] == [1, 3]
    assert tickets.issue(9, 0) is None


def test_a_late_chunk_of_a_cancelled_ticket_is_recognised() -> None:
    tickets = Tickets(1, 0)
    late = tickets.issue(0, 0)
    assert late is not None
    tickets.cancel(late)
    again = tickets.issue(1, 0)
    assert again == Ticket(1, 1, 0)
    assert not tickets.holds(late)
    with pytest.raises(ValueError, match="not out"):
        tickets.complete(late)
    tickets.complete(again)
    assert tickets.completed == 1
    with pytest.raises(ValueError, match="not out"):
        tickets.complete(again)


def test_a_dropped_chunks_ticket_is_reopened_once() -> None:
    tickets = Tickets(2, 0)
    ticket = tickets.issue(0, 0)
    assert ticket is not None
    for number in (0, 1, 2):  # none of them is completed
        with pytest.raises(ValueError, match="not completed"):
            tickets.reopen(number)
    tickets.complete(ticket)
    tickets.reopen(1)
    with pytest.raises(ValueError, match="not completed"):
        tickets.reopen(1)
    assert tickets.issue(3, 5) == Ticket(1, 3, 5)


def test_all_tickets_of_a_dead_slot_come_back() -> None:
    tickets = Tickets(6, 0)
    for slot in (0, 1, 0, 1, 0):
        tickets.issue(slot, 0)
    assert tickets.cancel_slot(0) == 3
    assert [t.slot for t in tickets.outstanding] == [1, 1]
    assert tickets.returned == 3


def test_sizes_out_of_range_are_refused() -> None:
    for batch, staleness in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match="batch >= 1"):
            Tickets(batch, staleness)


def test_an_overtaken_chunk_is_not_trained_on_too_late() -> None:
    """Chunks are trained on as they come, one an update; the first one takes longer than all others."""
    tickets, version = Tickets(1, 2, ordered=False), 0
    slow = tickets.issue(0, version)
    while version < 10 and (ticket := tickets.issue(1, version)) is not None:
        tickets.complete(ticket)
        version += 1
    assert slow is not None
    assert version == 2  # the bound; the consecutive order would have held the learner at 0
    tickets.complete(slow)
    assert tickets.issue(1, version) is not None


ACTIONS = st.randoms(use_true_random=False).map(
    lambda rng: [(rng.choice("iiiiccxdpp"), rng.randrange(64)) for _ in range(300)]
)


@quick
@given(st.integers(1, 4), st.integers(0, 3), st.booleans(), ACTIONS)
def test_lag_is_bounded_and_no_ticket_is_lost_or_doubled(
    batch: int, bound: int, ordered: bool, actions: list[tuple[str, int]]
) -> None:
    """i issue, c complete, x cancel, d drop from the queue, p train on a batch: consecutive tickets if ordered, else
    whatever was completed first."""
    tickets = Tickets(batch, bound, ordered=ordered)
    version, trained, queue, out = 0, 0, [], []
    for action, choice in actions:
        if action == "i" and (ticket := tickets.issue(choice, version)):
            assert (ticket.number - 1) // batch <= version + bound
            out.append(ticket)
        elif action in "cx" and out:
            ticket = out.pop(choice % len(out))
            (tickets.complete if action == "c" else tickets.cancel)(ticket)
            if action == "c":
                queue.append(ticket)
        elif action == "d" and queue:
            tickets.reopen(queue.pop(choice % len(queue)).number)
        elif action == "p":
            if ordered:
                queue.sort()
            due = queue[:batch]
            complete = [t.number for t in due] == list(range(trained + 1, trained + batch + 1))
            if len(due) == batch and (complete or not ordered):
                assert max(version - t.version for t in due) <= bound
                queue, trained, version = queue[batch:], trained + batch, version + 1
        held = [*(t.number for t in queue), *(t.number for t in tickets.outstanding)]
        assert len(held) == len(set(held))
        assert tickets.completed == trained + len(queue)
        assert tickets.issued == trained + len(held) + tickets.returned
        assert [*tickets.outstanding] == out or sorted(tickets.outstanding) == sorted(out)


@quick
@given(
    st.integers(1, 4), st.integers(0, 2), st.booleans(), st.integers(1, 6), st.lists(st.integers(0, 7), max_size=200)
)
def test_no_slot_starves_when_slots_are_served_in_the_order_they_became_ready(
    batch: int, bound: int, ordered: bool, slots: int, durations: list[int]
) -> None:
    """Slots take random times to fill a chunk, some give up. While one slot waits for a ticket, no other is served
    twice."""
    tickets = Tickets(batch, bound, ordered=ordered)
    ready, busy, done = deque(range(slots)), {}, []
    version, trained, served_while_waiting = 0, 0, {slot: Counter() for slot in range(slots)}
    steps = iter(durations)
    for now in range(400):
        while ready and (ticket := tickets.issue(ready[0], version)):
            served = ready.popleft()
            served_while_waiting[served].clear()
            for slot in ready:
                served_while_waiting[slot][served] += 1
                assert served_while_waiting[slot][served] <= 1
            busy[served] = (now + next(steps, 1), ticket)
        for slot, (end, ticket) in list(busy.items()):
            if end <= now:
                del busy[slot]
                ready.append(slot)
                if (now + slot) % 7:
                    tickets.complete(ticket)
                    done.append(ticket.number)
                else:
                    tickets.cancel(ticket)
        due = sorted(done)[:batch] if ordered else done[:batch]
        if len(due) == batch and (not ordered or due[-1] == trained + batch):
            done = [number for number in done if number not in due]
            version, trained = version + 1, trained + batch
    assert version >= 10  # it never came to a stop


def test_a_snapshot_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    tickets = Tickets(3, 1)
    out = [tickets.issue(slot, 0) for slot in range(5)]
    for number in (1, 3):
        ticket = out[number]
        assert ticket is not None
        tickets.cancel(ticket)
    first = out[0]
    assert first is not None
    tickets.complete(first)
    other = Tickets(3, 1)
    other.restore(through_a_file(tickets.snapshot(), tmp_path))
    assert other.outstanding == tickets.outstanding
    assert (other.issued, other.returned, other.completed) == (5, 2, 1)
    assert issued(other, 0) == issued(tickets, 0) == [2, 4, 6]
    empty = Tickets(3, 1)
    empty.restore(through_a_file(Tickets(3, 1).snapshot(), tmp_path))
    assert issued(empty, 0) == [1, 2, 3, 4, 5, 6]
