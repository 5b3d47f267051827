"""The buffer between actors and an on-policy learner: first in, first out, every chunk trained on at most once."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

from marl.core.errors import CheckpointError
from marl.dataflow.chunks import Chunk
from marl.dataflow.plain import Tree

REASONS = ("duplicate", "late", "stale", "full")


class Accepted(NamedTuple):
    """The buffer holds the chunk now."""


class Rejected(NamedTuple):
    """The chunk was dropped, for good. reason: `duplicate` (id or ticket seen before), `late` (of an earlier
    incarnation, or so far behind that it may be a duplicate), `stale` (its version), `full`, or `limited` (replay's
    rate limiter)."""

    reason: str


Answer: TypeAlias = Accepted | Rejected


class SeenIds:
    """Which chunks were offered before, in bounded memory: per slot its incarnation, its highest sequence number, and
    which of the `WINDOW` numbers up to that one were seen. Whatever lies behind the window counts as seen."""

    WINDOW = 64

    def __init__(self) -> None:
        self._slots: dict[int, tuple[int, int, int]] = {}

    def mark(self, chunk: Chunk) -> str | None:
        """None for a chunk that is new, which from now on is seen; else why it cannot be taken."""
        incarnation, highest, mask = self._slots.get(chunk.slot, (chunk.incarnation, -1, 0))
        if chunk.incarnation < incarnation:
            return "late"
        if chunk.incarnation > incarnation:
            incarnation, highest, mask = chunk.incarnation, -1, 0
        ahead = chunk.sequence - highest
        if ahead > 0:
            mask = ((mask << min(ahead, self.WINDOW)) | 1) & ((1 << self.WINDOW) - 1)
            highest = chunk.sequence
        elif -ahead >= self.WINDOW:
            return "late"
        elif mask >> -ahead & 1:
            return "duplicate"
        else:
            mask |= 1 << -ahead
        self._slots[chunk.slot] = (incarnation, highest, mask)
        return None

    def snapshot(self) -> Tree:
        rows = [(slot, incarnation, highest) for slot, (incarnation, highest, _) in self._slots.items()]
        return {
            "slots": np.array(rows, np.int64).reshape(-1, 3),
            "masks": np.array([mask for _, _, mask in self._slots.values()], np.uint64),
        }

    def restore(self, tree: Tree) -> None:
        rows = zip(tree["slots"].tolist(), tree["masks"].tolist(), strict=True)
        self._slots = {slot: (incarnation, highest, mask) for (slot, incarnation, highest), mask in rows}


@dataclasses.dataclass(frozen=True, eq=False)
class Lease:
    """Chunks on loan to the learner, in training order, until `ack` or `nack`."""

    chunks: tuple[Chunk, ...]
    places: tuple[int, ...]

    @property
    def tickets(self) -> tuple[int, ...]:
        return tuple(chunk.ticket for chunk in self.chunks)


class FifoBuffer:
    """Holds the chunks of one policy. At all times `offered == trained + dropped + held`, counted in chunks, where
    `held` includes the `leased` ones; a chunk that was trained on or dropped never comes out again.

    batch_chunks: chunks a lease.  ordered: a lease is the next `batch_chunks` consecutive tickets, so that it does not
    matter which chunk arrives first; else chunks leave as they came.  capacity: most chunks held; ordered, the range of
    tickets that are taken, so that what is needed next is never shut out by what is needed later.  drop_lag: chunks
    more than this many versions old are dropped when offered and when they would be leased; None: never.  The tickets
    of chunks dropped after they were accepted are told by `take_dropped_tickets`, to be reopened; those of rejected
    ones are cancelled by whoever offered them.

    Raises: ValueError if a size is out of range.
    """

    def __init__(self, batch_chunks: int, *, ordered: bool, capacity: int, drop_lag: int | None = None) -> None:
        if not 0 < batch_chunks <= capacity or (drop_lag is not None and drop_lag < 0):
            raise ValueError(
                f"a buffer needs 0 < batch_chunks <= capacity and drop_lag >= 0, "
                f"got {batch_chunks}, {capacity} and {drop_lag}"
            )
        self.batch_chunks = batch_chunks
        self.ordered = ordered
        self.capacity = capacity
        self.drop_lag = drop_lag
        self.offered = 0
        self.trained = 0
        self.dropped_by_reason = dict.fromkeys(REASONS, 0)
        self._seen = SeenIds()
        self._waiting: dict[int, Chunk] = {}  # by place: the ticket if ordered, else the number of the arrival
        self._leases: set[Lease] = set()
        self._arrivals = 0
        self._trained_up_to = 0  # ordered: all places up to here were trained on,
        self._trained_above: set[int] = set()  # and these; at most what was leased at one time
        self._dropped_tickets: list[int] = []

    @property
    def leased(self) -> int:
        return len(self._leases) * self.batch_chunks

    @property
    def held(self) -> int:
        return len(self._waiting) + self.leased

    @property
    def held_steps(self) -> int:
        """Env steps of the chunks that are held."""
        leased = [chunk for lease in self._leases for chunk in lease.chunks]
        return sum(chunk.env_steps for chunk in (*self._waiting.values(), *leased))

    @property
    def versions(self) -> set[int]:
        """Of the chunks that are held."""
        leased = (chunk for lease in self._leases for chunk in lease.chunks)
        return {chunk.version for chunk in (*self._waiting.values(), *leased)}

    @property
    def dropped(self) -> int:
        return sum(self.dropped_by_reason.values())

    def counters(self) -> dict[str, int]:
        """`offered`, `trained`, `dropped`, `held`, `leased`, and `dropped/<reason>`."""
        counts = {name: getattr(self, name) for name in ("offered", "trained", "dropped", "held", "leased")}
        return counts | {f"dropped/{reason}": n for reason, n in self.dropped_by_reason.items()}

    def offer(self, chunk: Chunk, now_version: int) -> Answer:
        """Take a chunk, or drop it. now_version: the learner's."""
        self.offered += 1
        reason = self._seen.mark(chunk) or self._refusal(chunk, now_version)
        if reason is not None:
            self.dropped_by_reason[reason] += 1
            return Rejected(reason)
        self._arrivals += 1
        self._waiting[chunk.ticket if self.ordered else self._arrivals] = chunk
        return Accepted()

    def _refusal(self, chunk: Chunk, now_version: int) -> str | None:
        if self.ordered and self._known(chunk.ticket):
            return "duplicate"
        if self._stale(chunk, now_version):
            return "stale"
        full = chunk.ticket > self._trained_up_to + self.capacity if self.ordered else self.held >= self.capacity
        return "full" if full else None

    def _known(self, place: int) -> bool:
        done = place <= self._trained_up_to or place in self._trained_above
        return done or place in self._waiting or self._on_loan(place)

    def _on_loan(self, place: int) -> bool:
        return any(place in lease.places for lease in self._leases)

    def _stale(self, chunk: Chunk, now_version: int) -> bool:
        return self.drop_lag is not None and now_version - chunk.version > self.drop_lag

    def lease(self, now_version: int) -> Lease | None:
        """The next batch, or None until it is there. Several leases may be out; what came back by `nack` goes first."""
        for place in [p for p, chunk in self._waiting.items() if self._stale(chunk, now_version)]:
            self._dropped_tickets.append(self._waiting.pop(place).ticket)
            self.dropped_by_reason["stale"] += 1
        if len(self._waiting) < self.batch_chunks:
            return None
        places = self._next_tickets() if self.ordered else sorted(self._waiting)[: self.batch_chunks]
        if places is None:
            return None
        lease = Lease(tuple(self._waiting.pop(place) for place in places), tuple(places))
        self._leases.add(lease)
        return lease

    def _next_tickets(self) -> list[int] | None:
        place = self._trained_up_to
        due: list[int] = []
        while len(due) < self.batch_chunks:
            place += 1
            if place in self._waiting:
                due.append(place)
            elif place not in self._trained_above and not self._on_loan(place):
                return None
        return due

    def ack(self, lease: Lease) -> None:
        """The lease was trained on. Raises: ValueError if it is not out."""
        self._give_back(lease)
        self.trained += len(lease.chunks)
        if self.ordered:
            self._trained_above.update(lease.places)
            while self._trained_up_to + 1 in self._trained_above:
                self._trained_up_to += 1
                self._trained_above.remove(self._trained_up_to)

    def nack(self, lease: Lease) -> None:
        """The lease was not trained on: its chunks go back to where they were. Raises: ValueError if it is not out."""
        self._give_back(lease)
        self._waiting.update(zip(lease.places, lease.chunks, strict=True))

    def _give_back(self, lease: Lease) -> None:
        if lease not in self._leases:
            raise ValueError(f"the lease of tickets {lease.tickets} is not out")
        self._leases.remove(lease)

    def take_dropped_tickets(self) -> list[int]:
        """The tickets of chunks that were accepted and then dropped as stale, since the last call."""
        taken, self._dropped_tickets = self._dropped_tickets, []
        return taken

    def snapshot(self) -> Tree:
        """A plain tree that shares the chunks' arrays; leased chunks are saved as waiting ones."""
        waiting = self._waiting | {
            place: chunk for lease in self._leases for place, chunk in zip(lease.places, lease.chunks, strict=True)
        }
        places = sorted(waiting)
        return {
            "ordered": self.ordered,
            "offered": self.offered,
            "trained": self.trained,
            "dropped": dict(self.dropped_by_reason),
            "seen": self._seen.snapshot(),
            "places": np.array(places, np.int64),
            "chunks": [waiting[place].snapshot() for place in places],
            "arrivals": self._arrivals,
            "trained_up_to": self._trained_up_to,
            "trained_above": np.array(sorted(self._trained_above), np.int64),
            "dropped_tickets": np.array(self._dropped_tickets, np.int64),
        }

    def restore(self, tree: Tree) -> None:
        """The inverse of `snapshot`: what was leased then waits at the front; leases from before are void.

        Raises: CheckpointError if it was saved by a buffer of the other order.
        """
        if bool(tree["ordered"]) != self.ordered:
            raise CheckpointError("the saved buffer ordered its chunks differently (dataflow.max_staleness changed?)")
        self.offered, self.trained = int(tree["offered"]), int(tree["trained"])
        self.dropped_by_reason = dict.fromkeys(REASONS, 0) | {r: int(n) for r, n in tree["dropped"].items()}
        self._seen.restore(tree["seen"])
        chunks = [Chunk.restored(saved) for saved in tree["chunks"]]
        self._waiting = dict(zip(tree["places"].tolist(), chunks, strict=True))
        self._leases = set()
        self._arrivals, self._trained_up_to = int(tree["arrivals"]), int(tree["trained_up_to"])
        self._trained_above = set(tree["trained_above"].tolist())
        self._dropped_tickets = tree["dropped_tickets"].tolist()
