"""The actors of a run on Ray, as its driver sees them: who works, who is late, who was lost and is started again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from marl.core.errors import RunError
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_crew import START_LIMIT_S, Clock, Losses, LostError, ProcessOptions, Remote, get, now
from marl.dataflow.shells import ActorJob, ActorShell
from marl.dataflow.tickets import Ticket


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """As in `LocalOptions`, and: actors: processes that fill rollouts, among which the slots are shared.  min_actors:
    fewer that are left, and the run fails.  learners: devices that share a batch, in `learner_processes` processes.
    call_limit_s: an actor that does not answer for so long is ended.  actor, learner, server: what their processes
    get."""

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
    """One actor. start_at: when it may be started; None: it is at work, or never again."""

    def __init__(self, index: int, slots: tuple[int, ...]) -> None:
        self.index, self.slots = index, slots
        self.remote: Remote | None = None
        self.starting: Any = None  # the reference to its first answer
        self.incarnation = -1
        self.calls: dict[Any, Call] = {}
        self.version = -1  # the newest that it was sent
        self.pushing = False  # its gradient is on the way to the learner
        self.losses = Losses()
        self.start_at: float | None = 0.0
        self.since = 0.0
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
        self.hands = [Hand(i, tuple(range(i * each, (i + 1) * each))) for i in range(options.actors)]
        self.clock = Clock()
        self.events: list[tuple[str, str]] = []
        self.lost = 0

    @property
    def ready(self) -> int:
        """How many are at work, or could be."""
        return sum(hand.ready for hand in self.hands)

    @property
    def expected(self) -> bool:
        """Whether any is starting, or will be."""
        return any(hand.starting is not None or hand.start_at is not None for hand in self.hands)

    def references(self) -> list[Any]:
        """What answers are waited for."""
        starting = [hand.starting for hand in self.hands if hand.starting is not None]
        return starting + [reference for hand in self.hands for reference in hand.calls]

    def start_due(self) -> None:
        """Start those whose time has come."""
        for hand in self.hands:
            if hand.start_at is not None and now() >= hand.start_at:
                self._start(hand)

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
        hand.version, hand.since, hand.start_at = version, now(), None

    def started(self, hand: Hand) -> None:
        """Take its first answer. Raises: as the worlds did that could not be made."""
        try:
            hand.about = get(hand.starting)
        except LostError as error:
            self.lose(hand, f"did not start: {error}")
            return
        hand.starting = None
        if hand.incarnation:
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
        call = hand.calls[reference]
        try:
            said = get(reference)
        except LostError as error:
            self.lose(hand, str(error))
            return None
        del hand.calls[reference]
        self.clock.add(now() - call.sent)
        self.events += said["events"]
        return call, said

    def lose(self, hand: Hand, why: str) -> None:
        """Its worlds are gone and its tickets are free; it is started again later, or never.

        Raises: RunError if fewer are left than the run wants.
        """
        if hand.remote is not None:
            hand.remote.kill()
        for call in hand.calls.values():
            self.give_up(call)
        hand.calls, hand.remote, hand.starting, hand.pushing = {}, None, None, False
        self.lost += 1
        wait = hand.losses.note(now())
        hand.since = now()
        hand.start_at = None if wait is None else now() + wait
        left = sum(h.remote is not None or h.start_at is not None for h in self.hands)
        what = "is given up" if wait is None else f"is started again in {wait:.1f} s"
        self.events.append(("actor lost", f"actor {hand.index}: {why}; it {what}, its open rows are lost"))
        if left < self.options.min_actors:
            raise RunError(
                f"{left} of {self.options.actors} actors are left, and dataflow.min_actors is "
                f"{self.options.min_actors}; the last one to go: {why}"
            )

    def look_after(self) -> None:
        """Give the work of one that takes far longer than usual to others; end one that does not answer at all."""
        late_after = self.clock.late_after()
        for hand in self.hands:
            if hand.starting is not None and now() - hand.since > START_LIMIT_S:
                self.lose(hand, f"did not start within {START_LIMIT_S:g} s")
            for call in list(hand.calls.values()):
                took = now() - call.sent
                if took > self.options.call_limit_s:
                    self.lose(hand, f"did not answer for {took:.0f} s")
                    break
                if took > late_after and not call.overdue and self.ready > 1 and not self.options.asynchronous:
                    call.overdue = True
                    self.give_up(call)
                    self.events.append(
                        ("straggler", f"actor {hand.index} has been at it for {took:.1f} s; others do its work")
                    )

    def close(self) -> None:
        """End all."""
        for hand in self.hands:
            if hand.remote is not None:
                hand.remote.kill()
