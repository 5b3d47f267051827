"""The actors of a run on Ray, as its driver sees them: who works, who is late, who was lost and is started again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from marl.core.errors import RunError
from marl.dataflow.arena import ArenaError, pack, unpack
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_crew import (
    GIVE_UP,
    START_LIMIT_S,
    ArgumentLostError,
    Clock,
    Losses,
    LostError,
    ProcessOptions,
    Remote,
    Room,
    get,
    now,
    silent,
)
from marl.dataflow.shells import ActorJob, ActorShell, own_memory
from marl.dataflow.tickets import Ticket

ROOM_LIMIT_S = 300.0  # that a run goes on with fewer actors than it wants at least, if others wait for CPUs
SAY_AFTER_S = 5.0  # of waiting for CPUs, which a lost process may not have given back yet
MOST_DAMAGED = 3  # chunks that an actor may send damaged before it is ended


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """As in `LocalOptions`, and: actors: processes that fill rollouts, among which the slots are shared.  min_actors:
    fewer that are left, and the run fails.  learners: devices that share a batch, in `learner_processes` processes.
    call_limit_s: an actor that does not answer for so long is ended.  heartbeat_s: one that has nothing to do is asked
    after so long whether it is there.  give_up: so many losses of one part within so many seconds are too many.  actor,
    learner, server: what their processes get."""

    num_envs: int
    slots: int
    actors: int
    max_staleness: int = 0
    asynchronous: bool = False
    random_phase: bool = False
    updates_per_dispatch: int = 1
    min_actors: int = 1
    learners: int = 1
    learner_processes: int = 1
    servers: int = 0
    faults: tuple[float, int, float] = (0.05, 3, 60.0)
    call_limit_s: float = 600.0
    heartbeat_s: float = 5.0
    give_up: tuple[int, float] = GIVE_UP
    actor: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)
    learner: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)
    server: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)

    @property
    def reproducible(self) -> bool:
        """Whether two runs of one seed are bit-equal."""
        return self.max_staleness == 0 and not self.asynchronous


@dataclasses.dataclass
class Call:
    """A call that an actor is busy with. epoch: of the learner when it was sent.  arenas: references to what it will
    bring, one a learner.  overdue: its tickets were given to others."""

    tickets: list[Ticket]
    version: int
    epoch: int
    sent: float
    arenas: list[Any]
    overdue: bool = False


class Hand:
    """One actor. start_at: when it may be started; None: it is at work, or never again.  waiting: since when there has
    been no room for it in the cluster.  damaged: chunks that arrived damaged."""

    def __init__(self, index: int, slots: tuple[int, ...], give_up: tuple[int, float]) -> None:
        self.index, self.slots = index, slots
        self.remote: Remote | None = None
        self.starting: Any = None  # the reference to its first answer
        self.incarnation = -1
        self.calls: dict[Any, Call] = {}
        self.version = -1  # the newest that it was sent
        self.pushing = False  # its gradient is on the way to the learner
        self.losses = Losses(limit=give_up)
        self.start_at: float | None = 0.0
        self.since = 0.0
        self.waiting: float | None = None
        self.absent = False  # it was seen to wait, and is to be announced when it comes
        self.answers = 0  # of this incarnation
        self.heard = 0.0
        self.ping: Any = None
        self.damaged = 0
        self.about: dict[str, Any] = {}

    @property
    def ready(self) -> bool:
        return self.remote is not None and self.starting is None


class Actors:
    """newest: the newest version and the reference to its weights.  endpoints: of the policy server of an actor.
    give_up: called with a call that will bring nothing any more, whose tickets are free again."""

    def __init__(
        self,
        blueprint: Blueprint,
        identity: str,
        learners: int,
        options: RayOptions,
        seed: int,
        *,
        newest: Callable[[], tuple[int, Any]],
        endpoints: Callable[[int], Any],
        give_up: Callable[[Call], None],
    ) -> None:
        self.blueprint, self.identity, self.learners, self.options, self.seed = (
            blueprint,
            identity,
            learners,
            options,
            seed,
        )
        self.newest, self.endpoints, self.give_up = newest, endpoints, give_up
        each = options.slots // options.actors
        self.hands = [Hand(i, tuple(range(i * each, (i + 1) * each)), options.give_up) for i in range(options.actors)]
        self.clock = Clock()
        self.events: list[tuple[str, str]] = []
        self.lost = self.lost_rollouts = 0
        self._room = Room()
        self._few_since: float | None = None
        self._disturbed = not options.reproducible

    @property
    def ready(self) -> int:
        """How many are at work, or could be."""
        return sum(hand.ready for hand in self.hands)

    @property
    def calls(self) -> bool:
        """Whether any is at work."""
        return any(hand.calls for hand in self.hands)

    @property
    def busy(self) -> bool:
        """Whether any is starting."""
        return any(hand.starting is not None for hand in self.hands)

    @property
    def settled(self) -> bool:
        """Whether all are ready that the cluster has room for, and as many as the run wants at least."""
        pending = any(hand.start_at is not None and hand.waiting is None for hand in self.hands)
        return not pending and not self.busy and self.ready >= self.options.min_actors

    @property
    def expected(self) -> bool:
        """Whether any is starting, or will be."""
        return any(hand.starting is not None or hand.start_at is not None for hand in self.hands)

    def references(self) -> list[Any]:
        """What answers are waited for."""
        small = [r for hand in self.hands for r in (hand.starting, hand.ping) if r is not None]
        return small + [reference for hand in self.hands for reference in hand.calls]

    def start_due(self) -> None:
        """Start those whose time has come and that the cluster has room for."""
        for hand in self.hands:
            if hand.start_at is None or now() < hand.start_at:
                continue
            if self._room.take(self.options.actor.cpus):
                self._start(hand)
            else:
                self._wait(hand)

    def _wait(self, hand: Hand) -> None:
        hand.waiting = now() if hand.waiting is None else hand.waiting
        if now() - hand.waiting > SAY_AFTER_S and not hand.absent:
            hand.absent = True
            words = f"actor {hand.index} waits for {self.options.actor.cpus:g} free CPUs, and joins when they are there"
            self.events.append(("actor waits", words))
            self._disturb()

    def _disturb(self) -> None:
        """Say once that another run of this seed would not be the same."""
        if not self._disturbed:
            self._disturbed = True
            words = "which actors were there is part of the numbers from here on: another run of this seed will differ"
            self.events.append(("not reproducible", words))

    def _start(self, hand: Hand) -> None:
        own = self.options
        hand.incarnation += 1
        job = ActorJob(
            seed=self.seed,
            num_envs=own.num_envs,
            total_slots=own.slots,
            slots=hand.slots,
            incarnation=hand.incarnation,
            random_phase=own.random_phase,
            faults=own.faults,
            identity=self.identity,
            serve=self.endpoints(hand.index),
        )
        hand.remote = Remote(ActorShell, (self.blueprint, job), own.actor)
        version, weights = self.newest()
        hand.starting = hand.remote.call("start", version, weights)
        hand.version, hand.since, hand.start_at, hand.waiting = version, now(), None, None
        hand.answers = hand.damaged = 0

    def answered(self, hand: Hand, done: Any) -> None:
        """Take the answers that are not to calls for work. done: the references that are ready."""
        if hand.starting in done:
            self.started(hand)
        if hand.ping in done:
            reference, hand.ping, hand.heard = hand.ping, None, now()
            try:
                get(reference)
            except LostError as error:
                self.lose(hand, str(error))

    def started(self, hand: Hand) -> None:
        """Take its first answer. Raises: as the worlds did that could not be made."""
        try:
            hand.about = get(hand.starting)
        except LostError as error:
            self.lose(hand, f"did not start: {error}")
            return
        hand.starting, hand.heard = None, now()
        if hand.absent:
            hand.absent = False
            self.events.append(("actor joined", f"actor {hand.index} has joined"))
        elif hand.incarnation:
            self.events.append(("actor restarted", f"actor {hand.index} is back after {now() - hand.since:.1f} s"))

    def send(self, hand: Hand, tickets: list[Ticket], epoch: int) -> None:
        """One call for these tickets' slots, acting with the newest version."""
        assert hand.remote is not None
        version, weights = self.newest()
        newer = weights if hand.version < version else None
        hand.version = version
        if self.options.asynchronous:
            answer, *arenas = hand.remote.call("gradient", tickets[0], version, newer, returns=1 + self.learners)
        else:
            answer, *arenas = hand.remote.call("collect", tickets, version, newer, returns=1 + self.learners)
        hand.pushing = self.options.asynchronous
        hand.calls[answer] = Call(tickets, version, epoch, now(), arenas)

    def take(self, hand: Hand, reference: Any) -> tuple[Call, dict[str, Any]] | None:
        """A call that was answered, with its report; None if its actor is lost instead."""
        call = hand.calls.get(reference)
        if call is None:  # its actor was lost a moment ago, over another call
            return None
        try:
            said = get(reference)
        except (ArgumentLostError, ArenaError) as error:  # weights that went with a node, or came damaged
            del hand.calls[reference]
            self.give_up(call)
            hand.version, hand.heard, hand.pushing = -1, now(), False
            self.events.append(("weights lost", f"actor {hand.index}: {error}; it gets the newest ones"))
            return None
        except LostError as error:
            self.lose(hand, str(error))
            return None
        del hand.calls[reference]
        if hand.answers:  # the first one compiles
            self.clock.add(now() - call.sent)
        hand.answers += 1
        hand.heard = now()
        self.events += said["events"]
        return call, said

    def excuse(self) -> None:
        """Nobody is late who had to wait for a policy server that was lost."""
        for hand in self.hands:
            for call in hand.calls.values():
                call.sent = now()

    def judge(self, hand: Hand) -> None:
        """End one whose chunks keep arriving damaged."""
        if hand.damaged >= MOST_DAMAGED and hand.remote is not None:
            self.lose(hand, f"{hand.damaged} of its chunks arrived damaged")

    def lose(self, hand: Hand, why: str) -> None:
        """Its worlds are gone and its tickets are free; it is started again later, or never.

        Raises: RunError if fewer are left than the run wants.
        """
        if hand.remote is not None:
            hand.remote.kill()
        open_ = sum(len(call.tickets) for call in hand.calls.values())
        for call in hand.calls.values():
            self.give_up(call)
        hand.calls, hand.remote, hand.starting, hand.ping, hand.pushing = {}, None, None, None, False
        self.lost += 1
        self.lost_rollouts += open_
        wait = hand.losses.note(now())
        hand.since = now()
        hand.start_at = None if wait is None else now() + wait
        left = sum(h.remote is not None or h.start_at is not None for h in self.hands)
        what = "is given up" if wait is None else f"is started again in {wait:.1f} s"
        self.events.append(("actor lost", f"actor {hand.index}: {why}; it {what}; {open_} open rollouts are lost"))
        self._disturb()
        if left < self.options.min_actors:
            raise RunError(
                f"{left} of {self.options.actors} actors are left, and dataflow.min_actors is "
                f"{self.options.min_actors}; the last one to go: {why}"
            )

    def look_after(self) -> None:
        """Give the work of one that takes far longer than usual to others; end one that does not answer at all; ask
        those that are idle whether they are there.

        Raises: RunError if the cluster has had no room for as many as the run wants at least, for minutes.
        """
        late_after = self.clock.late_after()
        for hand in self.hands:
            if hand.starting is not None and now() - hand.since > START_LIMIT_S and silent(hand.starting):
                self.lose(hand, f"did not start within {START_LIMIT_S:g} s")
            elif hand.ready:
                self._look_after(hand, late_after)
        few = self.ready < self.options.min_actors and any(hand.waiting is not None for hand in self.hands)
        self._few_since = (self._few_since or now()) if few else None
        if self._few_since is not None and now() - self._few_since > ROOM_LIMIT_S:
            raise RunError(
                f"the cluster has had room for {self.ready} of {self.options.actors} actors for {ROOM_LIMIT_S:.0f} s, "
                f"and dataflow.min_actors is {self.options.min_actors}"
            )

    def _look_after(self, hand: Hand, late_after: float) -> None:
        own = self.options
        # The worlds' own limit is for one call of theirs. One that cannot be interrupted takes the process with it.
        hangs_after = max(late_after, own.faults[2]) if hand.answers else own.call_limit_s
        for reference, call in list(hand.calls.items()):
            took = now() - call.sent
            if took <= min(late_after, hangs_after, own.call_limit_s) or not silent(reference):
                continue
            if took > min(hangs_after, own.call_limit_s):
                self.lose(hand, f"did not answer for {took:.0f} s")
                return
            if took > late_after and not call.overdue and self.ready > 1 and not own.asynchronous:
                call.overdue = True
                self.give_up(call)
                words = f"actor {hand.index} has been at it for {took:.1f} s; others do its work"
                self.events.append(("straggler", words))
                self._disturb()
        if hand.ping is not None:
            if now() - hand.heard > own.heartbeat_s + START_LIMIT_S and silent(hand.ping):
                self.lose(hand, "was idle and did not answer")
        elif not hand.calls and now() - hand.heard > own.heartbeat_s:
            assert hand.remote is not None
            hand.ping = hand.remote.call("ping")

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def snapshot(self, hand: Hand) -> list[Any] | None:
        """The slots of one that is idle; None if it is not there, or is lost just now."""
        if not hand.ready:
            return None
        assert hand.remote is not None
        try:
            stored: list[Any] = own_memory(unpack(hand.remote.ask("snapshot")))
        except LostError as error:
            self.lose(hand, str(error))
            return None
        return stored

    def restore(self, hand: Hand, stored: list[Any], incarnation: int) -> None:
        """Bring an actor to a snapshot of its slots; fresh worlds if one of them was not there when it was taken.

        incarnation: the highest that its slots had.
        """
        hand.incarnation = incarnation
        if not hand.ready:
            return
        assert hand.remote is not None
        if any(slot is None for slot in stored):
            self.lose(hand, "it was lost when the checkpoint was written")
            return
        version, weights = self.newest()
        try:
            self.events += hand.remote.ask("restore", pack(stored, "a slot"), version, incarnation, weights)
        except LostError as error:
            self.lose(hand, str(error))
        hand.version = version

    def close(self) -> None:
        """End all."""
        for hand in self.hands:
            if hand.remote is not None:
                hand.remote.kill()
