"""Actors, policy server, buffers, learners and parameter store as plain objects in one process, for one seed.

Nothing here runs in a thread: `LocalRun.run` is one loop that can be stepped in a debugger. Worlds that are not JAX may
be stepped in processes of their own; at staleness 0 the numbers do not depend on which of them answers first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from marl.core.algorithm import Algorithm, Policy
from marl.core.env import AnyEnvironment
from marl.core.errors import ConfigError, RunError
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.types import Tree
from marl.dataflow.actor import WAIT_S, ActorCore, ActorOptions, InlineInference, Slot
from marl.dataflow.buffers import Accepted
from marl.dataflow.flow import FlowMeter
from marl.dataflow.learner import LearnerCore
from marl.dataflow.learning import Counts, DispatchResult, report
from marl.dataflow.server import PolicyServer
from marl.dataflow.slots import Filled
from marl.dataflow.stage import LearnerStage, common_rollout
from marl.dataflow.store import ParameterStore
from marl.dataflow.tickets import Tickets
from marl.dataflow.trainer import MakeLearner, Trainer


@dataclasses.dataclass(frozen=True)
class LocalOptions:
    """num_envs: lanes.  slots: groups of them.  workers: processes that step them, 0 for this one.

    max_staleness: in versions; None: no bound.  asynchronous: every slot is a worker whose gradient is applied when it
    arrives (A3C).  random_phase: slots begin their first rollout at different rows.  actors, inference, learner:
    devices; None for JAX's default one. Worlds in JAX, policies included, run on `actors`, those in Python on the CPU.
    make_learner: makes what learns, by policy name; None: a learner on `learner`.
    """

    num_envs: int
    slots: int = 1
    workers: int = 0
    max_staleness: int | None = 0
    asynchronous: bool = False
    random_phase: bool = False
    updates_per_dispatch: int = 1
    faults: FaultPolicy = dataclasses.field(default_factory=FaultPolicy)
    actors: jax.Device | None = None
    inference: jax.Device | None = None
    learner: jax.Device | None = None
    make_learner: MakeLearner | None = None

    @property
    def reproducible(self) -> bool:
        """Whether two runs of one seed are bit-equal."""
        return self.workers == 0 or (self.max_staleness == 0 and not self.asynchronous)


class LocalRun:
    """One seed of a local run.

    Raises: ConfigError if the parts do not fit; WorldError if the worlds cannot be made.
    """

    def __init__(
        self,
        worlds: AnyEnvironment | HostWorlds,
        policies: Mapping[str, Policy],
        learners: Sequence[str],
        fixed: Mapping[str, Tree],
        options: LocalOptions,
        seed: int,
    ) -> None:
        self.policies, self.options, self.seed = dict(policies), options, seed
        self.algorithms: dict[str, Algorithm] = {name: policies[name] for name in learners}  # type: ignore[misc]
        fixed = {name: fixed.get(name, ()) for name in policies if name not in self.algorithms}
        self.length = common_rollout(self.algorithms)
        if options.num_envs % options.slots:
            raise ConfigError(f"{options.num_envs} lanes cannot be split evenly over {options.slots} slots")
        if options.workers and options.slots % options.workers:
            raise ConfigError(f"{options.slots} slots cannot be split evenly over {options.workers} processes")
        self.server = PolicyServer(self.policies, fixed, together=not options.reproducible, device=options.inference)
        self.store = ParameterStore(keep=10 + (options.max_staleness or 0))
        batch = 1 if options.asynchronous else options.slots
        # The learners of a run learn at the same moments, so one stream of tickets bounds them all.
        self.tickets = Tickets(batch, None if options.asynchronous else options.max_staleness)
        self.flow = FlowMeter({"world": max(options.workers, 1)})
        self.trainer = Trainer(
            self.algorithms,
            self.flow,
            batch=batch,
            ordered=not options.asynchronous,
            capacity=batch * ((options.max_staleness or 0) + 2) + options.slots,
            seed=seed,
            make_learner=options.make_learner or partial(LearnerCore, device=options.learner),
        )
        self.actor = ActorCore(
            worlds,
            self.policies,
            self.algorithms,
            ActorOptions(
                seed=seed,
                num_envs=options.num_envs,
                total_slots=options.slots,
                slots=tuple(range(options.slots)),
                workers=options.workers if isinstance(worlds, HostWorlds) else 0,
                random_phase=options.random_phase,
                faults=options.faults,
                device=options.actors,
            ),
            length=self.length,
            inference=InlineInference(self.server),
            params=self.server.params,
            flow=self.flow,
            on_filled=self._finish,
        )
        self.version = 0
        self._nothing: list[Counts] = []  # what no rows amount to, once that is known
        self.events: list[tuple[str, str]] = []

    @property
    def stages(self) -> dict[str, LearnerStage]:
        """By learner, its buffers and the learner itself."""
        return self.trainer.stages

    @property
    def slots(self) -> list[Slot]:
        return self.actor.slots

    def start(self) -> None:
        """Fresh learners, worlds and lanes."""
        self.trainer.start()
        self._publish()
        self.actor.start(self.params())

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self, updates: int) -> DispatchResult:
        """Go on until every learner has learned `updates` more times. Leaves are numbers without a seed axis."""
        goal = self.version + updates
        while self.version < goal or self.trainer.pending is not None or not (self.actor.counts or self._nothing):
            moved = self._issue()
            moved |= self.actor.step()
            moved |= self._learn(goal)
            if not moved:
                self._wait()
        return self._result()

    def _issue(self) -> bool:
        """Give tickets to the slots that have none, as far as the bound on staleness allows."""
        moved = False
        idle = self.actor.idle
        if not self.options.reproducible:  # who waited longest comes first; else always the same order
            idle.sort(key=lambda slot: slot.finished)
        for slot in idle:
            if not self._begin(slot):
                break
            moved = True
        return moved

    def _begin(self, slot: Slot) -> bool:
        """Let a slot begin a rollout with the newest parameters, if it may."""
        ticket = self.tickets.issue(slot.index, self.version)
        if ticket is not None:
            self.actor.begin(slot, ticket, dict.fromkeys(self.algorithms, self.version))
        return ticket is not None

    def _finish(self, slot: Slot, filled: Filled) -> None:
        """Hand a full rollout over and let the slot ask for its next ticket."""
        assert slot.ticket is not None
        self.tickets.complete(slot.ticket)
        for chunk in self.actor.chunks(slot, filled).values():
            answer = self.trainer.offer(chunk, self.version)
            if not isinstance(answer, Accepted):  # the buffer's bound and the tickets' do not fit together
                raise RunError(f"the buffer of '{chunk.policy}' refused a chunk of slot {slot.index}: {answer.reason}")
        if self.options.asynchronous:  # a worker pulls new parameters right after its own push
            self._learn(None)
            self._begin(slot)

    def _learn(self, goal: int | None) -> bool:
        """Finish the update that is under way, or begin one if a batch is there."""
        trainer = self.trainer
        prepared = trainer.prepare(self.version)
        if trainer.pending is not None:
            if not trainer.done:
                return False
            self._publish()
            return True
        if not prepared or (goal is not None and self.version >= goal):
            return False
        started = time.perf_counter()
        pulled = None
        if self.options.asynchronous:
            pulled = self.server.params(dict.fromkeys(self.algorithms, trainer.next_chunks[0].version))
        trainer.learn(self.version, pulled)
        if self.options.reproducible:
            trainer.finish()
            self._publish()
        self.flow.add_time("learner", time.perf_counter() - started)
        return True

    def _publish(self) -> None:
        """Make the learners' parameters the newest version, and forget those that nobody acts with any more."""
        for name, params in self.trainer.published().items():
            self.version = self.store.publish(name, params)
            self.server.load(name, self.version, params)
            used = {slot.versions[name] for slot in self.slots if slot.ticket is not None}
            if self.options.asynchronous:  # gradients of what waits are still to be taken, at those parameters
                used |= self.stages[name].buffer.versions
            self.server.unload(name, used | {self.version})

    def settle(self) -> None:
        """Finish what is under way: rows that worlds are moving to, and an update that is not published yet."""
        self.actor.settle()
        if self.trainer.pending is not None:
            self.trainer.finish()
            self._publish()

    def params(self) -> dict[str, Tree]:
        """The newest parameters of every policy."""
        return self.server.params(dict.fromkeys(self.algorithms, self.version))

    def _wait(self) -> None:
        """Nothing can move until a process answers, or the learner is done."""
        started = time.perf_counter()
        learning = self.trainer.pending is not None
        if not self.actor.wait(0.0005 if learning else WAIT_S):
            if not learning:
                raise RunError("the dataflow stands still: no slot has a ticket and no batch is complete")
            self.trainer.finish()
        self.flow.add_time("waiting", time.perf_counter() - started)

    def take_events(self) -> list[tuple[str, str]]:
        """(name, words) of what happened since the last call."""
        found = self.events + self.actor.events
        self.events, self.actor.events = [], []
        return found

    def _result(self) -> DispatchResult:
        updates = self.trainer.take_updates()
        for worker in self.actor.workers:
            self.flow.add_time("world", worker.take_busy())
        # What was learned from may all have been played, and counted, before the last report.
        counts, self.actor.counts = self.actor.counts or self._nothing, []
        self._nothing = [jax.tree.map(np.zeros_like, counts[0])]
        return report(counts, updates, self.flow.report())

    def close(self) -> None:
        """End the processes and close the worlds."""
        self.actor.close()
