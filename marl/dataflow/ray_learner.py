"""The learner of a run on Ray, as its driver sees it: what it was offered, what it said, from where it goes on when it
is lost or has diverged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl.core.errors import RunError
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_actors import Hand, RayOptions
from marl.dataflow.ray_crew import ArgumentLostError, Losses, LostError, Remote, get, now, silent
from marl.dataflow.ray_ledger import Ledger
from marl.dataflow.ray_ranks import start_learner
from marl.dataflow.shells import LearnerJob
from marl.dataflow.tickets import Ticket, Tickets
from marl.io.files import replace_file

DIVERGED_AFTER = 3  # updates in a row that were not finite, before the learner goes back to its last checkpoint
MOST_ROLLBACKS = 2  # without a checkpoint in between, before the run is called failed
SLOWER = 0.5  # the learning rate after a rollback, as a share of what it was


class Offer(NamedTuple):
    """What the learner is busy with. frames: env steps by ticket number.  weights: reference to what it may publish."""

    tickets: Sequence[Ticket]
    frames: Mapping[int, int]
    hand: Hand | None
    weights: Any
    sent: float
    gradient: bool = False


class LearnerSeat:
    """version: of the newest parameters; never goes back.  weights: the reference to them.  learned: batches, as
    tickets count them; goes back with a learner that is restored.  epoch: how often that happened. good: the moment
    that a lost learner is restored from.  post_mortem: folder for batches after which updates were not finite.
    """

    def __init__(
        self, blueprint: Blueprint, identity: str, options: RayOptions, seed: int, tickets: Tickets, ledger: Ledger
    ) -> None:
        self.blueprint, self.identity, self.options, self.seed = blueprint, identity, options, seed
        self.tickets, self.ledger = tickets, ledger
        self.remote: Remote | None = None
        self.version = self.learned = self.epoch = 0
        self.weights: Any = None
        self.about: dict[str, Any] = {}
        self.events: list[tuple[str, str]] = []
        self.offers: dict[Any, Offer] = {}
        self.good: dict[str, Any] = {}
        self.post_mortem: Path | None = None
        self._losses = Losses(limit=options.give_up)
        self._rollbacks = 0  # since `good`
        self._asked = 0.0

    # ---- start -----------------------------------------------------------------------------------------------------

    def start(self, stored: Any = None) -> None:
        """A fresh process. stored: what it goes on from, as an arena. Raises: LostError if it does not start."""
        own = self.options
        job = LearnerJob(
            seed=self.seed,
            batch=self.tickets.batch,
            ordered=not own.asynchronous,
            capacity=self.tickets.batch * (own.max_staleness + 2) + own.slots,
            identity=self.identity,
            devices=own.learners // own.learner_processes,
        )
        self.remote = start_learner(self.blueprint, job, own.learner, own.learner_processes)
        self._begin(stored)

    def _begin(self, stored: Any, slower: float = 1.0) -> None:
        assert self.remote is not None
        about, self.weights = self.remote.call("start", self.version, stored, slower, returns=2)
        self.about = get(about)

    def restore(self, stored: Any, version: int, learned: int) -> None:
        """Bring the process that is there to a checkpoint."""
        self.version, self.learned, self.good = version, learned, {}  # what was before is none to go back to
        self._begin(stored)
        self.keep()

    def close(self) -> None:
        """End the process."""
        if self.remote is not None:
            self.remote.kill()

    # ---- offers ----------------------------------------------------------------------------------------------------

    def offer(
        self,
        goal: int,
        tickets: Sequence[Ticket] = (),
        frames: Mapping[int, int] | None = None,
        arenas: Sequence[Any] = (),
        hand: Hand | None = None,
    ) -> None:
        """Hand chunks over, and have it learn up to version `goal`."""
        assert self.remote is not None
        answer, weights = self.remote.call("offer", goal, *arenas, returns=2)
        self.offers[answer] = Offer(tickets, frames or {}, hand, weights, now())
        self._asked = now()

    def apply(
        self,
        acted: int,
        tickets: Sequence[Ticket],
        frames: Mapping[int, int],
        said: Mapping[str, Any],
        arenas: Sequence[Any],
        hand: Hand,
    ) -> None:
        """Hand a gradient over that was taken at version `acted`."""
        assert self.remote is not None
        answer, weights = self.remote.call("apply", acted, said["env_steps"], said["metrics"], *arenas, returns=2)
        for ticket in tickets:
            self.tickets.complete(ticket)
        self.offers[answer] = Offer(tickets, frames, hand, weights, now(), gradient=True)
        self._asked = now()

    def heard(self, reference: Any) -> Offer | None:
        """Take an answer; None if the learner is in another process or at another moment now."""
        offer = self.offers.pop(reference, None)
        if offer is None:  # it was forgotten just now
            return None
        try:
            report = get(reference)
        except ArgumentLostError:
            self._went(offer)
            return offer
        except LostError as error:
            self.lost(str(error))
            return None
        accepted = set(report["accepted"])
        if offer.gradient and not report["damaged"]:
            accepted = set(offer.frames)
        # What its buffer has already is not to be collected again.
        had = accepted | {number for number, reason in report["rejected"] if reason == "duplicate"}
        for ticket in offer.tickets:
            if offer.gradient or not self.tickets.holds(ticket):
                continue
            if ticket.number in had:
                self.tickets.complete(ticket)
            else:
                self.tickets.cancel(ticket)
        self.ledger.settle(offer.frames, accepted)
        for number, reason in report["rejected"]:
            self.events.append(("chunk rejected", f"ticket {number}: {reason}"))
        if report["damaged"]:
            self._damaged(offer, report["damaged"])
        # Answers may be heard in another order than they were given: one that brings no weights moves nothing.
        if report["published"] and report["version"] > self.version:
            self.learned += report["version"] - self.version
            self.version, self.weights = report["version"], offer.weights
        if report["skipped"] >= DIVERGED_AFTER:
            self._diverged(report["skipped"])
            return None
        return offer

    def _went(self, offer: Offer) -> None:
        """The chunks of an offer were lost with their node before they could be read."""
        for ticket in offer.tickets:
            if self.tickets.holds(ticket):
                self.tickets.cancel(ticket)
        self.ledger.lose(offer.frames)
        who = f"actor {offer.hand.index}" if offer.hand is not None else "an actor"
        self.events.append(("chunk lost", f"{who}: {len(offer.frames)} chunks were lost with the node that held them"))

    def _damaged(self, offer: Offer, words: str) -> None:
        who = "an actor"
        if offer.hand is not None:
            offer.hand.damaged += 1
            who = f"actor {offer.hand.index}"
        self.events.append(("damaged chunk", f"{who}: {words}"))

    def look_after(self, goal: int) -> None:
        """Notice within seconds that it is gone, though nothing is to be offered; end one that does not answer."""
        reference, oldest = next(iter(self.offers.items()), (None, None))
        if oldest is None:
            if now() - self._asked > self.options.heartbeat_s:
                self.offer(goal)
        elif now() - oldest.sent > self.options.call_limit_s and silent(reference):
            self.lost(f"it did not answer for {self.options.call_limit_s:g} s")

    # ---- going back --------------------------------------------------------------------------------------------------

    def keep(self, snapshot: Any = None) -> None:
        """Remember this moment as the one to go back to. Nothing may be under way. A moment after updates that were not
        finite is none to go back to. snapshot: the process's, if it was asked for. Raises: LostError if the process is
        gone."""
        assert self.remote is not None
        if self.good and self.remote.ask("health")["skipped"]:
            return
        self.good = {
            # Here, where it survives the loss of the learner's node, and a copy, as it stays for long: what Ray gives
            # is a view of a block in the store.
            "learner": np.array(self.remote.ask("snapshot") if snapshot is None else snapshot),
            "learned": self.learned,
            "tickets": self.tickets.snapshot(),
            "taken": dict(self.ledger.taken),
        }
        self._rollbacks = 0

    def lost(self, why: str) -> None:
        """A fresh process goes on from the last checkpoint; what came since is lost and counted.

        Raises: RunError if that happens too often.
        """
        began = now()
        while True:
            self.ledger.learners += 1
            wait = self._losses.note(now())
            if wait is None:
                raise RunError(f"the learner was lost {self._losses.total} times ({why}), so the run stops")
            self.close()
            undone = self._go_back()
            try:
                self.start(self.good["learner"])
                break
            except LostError as error:
                why = f"{why}; then {error}"
                time.sleep(wait)
        self.events.append(
            (
                "learner restarted",
                f"{why}; it went on from the last checkpoint, {undone}, after {now() - began:.1f} s",
            )
        )

    def _go_back(self) -> str:
        """Everything here as it was at the last checkpoint. Returns what that undoes, in words."""
        updates = self.learned - self.good["learned"]
        lost = self.ledger.go_back(self.good["taken"])
        self.offers, self._asked = {}, 0.0  # its buffer may hold a batch that nothing else would have it learn from
        self.epoch += 1
        self.version += 1  # readers never see a version twice, nor go back
        self.learned = self.good["learned"]
        self.tickets.restore(self.good["tickets"])
        for ticket in self.tickets.outstanding:
            self.tickets.cancel(ticket)
        return f"{updates} updates before ({lost['chunks']} chunks of {lost['frames']} env steps are lost)"

    def _diverged(self, skipped: int) -> None:
        """Back to the last checkpoint in the same process, slower where the algorithm has a learning rate.

        Raises: RunError if that was tried before and did not help.
        """
        assert self.remote is not None
        where = self._save_batch()
        if self._rollbacks == MOST_ROLLBACKS:
            raise RunError(
                f"the learner has diverged: {skipped} updates in a row were not finite, and going back to the last "
                f"checkpoint {MOST_ROLLBACKS} times did not help{where}; "
                "a smaller learning_rate or max_grad_norm usually helps"
            )
        self._rollbacks += 1
        self.ledger.rollbacks += 1
        undone = self._go_back()
        try:
            self._begin(self.good["learner"], SLOWER**self._rollbacks)
        except LostError as error:
            self.lost(str(error))
            return
        rate = f"its learning rate times {SLOWER**self._rollbacks:g}" if self.about["slower"] else "as fast as before"
        words = f"{skipped} updates in a row were not finite; it went back to the last checkpoint, {undone}, {rate}"
        self.events.append(("rolled back", words + where))

    def _save_batch(self) -> str:
        """Keep the first of the batches that did it. Returns where, in words."""
        assert self.remote is not None
        if self.post_mortem is None:
            return ""
        try:
            batch = self.remote.ask("bad_batch")
        except LostError:
            return ""
        path = self.post_mortem / f"not-finite-{self.version}.arena"
        try:
            self.post_mortem.mkdir(parents=True, exist_ok=True)
            replace_file(path, bytes(batch))
        except OSError as error:
            return f"; the batch could not be stored ({error.strerror})"
        return f"; the batch is in {path}"
