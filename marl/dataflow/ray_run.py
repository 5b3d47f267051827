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
from marl.dataflow.learning import Counts, DispatchResult, Updates, add_counts, plain_counts, report, tree_of
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_actors import Actors, Call, Hand
from marl.dataflow.ray_actors import RayOptions as RayOptions
from marl.dataflow.ray_crew import START_LIMIT_S, LostError, get, now
from marl.dataflow.ray_learner import LearnerSeat
from marl.dataflow.ray_ledger import Ledger
from marl.dataflow.ray_servers import Servers
from marl.dataflow.ray_store import StoreWatch
from marl.dataflow.shells import own_memory, unpack_weights
from marl.dataflow.tickets import Ticket, Tickets

IN_FLIGHT = 2  # calls of one actor: the next is there when the first is done
BATCH = 64  # answers taken at once: waiting for one after the other costs the square of their number
STOP_LIMIT_S = 60.0  # for what is under way when the run is asked to stop; what takes longer is given up


class RayRun:
    """One seed of a run on Ray, in a session that was joined.

    learners: names of the policies that learn, in the order of the blueprint's parts.  folder: for sockets, of a
    cluster that is this machine alone.  should_stop: asked between updates; a dispatch ends early once it says so.
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
        self.options = options
        identity = blueprint.identity()
        self.tickets = Tickets(
            1 if options.asynchronous else options.slots, None if options.asynchronous else options.max_staleness
        )
        self.ledger = Ledger()
        self.flow = FlowMeter(dict.fromkeys(("world", "inference", "actor", "waiting"), options.actors))
        self.learner = LearnerSeat(blueprint, identity, options, seed, self.tickets, self.ledger)
        self.servers = Servers(
            options.servers,
            blueprint,
            identity,
            options.server,
            lanes=options.num_envs // options.slots,
            together=not options.reproducible,
            clients=options.slots,
            folder=folder,
            limit=options.give_up,
        )
        self.actors = Actors(
            blueprint,
            identity,
            len(learners),
            options,
            seed,
            newest=lambda: (self.learner.version, self.learner.weights),
            endpoints=self.servers.endpoints,
            give_up=self._give_up,
        )
        self.store = StoreWatch()
        self.should_stop: Callable[[], bool] = lambda: False
        self.events: list[tuple[str, str]] = []
        self.counts: list[Counts] = []
        self._nothing: list[Counts] = []
        self._held: list[tuple[Hand, Call, Mapping[str, Any]]] = []  # gradients that the learner has not been given
        self._shown = -1  # the version that servers were given last

    @property
    def version(self) -> int:
        """Of the newest parameters."""
        return self.learner.version

    @property
    def about(self) -> dict[str, Any]:
        """What process the learner is in, and its devices."""
        return {"learner": self.learner.about}

    # ---- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every process; fresh learners and worlds. Actors for which the cluster has no room join later.

        Raises: RunError if one does not start, or there is no room for as many as the run wants at least.
        """
        self.learner.start()
        self.servers.start(self.version, self.learner.weights)
        self._shown = self.version
        began = now()
        while not self.actors.settled:
            self.actors.start_due()
            self.actors.look_after()
            self._hear(1.0)
            if not self.actors.busy and now() - began > START_LIMIT_S:
                raise RunError(
                    f"the cluster has room for {self.actors.ready} of {self.options.actors} actors; expected "
                    f"{self.options.actor.cpus:g} free CPUs for each of at least {self.options.min_actors}"
                )
        self.learner.keep()

    def close(self) -> None:
        """End every process."""
        self.actors.close()
        self.servers.close()
        self.learner.close()

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self, updates: int) -> DispatchResult:
        """Go on until the learners have learned `updates` more times, or the run is asked to stop. Leaves are numbers
        without a seed axis.

        Raises: RunError if too few actors are left, the learner keeps dying or diverging, or a world says that the run
        must stop.
        """
        goal = self.version + updates
        self.learner.offer(goal)
        while self.version < goal and not (self._nothing and self.should_stop()):
            self._apply_held(goal)
            self.actors.start_due()
            self._issue()
            self._look_after(goal)
            self._hear(1.0, goal)
        return self._result()

    def _issue(self) -> None:
        """Give work to actors that have room for it, as far as the bound on staleness and the object store allow."""
        if self.store.full and (self.actors.calls or self.learner.offers):
            return
        room = 1 if self.options.asynchronous or self.options.reproducible else IN_FLIGHT
        for round_ in range(room):
            for hand in self.actors.hands:
                if hand.ready and not hand.pushing and len(hand.calls) == round_ and not self._send(hand):
                    return

    def _send(self, hand: Hand) -> bool:
        """One call for as many of an actor's slots as tickets are to be had; whether there was any."""
        tickets: list[Ticket] = []
        for slot in hand.slots[: 1 if self.options.asynchronous else None]:
            ticket = self.tickets.issue(slot, self.learner.learned)
            if ticket is None:
                break
            tickets.append(ticket)
        if not tickets:
            return False
        self.actors.send(hand, tickets, self.learner.epoch)
        return True

    def _hear(self, timeout_s: float, goal: int | None = None) -> None:
        """Take the answers that are there, or wait for one."""
        import ray

        waiting = [*self.actors.references(), *self.learner.offers]
        if not waiting:
            if not self.actors.expected:
                raise RunError("the dataflow stands still: no actor is at work and no batch is complete")
            time.sleep(min(timeout_s, 0.05))  # until a lost actor may be started again
            return
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        if len(waiting) > 1:
            done, _ = ray.wait(waiting, num_returns=min(len(waiting), BATCH), timeout=0, fetch_local=False)
        # Answers of one moment are taken in a fixed order: the learner's first, then by actor.
        for reference in [r for r in list(self.learner.offers) if r in done]:
            self._learner_said(reference)
        for hand in self.actors.hands:
            self.actors.answered(hand, done)
            for reference in [r for r in list(hand.calls) if r in done]:
                self._actor_said(hand, reference, goal)

    def _actor_said(self, hand: Hand, reference: Any, goal: int | None) -> None:
        taken = self.actors.take(hand, reference)
        if taken is None:
            return
        call, said = taken
        self.flow.add(said["flow"])
        frames: dict[int, int] = said["frames"]
        self.ledger.offer(frames)
        counts = plain_counts(said["counts"])
        if call.epoch != self.learner.epoch or not all(self.tickets.holds(ticket) for ticket in call.tickets):
            # Its tickets are others' by now: what it brings would be trained on twice, or too late.
            self._give_up(call)
            self.ledger.lose(frames)
            hand.pushing = False
            words = f"actor {hand.index} came too late with {len(frames)} chunks of {sum(frames.values())} env steps"
            self.events.append(("late chunk", words))
            return
        self.counts.append(counts)
        self._nothing = [jax.tree.map(np.zeros_like, counts)]
        if self.options.asynchronous:
            self._held.append((hand, call, said))
            self._apply_held(self.version if goal is None else goal)
        else:
            goal = self.version if goal is None else goal
            self.learner.offer(goal, call.tickets, frames, call.arenas, hand)

    def _apply_held(self, goal: int) -> None:
        """Hand gradients to the learner in the order of their arrival, and none beyond `goal`. A worker goes on when
        its own is applied, with the parameters that it led to."""
        while self._held and self.version + len(self.learner.offers) < goal:
            hand, call, said = self._held.pop(0)
            self.learner.apply(call.version, call.tickets, said["frames"], said, call.arenas, hand)

    def _give_up(self, call: Call) -> None:
        """Free the tickets of a call that brings nothing any more."""
        for ticket in call.tickets:
            if call.epoch == self.learner.epoch and self.tickets.holds(ticket):
                self.tickets.cancel(ticket)

    def _learner_said(self, reference: Any) -> None:
        epoch = self.learner.epoch
        offer = self.learner.heard(reference)
        if offer is not None and offer.hand is not None:
            offer.hand.pushing = False
            self.actors.judge(offer.hand)
        self._learner_moved(epoch)

    def _learner_moved(self, epoch: int) -> None:
        """Tell the others of new parameters, and forget what was meant for a learner that has gone back."""
        if epoch != self.learner.epoch:
            self._held = []
            for hand in self.actors.hands:
                hand.pushing = hand.pushing and bool(hand.calls)
        if self._shown != self.version:
            self._shown = self.version
            used = {call.version for hand in self.actors.hands for call in hand.calls.values()}
            self.servers.load(self.version, self.learner.weights, used)

    def _look_after(self, goal: int) -> None:
        """Look after the learner, servers, actors and the object store."""
        epoch = self.learner.epoch
        self.learner.look_after(goal)
        self._learner_moved(epoch)
        busy, events, moved = self.servers.look()
        self.flow.add_time("inference", busy * self.options.actors)  # which the meter divides by
        self.events += events
        if events:
            self.actors.excuse()
        for hand in self.actors.hands:
            if moved and hand.remote is not None and hand.index % self.options.servers in moved:
                self.actors.lose(hand, "its policy server is on another node now")
        self.actors.look_after()
        self.events += self.store.look()

    # ---- what a dispatch reports -------------------------------------------------------------------------------------

    def _ask_learner(self, method: str) -> Any:
        """What a method of the learner returns, of the one that takes its place if it is lost. Nothing may be under
        way but what actors do."""
        while True:
            try:
                assert self.learner.remote is not None
                return self.learner.remote.ask(method)
            except LostError as error:
                epoch = self.learner.epoch
                self.learner.lost(str(error))
                self._learner_moved(epoch)

    def _result(self) -> DispatchResult:
        taken = self._ask_learner("take")
        self.flow.add(taken["flow"])
        updates = Updates(**taken["updates"])
        # What was learned from may all have been played, and counted, before the last report.
        counts, self.counts = self.counts or self._nothing, []
        flow = self.flow.report() | self.ledger.tags() | self.store.tags()
        flow |= {"flow/lost_actors": float(self.actors.lost), "flow/actors": float(self.actors.ready)}
        flow |= {"flow/lost_rollouts": float(self.actors.lost_rollouts)}  # open ones, whose rows nobody counted
        return report(counts, updates, flow)

    def take_events(self) -> list[tuple[str, str]]:
        """(name, words) of what happened since the last call."""
        found = []
        for part in (self, self.learner, self.actors):
            found += part.events
            part.events = []
        return found

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def drain(self, limit_s: float = float("inf")) -> None:
        """No more tickets; wait for what is under way, and hand it over without learning from it. What takes longer
        than the limit is given up, its actor with it."""
        began = now()
        while self.actors.calls or self.learner.offers or self._held:
            self._apply_held(self.version + len(self._held) + 1)
            self.actors.start_due()
            self._look_after(self.version)
            self._hear(0.2 if limit_s < float("inf") else 1.0)
            if now() - began > limit_s:
                for hand in self.actors.hands:
                    if hand.calls:
                        self.actors.lose(hand, f"it was not done within {limit_s:g} s of the run's end")

    def snapshot(self) -> dict[str, Any]:
        """The whole run at one moment, drained, as a plain tree. A slot whose actor is lost just now is left empty."""
        self.drain(STOP_LIMIT_S if self.should_stop() else float("inf"))
        slots: dict[int, Any] = {}
        for hand in self.actors.hands:
            stored = self.actors.snapshot(hand)
            if stored is not None:
                slots |= dict(zip(hand.slots, stored, strict=True))
        trainer = self._ask_learner("snapshot")
        incarnations = [hand.incarnation for hand in self.actors.hands for _ in hand.slots]
        counts = self.counts or self._nothing  # of what was under way at the last report
        whole = {
            "trainer": own_memory(unpack(trainer)),
            "version": np.int64(self.version),
            "learned": np.int64(self.learner.learned),
            "tickets": self.tickets.snapshot(),
            "flow": self.flow.snapshot(),
            "ledger": self.ledger.snapshot(),
            "incarnations": np.array(incarnations, np.int64),
            "counts": tree_of(add_counts(counts)) if counts else None,
            "slots": [slots.get(index) for index in range(self.options.slots)],
        }
        self._keep(trainer)  # last: if the learner is lost over it, everything here goes back
        return whole

    def _keep(self, trainer: Any) -> None:
        try:
            self.learner.keep(trainer)
        except LostError:
            self._ask_learner("health")  # it goes on from an older moment; the checkpoint is whole

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a snapshot, on a run that was started: with any number of actors, learners and nodes.

        Raises: CheckpointError if it is of another run.
        """
        if len(stored["slots"]) != self.options.slots:
            raise CheckpointError(
                f"the checkpoint has {len(stored['slots'])} slots, this run {self.options.slots}; "
                "expected the same, however many actors share them"
            )
        self.tickets.restore(stored["tickets"])
        self.flow.restore(stored["flow"])
        if stored.get("counts") is not None:
            self.counts = [plain_counts(stored["counts"])]
            self._nothing = [jax.tree.map(np.zeros_like, self.counts[0])]
        self.ledger.restore(stored["ledger"])
        self.learner.restore(pack(stored["trainer"], "a learner"), int(stored["version"]), int(stored["learned"]))
        self._shown = self.version
        self.servers.load(self.version, self.learner.weights, set())
        for hand in self.actors.hands:
            own = [stored["slots"][index] for index in hand.slots]
            self.actors.restore(hand, own, max(int(stored["incarnations"][index]) for index in hand.slots))

    def params(self) -> dict[str, Tree]:
        """What every learner published last."""
        try:
            return unpack_weights(get(self.learner.weights))
        except LostError as error:  # with the learner's node, hence with the learner
            epoch = self.learner.epoch
            self.learner.lost(str(error))
            self._learner_moved(epoch)
            return unpack_weights(get(self.learner.weights))
