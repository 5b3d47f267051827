"""One run on Ray, as its driver sees it: tickets, parameter store and supervision here, everything that computes in
processes of its own.

Ray carries chunks and weights as one block each and answers calls; it is never asked once a step. Chunks go from the
actors' nodes to the learner's without passing through this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marl.core.errors import CheckpointError, ConfigError, RunError
from marl.core.types import Tree
from marl.dataflow.arena import pack, unpack
from marl.dataflow.flow import FlowMeter
from marl.dataflow.learning import Counts, DispatchResult, Updates, report
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_actors import Actors, Call, Hand
from marl.dataflow.ray_actors import RayOptions as RayOptions
from marl.dataflow.ray_crew import LostError, Remote, get, now
from marl.dataflow.ray_ranks import start_learner
from marl.dataflow.ray_servers import Servers
from marl.dataflow.shells import (
    LearnerJob,
    own_memory,
    plain_counts,
    unpack_weights,
)
from marl.dataflow.tickets import Ticket, Tickets

IN_FLIGHT = 2  # calls of one actor: the next is there when the first is done
BATCH = 64  # answers taken at once: waiting for one after the other costs the square of their number
LEARNER_LOSSES = 5  # of the learner within the run, before it is called failed


class RayRun:
    """One seed of a run on Ray, in a session that was joined.

    learners: names of the policies that learn, in the order of the blueprint's parts.  folder: for sockets, of a
    cluster that is this machine alone.
    Raises: ConfigError if the parts do not fit.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        learners: Sequence[str],
        options: RayOptions,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        if options.num_envs % options.slots or options.slots % options.actors:
            raise ConfigError(
                f"{options.num_envs} lanes in {options.slots} slots cannot be shared evenly by {options.actors} actors"
            )
        self.blueprint, self.learners, self.options, self.seed = blueprint, tuple(learners), options, seed
        self.identity = blueprint.identity()
        self.batch = 1 if options.asynchronous else options.slots
        self.tickets = Tickets(self.batch, None if options.asynchronous else options.max_staleness)
        self.flow = FlowMeter(dict.fromkeys(("world", "inference", "actor", "waiting"), options.actors))
        self.servers = Servers(
            options.servers,
            blueprint,
            self.identity,
            options.server,
            lanes=options.num_envs // options.slots,
            together=not options.reproducible,
            clients=options.slots,
            keep=options.max_staleness + 2 if not options.asynchronous else options.actors + 2,
            folder=folder,
        )
        self.actors = Actors(
            blueprint,
            self.identity,
            len(learners),
            options,
            seed,
            newest=lambda: (self.version, self.weights),
            endpoints=self.servers.endpoints,
            give_up=self._give_up,
        )
        self.learner: Remote | None = None
        self.version = 0
        self.learned = 0  # batches, as tickets count them: goes back with a learner that is restored
        self.epoch = 0
        self.weights: Any = None  # reference to the newest
        self.events: list[tuple[str, str]] = []
        self.counts: list[Counts] = []
        self._nothing: list[Counts] = []
        self.about: dict[str, Any] = {}
        self.lost = {"frames": 0, "chunks": 0, "learners": 0}
        self._offers: dict[Any, Callable[[Any, Any], None]] = {}  # the learner's reports that are to come
        self._good: dict[str, Any] = {}  # what a lost learner is restored from
        self._updates: list[Updates] = []

    # ---- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every process; fresh learners and worlds. Raises: RunError if one does not start."""
        self._start_learner(None)
        self.servers.start(self.version, self.weights)
        while self.actors.expected:
            self.actors.start_due()
            self._hear(1.0)
        self.keep()

    def _start_learner(self, stored: Any) -> None:
        own = self.options
        job = LearnerJob(
            seed=self.seed,
            batch=self.batch,
            ordered=not own.asynchronous,
            capacity=self.batch * (own.max_staleness + 2) + own.slots,
            identity=self.identity,
            devices=own.learners // own.learner_processes,
        )
        self.learner = start_learner(self.blueprint, job, own.learner, own.learner_processes)
        about, self.weights = self.learner.call("start", self.version, stored, returns=2)
        self.about["learner"] = get(about)

    def close(self) -> None:
        """End every process."""
        self.actors.close()
        self.servers.close()
        if self.learner is not None:
            self.learner.kill()

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self, updates: int) -> DispatchResult:
        """Go on until the learners have learned `updates` more times. Leaves are numbers without a seed axis.

        Raises: RunError if too few actors are left, the learner keeps dying, or a world says that the run must stop.
        """
        goal = self.version + updates
        self._offer(goal, [])
        while self.version < goal:
            self.actors.start_due()
            self._issue()
            self._look_after()
            self._hear(1.0, goal)
        return self._result()

    def _issue(self) -> None:
        """Give work to actors that have room for it, as far as the bound on staleness allows."""
        room = 1 if self.options.asynchronous or self.options.reproducible else IN_FLIGHT
        for round_ in range(room):
            for hand in self.actors.hands:
                if hand.ready and len(hand.calls) == round_ and not self._send(hand):
                    return

    def _send(self, hand: Hand) -> bool:
        """One call for as many of an actor's slots as tickets are to be had; whether there was any."""
        tickets: list[Ticket] = []
        for slot in hand.slots[: 1 if self.options.asynchronous else None]:
            ticket = self.tickets.issue(slot, self.learned)
            if ticket is None:
                break
            tickets.append(ticket)
        if not tickets:
            return False
        self.actors.send(hand, tickets, self.epoch)
        return True

    def _hear(self, timeout_s: float, goal: int | None = None) -> None:
        """Take the answers that are there, or wait for one."""
        import ray

        waiting = [*self.actors.references(), *self._offers]
        if not waiting:
            if not self.actors.expected:
                raise RunError("the dataflow stands still: no actor is at work and no batch is complete")
            time.sleep(min(timeout_s, 0.05))  # until a lost actor may be started again
            return
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        if len(waiting) > 1:
            done, _ = ray.wait(waiting, num_returns=min(len(waiting), BATCH), timeout=0, fetch_local=False)
        # Answers of one moment are taken in a fixed order: the learner's first, then by actor.
        for reference in [r for r in list(self._offers) if r in done]:
            self._learner_said(reference)
        for hand in self.actors.hands:
            if hand.starting in done:
                self.actors.started(hand)
            for reference in [r for r in list(hand.calls) if r in done]:
                self._actor_said(hand, reference, goal)

    def _actor_said(self, hand: Hand, reference: Any, goal: int | None) -> None:
        taken = self.actors.take(hand, reference)
        if taken is None:
            return
        call, said = taken
        self.flow.add(said["flow"])
        counts = plain_counts(said["counts"])
        if call.epoch != self.epoch or not all(self.tickets.holds(ticket) for ticket in call.tickets):
            # Its tickets are others' by now: what it brings would be trained on twice, or too late.
            self.lost["chunks"] += len(call.tickets)
            self.lost["frames"] += int(counts.env_steps)
            self._give_up(call)
            self.events.append(("late chunk", f"actor {hand.index} came too late with {len(call.tickets)} chunks"))
            return
        self.counts.append(counts)
        self._nothing = [jax.tree.map(np.zeros_like, counts)]
        if self.options.asynchronous:
            self._apply(call, said)
        else:
            self._offer(goal if goal is not None else self.version, call.tickets, call.arenas, hand)

    def _give_up(self, call: Call) -> None:
        """Free the tickets of a call that brings nothing any more."""
        for ticket in call.tickets:
            if call.epoch == self.epoch and self.tickets.holds(ticket):
                self.tickets.cancel(ticket)

    def _look_after(self) -> None:
        """Look after servers and actors."""
        busy, events, moved = self.servers.look(self.version, self.weights)
        self.flow.add_time("inference", busy * self.options.actors)  # which the meter divides by
        self.events += events
        for hand in self.actors.hands:
            if moved and hand.index % self.options.servers in moved:
                self.actors.lose(hand, "its policy server is on another node now")
        self.actors.look_after()

    # ---- the learner -----------------------------------------------------------------------------------------------

    def _offer(self, goal: int, tickets: list[Ticket], arenas: Sequence[Any] = (), hand: Hand | None = None) -> None:
        assert self.learner is not None
        answer, weights = self.learner.call("offer", goal, *arenas, returns=2)

        def said(report: Any, weights: Any) -> None:
            for ticket in tickets:
                if ticket.number in report["accepted"]:
                    self.tickets.complete(ticket)
                elif self.tickets.holds(ticket):
                    self.tickets.cancel(ticket)
                    self.lost["chunks"] += 1
            for number, reason in report["rejected"]:
                self.events.append(("chunk rejected", f"ticket {number}: {reason}"))
            if report["damaged"] and hand is not None:
                self.events.append(("damaged chunk", f"actor {hand.index}: {report['damaged']}"))
            self._published(report["version"], weights)

        self._offers[answer] = lambda report, _: said(report, weights)

    def _apply(self, call: Call, said: Mapping[str, Any]) -> None:
        assert self.learner is not None
        answer, weights = self.learner.call(
            "apply", call.version, said["env_steps"], said["metrics"], *call.arenas, returns=2
        )
        for ticket in call.tickets:
            self.tickets.complete(ticket)
        self._offers[answer] = lambda report, _: self._published(report["version"], weights)

    def _published(self, version: int, weights: Any) -> None:
        if version > self.version:
            self.learned += version - self.version
            self.version, self.weights = version, weights
            self.servers.load(version, weights)

    def _learner_said(self, reference: Any) -> None:
        then = self._offers.pop(reference)
        try:
            then(get(reference), None)
        except LostError as error:
            self._learner_lost(str(error))

    def _learner_lost(self, why: str) -> None:
        """A fresh process goes on from the last snapshot. What came since is lost and counted; versions go on."""
        began = now()
        self.lost["learners"] += 1
        if self.lost["learners"] >= LEARNER_LOSSES:
            raise RunError(f"the learner was lost {self.lost['learners']} times ({why}), so the run stops")
        if self.learner is not None:
            self.learner.kill()
        back = self.learned - self._good["learned"]
        self._offers = {}
        self.epoch += 1
        self.version += 1  # readers never see a version twice, nor go back
        self.learned = self._good["learned"]
        self.tickets.restore(self._good["tickets"])
        for ticket in self.tickets.outstanding:
            self.tickets.cancel(ticket)
        self._start_learner(self._good["learner"])
        self.servers.load(self.version, self.weights)
        self.events.append(
            (
                "learner restarted",
                f"{why}; it went on from the last checkpoint, {back} updates before, after {now() - began:.1f} s",
            )
        )

    # ---- what a dispatch reports -------------------------------------------------------------------------------------

    def _take(self) -> None:
        """The learner's numbers since the last time, and its flow."""
        assert self.learner is not None
        taken = self.learner.ask("take")
        self.flow.add(taken["flow"])
        self._updates.append(Updates(**taken["updates"]))

    def _result(self) -> DispatchResult:
        try:
            self._take()
        except LostError as error:
            self._learner_lost(str(error))
            self._take()
        # What was learned from may all have been played, and counted, before the last report.
        counts, self.counts = self.counts or self._nothing, []
        updates, self._updates = self._updates[-1], []
        flow = self.flow.report() | {f"flow/lost_{name}": float(n) for name, n in self.lost.items()}
        flow |= {"flow/lost_actors": float(self.actors.lost), "flow/actors": float(self.actors.ready)}
        return report(counts, updates, flow)

    def take_events(self) -> list[tuple[str, str]]:
        """(name, words) of what happened since the last call."""
        found = self.events + self.actors.events
        self.events, self.actors.events = [], []
        return found

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No more tickets; wait for what is under way, and hand it over without learning from it."""
        while any(hand.calls for hand in self.actors.hands) or self._offers:
            self.actors.start_due()
            self._look_after()
            self._hear(1.0)

    def keep(self) -> None:
        """Remember this moment as the one that a lost learner is restored from. The run must be drained."""
        assert self.learner is not None
        self._good = {
            "learner": self.learner.ask("snapshot"),  # here, where it survives the loss of the learner's node
            "learned": self.learned,
            "version": self.version,
            "tickets": self.tickets.snapshot(),
        }

    def snapshot(self) -> dict[str, Any]:
        """The whole run at one moment, drained, as a plain tree. A slot whose actor is lost just now is left empty."""
        self.drain()
        slots: dict[int, Any] = {}
        for hand in self.actors.hands:
            if hand.ready:
                assert hand.remote is not None
                try:
                    stored = own_memory(unpack(hand.remote.ask("snapshot")))
                except LostError as error:
                    self.actors.lose(hand, str(error))
                else:
                    slots |= dict(zip(hand.slots, stored, strict=True))
        self.keep()
        incarnations = [hand.incarnation for hand in self.actors.hands for _ in hand.slots]
        return {
            "trainer": own_memory(unpack(self._good["learner"])),
            "version": np.int64(self.version),
            "learned": np.int64(self.learned),
            "tickets": self.tickets.snapshot(),
            "flow": self.flow.snapshot(),
            "lost": {name: np.int64(n) for name, n in self.lost.items()},
            "incarnations": np.array(incarnations, np.int64),
            "slots": [slots.get(index) for index in range(self.options.slots)],
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a snapshot, on a run that was started: with any number of actors, learners and nodes.

        Raises: CheckpointError if it is of another run.
        """
        if len(stored["slots"]) != self.options.slots:
            raise CheckpointError(
                f"the checkpoint has {len(stored['slots'])} slots, this run {self.options.slots}; "
                "expected the same, however many actors share them"
            )
        assert self.learner is not None
        self.version, self.learned = int(stored["version"]), int(stored["learned"])
        self.tickets.restore(stored["tickets"])
        self.flow.restore(stored["flow"])
        self.lost = {name: int(stored["lost"].get(name, 0)) for name in self.lost}
        trainer = pack(stored["trainer"], "a learner")
        about, self.weights = self.learner.call("start", self.version, trainer, returns=2)
        self.about["learner"] = get(about)
        self.servers.load(self.version, self.weights)
        for hand in self.actors.hands:
            own = [stored["slots"][index] for index in hand.slots]
            hand.incarnation = max(int(stored["incarnations"][index]) for index in hand.slots)
            if any(slot is None for slot in own):  # it was lost at that moment: fresh worlds
                self.actors.lose(hand, "it was lost when the checkpoint was written")
                continue
            assert hand.remote is not None
            arena = pack(own, "a slot")
            self.events += hand.remote.ask("restore", arena, self.version, hand.incarnation, self.weights)
            hand.version = self.version
        self.keep()

    def params(self) -> dict[str, Tree]:
        """What every learner published last."""
        return unpack_weights(get(self.weights))
