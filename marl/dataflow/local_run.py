"""Actors, policy server, buffers, learners and parameter store as plain objects in one process, for one seed.

Nothing here runs in a thread: `LocalRun.run` is one loop that can be stepped in a debugger. Worlds that are not JAX may
be stepped in processes of their own; at staleness 0 the numbers do not depend on which of them answers first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from marl.core.algorithm import Algorithm, Policy
from marl.core.env import AnyEnvironment
from marl.core.errors import ConfigError, RunError
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.inference import Acted, LaneMemory, check_policies, start_lanes
from marl.core.prng import stream
from marl.core.types import Key, Tree
from marl.dataflow.chunks import Chunk, chunk_id
from marl.dataflow.flow import FlowMeter
from marl.dataflow.groups import GroupHandle, InlineGroup, RemoteGroup, WorkerProcess, wait_for_any
from marl.dataflow.learning import Counts, DispatchResult
from marl.dataflow.server import PolicyServer, Request
from marl.dataflow.slots import Filled, HostSlot, JaxSlot
from marl.dataflow.stage import LearnerStage, common_rollout
from marl.dataflow.store import ParameterStore
from marl.dataflow.tickets import Ticket, Tickets

WAIT_S = 5.0  # longest sleep before the processes are looked after


@dataclasses.dataclass(frozen=True)
class LocalOptions:
    """num_envs: lanes.  slots: groups of them.  workers: processes that step them, 0 for this one.

    max_staleness: in versions; None: no bound.  asynchronous: every slot is a worker whose gradient is applied when it
    arrives (A3C).  random_phase: slots begin their first rollout at different rows.  actors, inference, learner:
    devices; None for JAX's default one. Worlds in JAX, policies included, run on `actors`, those in Python on the CPU.
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

    @property
    def reproducible(self) -> bool:
        """Whether two runs of one seed are bit-equal."""
        return self.workers == 0 or (self.max_staleness == 0 and not self.asynchronous)


class Slot:
    """What the loop knows of a slot beside its lanes."""

    def __init__(self, index: int, lanes: HostSlot | JaxSlot) -> None:
        self.index, self.lanes = index, lanes
        self.memory: LaneMemory | None = None
        self.answer: tuple[LaneMemory, Acted] | None = None  # asked for the row in hand, perhaps not computed yet
        self.ticket: Ticket | None = None
        self.versions: dict[str, int] = {}
        self.stepping = False
        self.sequence = 0
        self.finished = 0  # which of the run's rollouts its last one was


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
        self.worlds, self.policies, self.options, self.seed = worlds, dict(policies), options, seed
        self.algorithms: dict[str, Algorithm] = {name: policies[name] for name in learners}  # type: ignore[misc]
        self.fixed = {name: fixed.get(name, ()) for name in policies if name not in self.algorithms}
        self.length = common_rollout(self.algorithms)
        self.keep_state = any(policy.needs.global_state for policy in self.algorithms.values())
        if options.num_envs % options.slots:
            raise ConfigError(f"{options.num_envs} lanes cannot be split evenly over {options.slots} slots")
        if options.workers and options.slots % options.workers:
            raise ConfigError(f"{options.slots} slots cannot be split evenly over {options.workers} processes")
        self.lanes_per_slot = options.num_envs // options.slots
        self.server = PolicyServer(
            self.policies, self.fixed, together=not options.reproducible, device=options.inference
        )
        self.store = ParameterStore(keep=10 + (options.max_staleness or 0))
        batch = 1 if options.asynchronous else options.slots
        ahead = options.max_staleness or 0
        # The learners of a run learn at the same moments, so one stream of tickets bounds them all.
        self.tickets = Tickets(batch, None if options.asynchronous else options.max_staleness)
        self.flow = FlowMeter({"world": max(options.workers, 1)})
        self.stages = {
            name: LearnerStage(
                name,
                algorithm,
                self.flow,
                batch=batch,
                ordered=not options.asynchronous,
                capacity=batch * (ahead + 2) + options.slots,
                device=options.learner,
                seed=seed,
            )
            for name, algorithm in self.algorithms.items()
        }
        self.version = 0
        self._finished = 0
        self.env_steps_learned = 0
        self.workers: list[WorkerProcess] = []
        self.slots: list[Slot] = []
        self.events: list[tuple[str, str]] = []
        self._pending: dict[str, Any] | None = None
        self._metrics: dict[str, list[tuple[Any, Any]]]
        self._counts: list[Counts]
        self._forget_reported()

    # ---- start -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fresh learners, worlds and lanes."""
        self.key = stream(self.seed, "update")
        for name, stage in self.stages.items():
            stage.learner.start(stream(self.seed, "init", name))
        self._publish()
        self._make_slots()
        keys = jax.random.split(stream(self.seed, "lanes"), self.options.num_envs)
        for slot in self.slots:
            own = keys[slot.index * self.lanes_per_slot : (slot.index + 1) * self.lanes_per_slot]
            if isinstance(slot.lanes, JaxSlot):
                slot.lanes.start(self.params(), own)
            else:
                slot.memory, seeds = _start_lanes(tuple(self.policies.items()), own)
                slot.lanes.start(np.asarray(seeds))
        self._note_faults()

    def _make_slots(self) -> None:
        options, count = self.options, self.options.slots
        if not isinstance(self.worlds, HostWorlds):
            for index in range(count):
                lanes = JaxSlot(
                    self.worlds, self.policies, list(self.algorithms), self.length, self.keep_state, options.actors
                )
                self.slots.append(Slot(index, lanes))
            return
        check_policies(self.policies)
        worlds = self.worlds
        handles: list[GroupHandle] = []
        if options.workers:
            each = count // options.workers
            for first in range(0, count, each):
                slots = list(range(first, first + each))
                worker = WorkerProcess(worlds.factory, worlds.spec, self.lanes_per_slot, slots, options.faults)
                self.workers.append(worker)
                handles.extend(RemoteGroup(worker, slot) for slot in slots)
        else:
            handles.extend(
                InlineGroup(worlds.factory, worlds.spec, self.lanes_per_slot, options.faults) for _ in range(count)
            )
        phase = np.random.default_rng([self.seed, 7919]).integers(0, self.length, count)
        for index, handle in enumerate(handles):
            warm_up = int(phase[index]) if options.random_phase else 0
            own = HostSlot(
                handle,
                worlds.spec,
                worlds.roles,
                self.algorithms,
                self.length,
                keep_state=self.keep_state,
                warm_up=warm_up,
            )
            self.slots.append(Slot(index, own))

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self, updates: int) -> DispatchResult:
        """Go on until every learner has learned `updates` more times. Leaves are numbers without a seed axis."""
        goal = self.version + updates
        while self.version < goal or self._pending is not None:
            moved = self._issue()
            moved |= self._infer()
            moved |= self.land()
            moved |= self._learn(goal)
            if not moved:
                self._wait()
        return self._result()

    def _issue(self) -> bool:
        """Give tickets to the slots that have none, as far as the bound on staleness allows."""
        moved = False
        idle = [slot for slot in self.slots if slot.ticket is None]
        if not self.options.reproducible:  # who waited longest comes first; else always the same order
            idle.sort(key=lambda slot: slot.finished)
        for slot in idle:
            if not self._begin(slot):
                break
            moved = True
        return moved

    def _begin(self, slot: Slot) -> bool:
        """Let a slot begin a rollout with the newest parameters, if it may."""
        slot.ticket = self.tickets.issue(slot.index, self.version)
        slot.versions = dict.fromkeys(self.algorithms, self.version)
        return slot.ticket is not None

    def _infer(self) -> bool:
        """Ask the server for every slot whose row is in hand, and let the slots move whose answer was asked for."""
        ready = [slot for slot in self.slots if slot.ticket is not None and not slot.stepping]
        self._ask([slot for slot in ready if slot.answer is None and isinstance(slot.lanes, HostSlot)])
        for slot in ready:
            if isinstance(slot.lanes, JaxSlot):
                started = time.perf_counter()
                filled = slot.lanes.fill(self.server.params(slot.versions), slot.versions)
                self.flow.add_time("world", time.perf_counter() - started)
                self._finish(slot, filled)
                continue
            self._send(slot)
            if not self.workers:
                # Its worlds have moved, so its next actions are computed while the other slots' worlds move.
                self._take(slot)
                if slot.ticket is not None:
                    self._ask([slot])
        return bool(ready)

    def _ask(self, slots: list[Slot]) -> None:
        """Dispatch inference for the rows in hand; nobody waits for it here."""
        if not slots:
            return
        started = time.perf_counter()
        requests = [Request(slot.versions, slot.memory, slot.lanes.step) for slot in slots]  # type: ignore[arg-type,union-attr]
        for slot, answer in zip(slots, self.server.act(requests), strict=True):
            slot.answer = answer
        self.flow.add_time("inference", time.perf_counter() - started)

    def _send(self, slot: Slot) -> None:
        """Give a slot's worlds the actions that were asked for."""
        assert slot.answer is not None
        assert isinstance(slot.lanes, HostSlot)
        (slot.memory, acted), slot.answer = slot.answer, None
        started = time.perf_counter()
        jax.block_until_ready(acted.seed)
        answered = time.perf_counter()
        slot.lanes.record(acted)
        recorded = time.perf_counter()
        slot.lanes.handle.send()
        slot.stepping = True
        self.flow.add_time("inference", answered - started)
        self.flow.add_time("actor", recorded - answered)
        self.flow.add_time("actor" if self.workers else "world", time.perf_counter() - recorded)

    def land(self) -> bool:
        """Take the rows that worlds have moved to."""
        moved = False
        for slot in self.slots:
            if slot.stepping and isinstance(slot.lanes, HostSlot) and slot.lanes.handle.ready():
                self._take(slot)
                moved = True
        return moved

    def _take(self, slot: Slot) -> None:
        """Take the row that a slot's worlds have moved to, and hand a full rollout over."""
        assert isinstance(slot.lanes, HostSlot)
        slot.stepping = False
        started = time.perf_counter()
        played = slot.lanes.landed()
        if played is not None:
            self._counts.append(played)
        filled = slot.lanes.take(slot.versions) if slot.lanes.full else None
        self.flow.add_time("actor", time.perf_counter() - started)
        if filled is not None:
            self._finish(slot, filled)

    def _finish(self, slot: Slot, filled: Filled) -> None:
        """Hand a full rollout over and let the slot ask for its next ticket."""
        assert slot.ticket is not None
        counts, ticket = filled.counts, slot.ticket
        self._counts.append(counts)
        for name, trajectory in filled.trajectories.items():
            chunk = Chunk(
                chunk_id=chunk_id(str(self.seed), name, slot.index, 0, slot.sequence),
                policy=name,
                slot=slot.index,
                incarnation=0,
                sequence=slot.sequence,
                ticket=ticket.number,
                version=slot.versions[name],
                trajectory=trajectory,
                env_steps=int(counts.env_steps),
                agent_steps=int(counts.agent_steps),
            )
            self.stages[name].offer(chunk, self.version)
        self.tickets.complete(ticket)
        slot.ticket = None
        slot.sequence += 1
        self._finished += 1
        slot.finished = self._finished
        self._note_faults()
        if self.options.asynchronous:  # a worker pulls new parameters right after its own push
            self._learn(None)
            self._begin(slot)

    def _learn(self, goal: int | None) -> bool:
        """Finish the update that is under way, or begin one if a batch is there."""
        prepared = all([stage.prepare(self.version) for stage in self.stages.values()])
        if self._pending is not None:
            if not self._may_publish():
                return False
            self._publish()
            return True
        if not prepared or (goal is not None and self.version >= goal):
            return False
        started = time.perf_counter()
        self.key, update_key = jax.random.split(self.key)
        chunks = next(iter(self.stages.values())).next_chunks
        self.env_steps_learned += sum(chunk.env_steps for chunk in chunks)
        pulled = {}
        if self.options.asynchronous:
            pulled = self.server.params(dict.fromkeys(self.algorithms, chunks[0].version))
        for position, (name, stage) in enumerate(self.stages.items()):
            key = jax.random.fold_in(update_key, position)
            at = pulled[name] if self.options.asynchronous else None
            self._metrics[name] += stage.learn(self.version, self.env_steps_learned, key, at)
        self._pending = {name: stage.learner.state.updates for name, stage in self.stages.items()}
        if self.options.reproducible:
            jax.block_until_ready(self._pending)
            self._publish()
        self.flow.add_time("learner", time.perf_counter() - started)
        return True

    def _may_publish(self) -> bool:
        assert self._pending is not None
        return all(x.is_ready() for x in self._pending.values())

    def _publish(self) -> None:
        """Make the learners' parameters the newest version, and forget those that nobody acts with any more."""
        self._pending = None
        for name, stage in self.stages.items():
            self.version = self.store.publish(name, stage.learner.published())
            self.server.load(name, self.version, self.store.latest(name)[1])
            used = {slot.versions[name] for slot in self.slots if slot.ticket is not None}
            if self.options.asynchronous:  # gradients of what waits are still to be taken, at those parameters
                used |= stage.buffer.versions
            self.server.unload(name, used | {self.version})

    def settle(self) -> None:
        """Finish what is under way: rows that worlds are moving to, and an update that is not published yet."""
        for worker in self.workers:
            worker.drain()
        self.land()
        if self._pending is not None:
            jax.block_until_ready(self._pending)
            self._publish()

    def params(self) -> dict[str, Tree]:
        """The newest parameters of every policy."""
        return self.server.params(dict.fromkeys(self.algorithms, self.version))

    def _wait(self) -> None:
        """Nothing can move until a process answers, or the learner is done."""
        started = time.perf_counter()
        if any(worker.waiting for worker in self.workers):
            wait_for_any(self.workers, 0.0005 if self._pending is not None else WAIT_S)
        elif self._pending is not None:
            jax.block_until_ready(self._pending)
        else:
            raise RunError("the dataflow stands still: no slot has a ticket and no batch is complete")
        self.flow.add_time("waiting", time.perf_counter() - started)

    def _note_faults(self) -> None:
        for slot in self.slots:
            if isinstance(slot.lanes, HostSlot):
                self.events.extend(("world fault", words) for words in slot.lanes.handle.new_faults())

    # ---- what a dispatch reports -------------------------------------------------------------------------------------

    def _result(self) -> DispatchResult:
        total = _sum(self._counts)
        metrics, skipped = {}, {}
        for name, seen in self._metrics.items():
            values = [{tag: float(x) for tag, x in m.items()} for m, bad in jax.device_get(seen) if int(bad) == 0]
            tags = values[0] if values else {tag: 0.0 for tag in (seen[0][0] if seen else {})}
            metrics[name] = {tag: np.float32(sum(v[tag] for v in values) / max(len(values), 1)) for tag in tags}
            skipped[name] = np.int32(self.stages[name].learner.skipped)
        for worker in self.workers:
            self.flow.add_time("world", worker.take_busy())
        for name, stage in self.stages.items():
            self.flow.depth(name, stage.buffer.held)
        make: Any = DispatchResult  # of NumPy's numbers
        result: DispatchResult = make(
            metrics=metrics,
            env_steps=total.env_steps,
            agent_steps=total.agent_steps,
            updates={name: np.int64(len(seen)) for name, seen in self._metrics.items()},
            skipped=skipped,
            episodes=total.episodes,
            returns=total.returns,
            length=total.length,
            info=total.info,
            flow={tag: np.float64(value) for tag, value in self.flow.report().items()},
        )
        self._forget_reported()
        return result

    def _forget_reported(self) -> None:
        self._metrics = {name: [] for name in self.stages}
        self._counts = []

    def close(self) -> None:
        """End the processes and close the worlds."""
        for slot in self.slots:
            if isinstance(slot.lanes, HostSlot):
                slot.lanes.handle.close()
        for worker in self.workers:
            worker.close()


@partial(jax.jit, static_argnums=0)
def _start_lanes(cast: tuple[tuple[str, Policy], ...], keys: Key) -> tuple[LaneMemory, Any]:
    return start_lanes(dict(cast), keys)


def _sum(counts: Sequence[Counts]) -> Counts:
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *counts)  # type: ignore[no-any-return]
