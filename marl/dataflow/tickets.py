"""Tickets: how far collecting may run ahead of learning. Staleness is bounded when a chunk is begun, not by throwing
away what came late."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from marl.dataflow.plain import Tree


class Ticket(NamedTuple):
    """Permission for one chunk: ticket `number` (1, 2, ...), for `slot`, acting with parameters of `version`."""

    number: int
    slot: int
    version: int


class Tickets:
    """The tickets of one policy.

    Ticket k may be out iff `floor((k - 1) / batch) <= version + max_staleness`, where the version counts the batches
    learned from (one that was thrown away as not finite counts, too). Every number is at any time in exactly one
    place: not issued yet, outstanding, returned, or completed.

    Batches made of consecutive tickets (`FifoBuffer(ordered=True)`) are then never trained on more than
    `max_staleness` versions late. Where chunks are trained on as they arrive, one that takes long would be overtaken;
    with `ordered=False` a ticket is only issued while the oldest one that is out allows it, which gives the same bound.

    batch: chunks an update.  max_staleness: in versions; None: no bound.  Raises: ValueError if one is out of range.
    """

    def __init__(self, batch: int, max_staleness: int | None, *, ordered: bool = True) -> None:
        if batch < 1 or (max_staleness is not None and max_staleness < 0):
            raise ValueError(f"tickets need batch >= 1 and max_staleness >= 0, got {batch} and {max_staleness}")
        self.batch = batch
        self.max_staleness = max_staleness
        self.ordered = ordered
        self._next = 1
        self._returned: list[int] = []  # a heap
        self._outstanding: dict[int, Ticket] = {}

    @property
    def outstanding(self) -> tuple[Ticket, ...]:
        """The tickets that are out, in the order of issue."""
        return tuple(self._outstanding.values())

    @property
    def issued(self) -> int:
        """How many numbers were ever given out."""
        return self._next - 1

    @property
    def returned(self) -> int:
        """How many wait to be issued again."""
        return len(self._returned)

    @property
    def completed(self) -> int:
        return self.issued - len(self._returned) - len(self._outstanding)

    def issue(self, slot: int, version: int) -> Ticket | None:
        """The next ticket, lowest returned number first, for a slot that would act with parameters of `version`; None
        while the bound forbids it."""
        number = self._returned[0] if self._returned else self._next
        if self.max_staleness is not None:
            oldest = version
            if not self.ordered:
                oldest = min((ticket.version for ticket in self._outstanding.values()), default=version)
            if number > (min(version, oldest) + self.max_staleness + 1) * self.batch:
                return None
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._next += 1
        ticket = self._outstanding[number] = Ticket(number, slot, version)
        return ticket

    def holds(self, ticket: Ticket) -> bool:
        """Whether this very ticket is out: False for one that was completed, or cancelled and issued anew."""
        return self._outstanding.get(ticket.number) == ticket

    def complete(self, ticket: Ticket) -> None:
        """Its chunk is in the buffer. Raises: ValueError if this ticket is not out."""
        self._take(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Its chunk will not come, or was not accepted: the number is issued again. Raises: ValueError if this ticket
        is not out."""
        self._take(ticket)
        heapq.heappush(self._returned, ticket.number)

    def cancel_slot(self, slot: int) -> int:
        """Cancel all that a slot has out, for example because its process died. Returns how many."""
        mine = [ticket for ticket in self._outstanding.values() if ticket.slot == slot]
        for ticket in mine:
            self.cancel(ticket)
        return len(mine)

    def reopen(self, number: int) -> None:
        """The chunk of a completed ticket was dropped before it was trained on: the number is issued again. Without
        this, dropped chunks would eat up the bound. Raises: ValueError if the number is not completed."""
        if not 0 < number < self._next or number in self._outstanding or number in self._returned:
            raise ValueError(f"ticket {number} is not completed")
        heapq.heappush(self._returned, number)

    def _take(self, ticket: Ticket) -> None:
        if not self.holds(ticket):
            raise ValueError(f"{ticket} is not out")
        del self._outstanding[ticket.number]

    def snapshot(self) -> Tree:
        """A plain tree of copies."""
        return {
            "next": self._next,
            "returned": np.array(sorted(self._returned), np.int64),
            "outstanding": np.array(self.outstanding, np.int64).reshape(-1, 3),
        }

    def restore(self, tree: Tree) -> None:
        """The inverse of `snapshot`. Whoever cannot go on with an open chunk cancels its ticket."""
        self._next = int(tree["next"])
        self._returned = tree["returned"].tolist()  # sorted, hence a heap
        tickets = [Ticket(*row) for row in tree["outstanding"].tolist()]
        self._outstanding = {ticket.number: ticket for ticket in tickets}
