"""The FIFO buffer accounts for every chunk, trains none twice, and ordered does not care who comes first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core.errors import CheckpointError
from marl.dataflow.buffers import Accepted, FifoBuffer, Lease, Rejected, SeenIds

from .made import chunk, through_a_file, trajectory

quick = settings(deadline=None, derandomize=True, max_examples=150)
DATA = trajectory(0)


def fifo(batch: int = 2, *, ordered: bool = True, capacity: int = 8, drop_lag: int | None = None) -> FifoBuffer:
    return FifoBuffer(batch, ordered=ordered, capacity=capacity, drop_lag=drop_lag)


def lease(buffer: FifoBuffer, now: int = 0) -> Lease:
    found = buffer.lease(now)
    assert found is not None
    return found


def balanced(buffer: FifoBuffer) -> bool:
    return buffer.offered == buffer.trained + buffer.dropped + buffer.held and 0 <= buffer.leased <= buffer.held


@pytest.mark.parametrize("arrival", list(itertools.permutations((1, 2, 3, 4))))
def test_ordered_batches_do_not_depend_on_arrival(arrival: tuple[int, ...]) -> None:
    buffer = fifo()
    leased = []
    for ticket in arrival:
        assert buffer.offer(chunk(ticket, slot=ticket), 0) == Accepted()
        while (found := buffer.lease(0)) is not None:
            leased.append(found.tickets)
            buffer.ack(found)
    assert leased == [(1, 2), (3, 4)]


def test_unordered_batches_leave_as_they_came() -> None:
    buffer = fifo(ordered=False)
    for ticket in (4, 1, 3, 2):
        buffer.offer(chunk(ticket, slot=ticket), 0)
    assert [lease(buffer).tickets, lease(buffer).tickets] == [(4, 1), (3, 2)]
    assert buffer.lease(0) is None


def test_no_lease_before_the_next_tickets_are_complete() -> None:
    buffer = fifo()
    for ticket in (2, 3, 4):
        buffer.offer(chunk(ticket, slot=ticket), 0)
    assert buffer.lease(0) is None
    buffer.offer(chunk(1, slot=1), 0)
    assert lease(buffer).tickets == (1, 2)


@pytest.mark.parametrize("ordered", [True, False])
def test_what_comes_back_goes_first_in_the_same_order(ordered: bool) -> None:
    buffer = fifo(ordered=ordered)
    for ticket in range(1, 7):
        buffer.offer(chunk(ticket), 0)
    one, two = lease(buffer), lease(buffer)
    buffer.nack(two)
    buffer.nack(one)
    again = [lease(buffer) for _ in range(3)]
    assert [found.tickets for found in again] == [(1, 2), (3, 4), (5, 6)]
    buffer.ack(again[1])  # the learner may end them in any order
    buffer.nack(again[0])
    assert lease(buffer).tickets == (1, 2)
    assert buffer.counters() == {
        **{"offered": 6, "trained": 2, "dropped": 0, "held": 4, "leased": 4},
        **{"dropped/duplicate": 0, "dropped/late": 0, "dropped/stale": 0, "dropped/full": 0},
    }


def test_a_lease_ends_once() -> None:
    buffer = fifo(1)
    buffer.offer(chunk(1), 0)
    first = lease(buffer)
    buffer.nack(first)
    again = lease(buffer)
    for end in (buffer.ack, buffer.nack):
        with pytest.raises(ValueError, match="is not out"):
            end(first)
    buffer.ack(again)
    with pytest.raises(ValueError, match="is not out"):
        buffer.ack(again)
    assert buffer.trained == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_a_chunk_is_never_taken_twice(ordered: bool) -> None:
    buffer = fifo(1, ordered=ordered)
    only = chunk(1)
    answers = [buffer.offer(only, 0), buffer.offer(only, 0)]
    found = lease(buffer)
    answers.append(buffer.offer(only, 0))
    buffer.ack(found)
    answers.append(buffer.offer(only, 0))
    assert answers == [Accepted(), *[Rejected("duplicate")] * 3]
    assert balanced(buffer)


def test_a_ticket_that_two_slots_filled_is_trained_once() -> None:
    buffer = fifo(1)
    assert buffer.offer(chunk(1, slot=0), 0) == Accepted()
    assert buffer.offer(chunk(1, slot=1), 0) == Rejected("duplicate")
    buffer.ack(lease(buffer))
    assert buffer.offer(chunk(1, slot=2), 0) == Rejected("duplicate")


def test_a_full_buffer_refuses_for_good() -> None:
    buffer = fifo(1, ordered=False, capacity=2)
    for ticket in (1, 2):
        buffer.offer(chunk(ticket), 0)
    third = chunk(3)
    assert buffer.offer(third, 0) == Rejected("full")
    buffer.ack(lease(buffer))
    assert buffer.offer(third, 0) == Rejected("duplicate")
    assert buffer.offer(chunk(4), 0) == Accepted()


def test_what_is_needed_next_is_not_shut_out_by_what_is_needed_later() -> None:
    buffer = fifo(1, capacity=2)
    assert buffer.offer(chunk(2, slot=2), 0) == Accepted()
    assert buffer.offer(chunk(3, slot=3), 0) == Rejected("full")
    assert buffer.offer(chunk(1, slot=1), 0) == Accepted()
    assert buffer.held == 2


def test_stale_chunks_are_dropped_when_offered_and_when_due_and_their_tickets_told() -> None:
    buffer = fifo(2, drop_lag=1)
    assert buffer.offer(chunk(1, slot=1, version=3), 5) == Rejected("stale")
    assert buffer.offer(chunk(1, slot=2, version=4), 5) == Accepted()
    assert buffer.offer(chunk(2, slot=3, version=5), 5) == Accepted()
    assert buffer.lease(6) is None
    assert buffer.take_dropped_tickets() == [1]
    assert buffer.take_dropped_tickets() == []
    assert buffer.offer(chunk(1, slot=4, version=6), 6) == Accepted()
    assert lease(buffer, 6).tickets == (1, 2)
    assert buffer.counters()["dropped/stale"] == 2
    assert balanced(buffer)


def test_an_earlier_incarnation_is_late_and_a_new_one_starts_anew() -> None:
    buffer = fifo(ordered=False)
    assert buffer.offer(chunk(1, sequence=5), 0) == Accepted()
    assert buffer.offer(chunk(2, incarnation=1, sequence=0), 0) == Accepted()
    assert buffer.offer(chunk(3, incarnation=0, sequence=6), 0) == Rejected("late")
    assert buffer.offer(chunk(4, incarnation=1, sequence=1), 0) == Accepted()


@quick
@given(st.lists(st.integers(0, 200), max_size=100))
def test_seen_ids_never_pass_twice_and_only_long_late_ones_are_refused_wrongly(sequence: list[int]) -> None:
    seen, passed, highest = SeenIds(), set(), -1
    for number in sequence:
        why = seen.mark(chunk(1, sequence=number, trajectory=DATA))
        if highest - number >= SeenIds.WINDOW:
            assert why == "late"
        else:
            assert why == ("duplicate" if number in passed else None)
        if why is None:
            passed.add(number)
        highest = max(highest, number)


@quick
@given(
    st.booleans(),
    st.integers(1, 3),
    st.integers(3, 6),
    st.sampled_from([None, 0, 2]),
    st.lists(st.tuples(st.sampled_from("oooollanvr"), st.integers(0, 9), st.integers(0, 3)), max_size=150),
)
def test_offered_is_trained_plus_dropped_plus_held_and_nothing_is_trained_twice(
    ordered: bool, batch: int, capacity: int, drop_lag: int | None, actions: list[tuple[str, int, int]]
) -> None:
    """o offer, l lease, a ack, n nack, v a new version, r save and restore into a new buffer."""
    buffer = fifo(batch, ordered=ordered, capacity=capacity, drop_lag=drop_lag)
    version, leases, trained, gone = 0, [], [], set()
    for action, first, second in actions:
        if action == "o":
            made = chunk(first + len(trained), slot=second, sequence=first, version=version, trajectory=DATA)
            if isinstance(buffer.offer(made, version), Rejected):
                gone.add(made.chunk_id)
            elif made.chunk_id in gone:
                raise AssertionError("a rejected chunk came in later")
        elif action == "l" and (found := buffer.lease(version)):
            assert drop_lag is None or max(version - c.version for c in found.chunks) <= drop_lag
            leases.append(found)
        elif action in "an" and leases:
            found = leases.pop(first % len(leases))
            (buffer.ack if action == "a" else buffer.nack)(found)
            trained += [c.chunk_id for c in found.chunks] if action == "a" else []
        elif action == "v":
            version += 1
        elif action == "r":
            tree, counts = buffer.snapshot(), buffer.counters()
            buffer, leases = fifo(batch, ordered=ordered, capacity=capacity, drop_lag=drop_lag), []
            buffer.restore(tree)
            assert buffer.counters() == counts | {"leased": 0}
        assert balanced(buffer)
        assert buffer.held <= capacity
        assert buffer.leased == batch * len(leases)
        assert buffer.trained == len(trained) == len(set(trained))


def test_a_snapshot_passes_through_a_file_and_leased_chunks_are_trained_again(tmp_path: Path) -> None:
    buffer = fifo()
    for ticket in (1, 2, 3, 4, 6):
        buffer.offer(chunk(ticket, slot=ticket, version=ticket), 0)
    buffer.ack(lease(buffer))
    out = lease(buffer)
    after = fifo()
    after.restore(through_a_file(buffer.snapshot(), tmp_path))
    assert after.counters() == buffer.counters() | {"leased": 0}
    again = lease(after)
    assert [c.chunk_id for c in again.chunks] == [c.chunk_id for c in out.chunks]
    assert again.chunks[0].trajectory.version.tolist() == [30, 31]
    assert after.offer(chunk(1, slot=1), 0) == Rejected("duplicate")
    assert after.offer(chunk(5, slot=5), 0) == Accepted()
    assert lease(after).tickets == (5, 6)
    with pytest.raises(ValueError, match="is not out"):
        after.ack(out)
    with pytest.raises(CheckpointError, match="ordered"):
        fifo(ordered=False).restore(buffer.snapshot())


def test_sizes_out_of_range_are_refused() -> None:
    for batch, capacity, lag in ((0, 1, None), (3, 2, None), (1, 1, -1)):
        with pytest.raises(ValueError, match="batch_chunks <= capacity"):
            fifo(batch, capacity=capacity, drop_lag=lag)
