"""The actor: slots of lanes that fill rollouts as tickets let them, wherever the actions come from.

One loop that can be stepped in a debugger; nothing here runs in a thread. The local placement holds one of these, a Ray
actor is a shell around another.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from marl.core.algorithm import Policy
from marl.core.env import AnyEnvironment
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.inference import Acted, LaneMemory, check_policies, start_lanes
from marl.core.prng import stream
from marl.core.types import Key, Tree
from marl.dataflow.chunks import Chunk, chunk_id
from marl.dataflow.flow import FlowMeter
from marl.dataflow.groups import GroupHandle, InlineGroup, RemoteGroup, WorkerProcess, wait_for_any
from marl.dataflow.learning import Counts
from marl.dataflow.server import PolicyServer, Request
from marl.dataflow.slots import Filled, HostSlot, JaxSlot
from marl.dataflow.tickets import Ticket

WAIT_S = 5.0  # longest sleep before the processes are looked after


class Inference(Protocol):
    """What answers the rows of slots. An answer comes back by `poll` under the slot's index, at once or later."""

    def ask(self, asked: Sequence[tuple[int, Request]]) -> None: ...
    def poll(self, timeout_s: float) -> Sequence[tuple[int, tuple[LaneMemory, Acted]]]: ...


class InlineInference:
    """A policy server in this process. Its device may still be computing an answer that is handed out."""

    def __init__(self, server: PolicyServer) -> None:
        self.server = server
        self._answers: list[tuple[int, tuple[LaneMemory, Acted]]] = []

    def ask(self, asked: Sequence[tuple[int, Request]]) -> None:
        answers = self.server.act([request for _, request in asked])
        self._answers += [(index, answer) for (index, _), answer in zip(asked, answers, strict=True)]

    def poll(self, timeout_s: float) -> Sequence[tuple[int, tuple[LaneMemory, Acted]]]:
        taken, self._answers = self._answers, []
        return taken


@dataclasses.dataclass(frozen=True)
class ActorOptions:
    """seed, num_envs, total_slots: of the whole run, whose lanes and keys are the same however many actors share them.
    slots: indices of this actor's.  workers: processes that step worlds, 0 for this one.  random_phase: slots begin
    their first rollout at different rows.  device: of worlds in JAX and the policies with them.  incarnation: how often
    this actor was started anew after it was lost.
    """

    seed: int
    num_envs: int
    total_slots: int
    slots: tuple[int, ...]
    workers: int = 0
    random_phase: bool = False
    faults: FaultPolicy = dataclasses.field(default_factory=FaultPolicy)
    device: jax.Device | None = None
    incarnation: int = 0

    @property
    def lanes_per_slot(self) -> int:
        return self.num_envs // self.total_slots


class Slot:
    """What the loop knows of a slot beside its lanes. index: among all slots of the run."""

    def __init__(self, index: int, lanes: HostSlot | JaxSlot) -> None:
        self.index, self.lanes = index, lanes
        self.memory: LaneMemory | None = None
        self.asked = False
        self.answer: tuple[LaneMemory, Acted] | None = None  # to the row in hand, perhaps not computed yet
        self.ticket: Ticket | None = None
        self.versions: dict[str, int] = {}
        self.stepping = False
        self.sequence = 0
        self.finished = 0  # which of the actor's rollouts its last one was


class ActorCore:
    """learners: policies whose rows are kept.  inference: answers for worlds in Python.  params: parameters of all
    policies at given versions, for worlds in JAX.  on_filled: called with a slot that has filled its rollout, after
    which it has no ticket; it may give it the next one.

    Raises: WorldError if the worlds cannot be made; ConfigError if a policy cannot play in Python's.
    """

    def __init__(
        self,
        worlds: AnyEnvironment | HostWorlds,
        policies: Mapping[str, Policy],
        learners: Mapping[str, Policy],
        options: ActorOptions,
        *,
        length: int,
        inference: Inference,
        params: Callable[[Mapping[str, int]], dict[str, Tree]],
        flow: FlowMeter,
        on_filled: Callable[[Slot, Filled], None],
    ) -> None:
        self.worlds, self.policies, self.learners, self.options = worlds, dict(policies), dict(learners), options
        self.length, self.inference, self.params, self.flow, self.on_filled = length, inference, params, flow, on_filled
        self.keep_state = any(policy.needs.global_state for policy in learners.values())
        self.workers: list[WorkerProcess] = []
        self.slots: list[Slot] = []
        self.events: list[tuple[str, str]] = []
        self.counts: list[Counts] = []
        self._finished = 0

    # ---- start -----------------------------------------------------------------------------------------------------

    def start(self, params: Mapping[str, Tree]) -> None:
        """Fresh worlds and lanes. params: of all policies, for their recurrent states."""
        options, each = self.options, self.options.lanes_per_slot
        self._make_slots()
        keys = jax.random.split(stream(options.seed, "lanes"), options.num_envs)
        for slot in self.slots:
            own = keys[slot.index * each : (slot.index + 1) * each]
            if options.incarnation:  # worlds that were lost do not play the same episodes again
                own = jax.vmap(lambda key: jax.random.fold_in(key, options.incarnation))(own)
            if isinstance(slot.lanes, JaxSlot):
                slot.lanes.start(params, own)
            else:
                slot.memory, seeds = _start_lanes(tuple(self.policies.items()), own)
                slot.lanes.start(np.asarray(seeds))
        self._note_faults()

    def _make_slots(self) -> None:
        options, worlds = self.options, self.worlds
        if not isinstance(worlds, HostWorlds):
            for index in options.slots:
                lanes = JaxSlot(
                    worlds, self.policies, list(self.learners), self.length, self.keep_state, options.device
                )
                self.slots.append(Slot(index, lanes))
            return
        check_policies(self.policies)
        phase = np.random.default_rng([options.seed, 7919]).integers(0, self.length, options.total_slots)
        for index, handle in zip(options.slots, self._handles(worlds), strict=True):
            own = HostSlot(
                handle,
                worlds.spec,
                worlds.roles,
                self.learners,
                self.length,
                keep_state=self.keep_state,
                warm_up=int(phase[index]) if options.random_phase else 0,
            )
            self.slots.append(Slot(index, own))

    def _handles(self, worlds: HostWorlds) -> list[GroupHandle]:
        options, lanes = self.options, self.options.lanes_per_slot
        if not options.workers:
            return [InlineGroup(worlds.factory, worlds.spec, lanes, options.faults) for _ in options.slots]
        each = len(options.slots) // options.workers
        handles: list[GroupHandle] = []
        for first in range(0, len(options.slots), each):
            slots = list(options.slots[first : first + each])
            worker = WorkerProcess(worlds.factory, worlds.spec, lanes, slots, options.faults)
            self.workers.append(worker)
            handles.extend(RemoteGroup(worker, slot) for slot in slots)
        return handles

    # ---- the loop --------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> list[Slot]:
        """The slots without a ticket."""
        return [slot for slot in self.slots if slot.ticket is None]

    def begin(self, slot: Slot, ticket: Ticket, versions: Mapping[str, int]) -> None:
        """Let a slot fill a rollout, acting with these versions by policy name."""
        slot.ticket, slot.versions = ticket, dict(versions)

    def step(self) -> bool:
        """Ask for every slot whose row is in hand, let the slots move whose answers are there, take the rows that
        worlds have moved to. Whether there was anything to do."""
        moved = self.infer()
        return self.land() or moved

    def infer(self) -> bool:
        """The first two of `step`."""
        ready = [slot for slot in self.slots if slot.ticket is not None and not slot.stepping]
        self._ask([slot for slot in ready if not slot.asked and isinstance(slot.lanes, HostSlot)])
        self._hear(0.0)
        moved = False
        for slot in ready:
            if isinstance(slot.lanes, JaxSlot):
                started = time.perf_counter()
                filled = slot.lanes.fill(self.params(slot.versions), slot.versions)
                self.flow.add_time("world", time.perf_counter() - started)
                self._finish(slot, filled)
            elif slot.answer is not None:
                self._send(slot)
                if not self.workers:
                    # Its worlds have moved, so its next actions are computed while the other slots' worlds move.
                    self._take(slot)
                    if slot.ticket is not None:
                        self._ask([slot])
            else:
                continue
            moved = True
        return moved

    def _ask(self, slots: list[Slot]) -> None:
        """Hand over the rows in hand; nobody waits for the answers here."""
        if not slots:
            return
        started = time.perf_counter()
        requests = [Request(slot.versions, slot.memory, slot.lanes.step) for slot in slots]  # type: ignore[arg-type,union-attr]
        self.inference.ask([(slot.index, request) for slot, request in zip(slots, requests, strict=True)])
        for slot in slots:
            slot.asked = True
        self._hear(0.0)
        self.flow.add_time("inference", time.perf_counter() - started)

    def _hear(self, timeout_s: float) -> None:
        for index, answer in self.inference.poll(timeout_s):
            for slot in self.slots:
                if slot.index == index:
                    slot.answer = answer

    def _send(self, slot: Slot) -> None:
        """Give a slot's worlds the actions that were asked for."""
        assert slot.answer is not None
        assert isinstance(slot.lanes, HostSlot)
        (slot.memory, acted), slot.answer, slot.asked = slot.answer, None, False
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
            self.counts.append(played)
        filled = slot.lanes.take(slot.versions) if slot.lanes.full else None
        self.flow.add_time("actor", time.perf_counter() - started)
        if filled is not None:
            self._finish(slot, filled)

    def _finish(self, slot: Slot, filled: Filled) -> None:
        self.counts.append(filled.counts)
        self._finished += 1
        slot.finished = self._finished
        self._note_faults()
        self.on_filled(slot, filled)

    def chunks(self, slot: Slot, filled: Filled) -> dict[str, Chunk]:
        """A rollout as chunks by learner, under the slot's ticket, which is then over for it."""
        assert slot.ticket is not None
        counts, number = filled.counts, slot.ticket.number
        incarnation, sequence = self.options.incarnation, slot.sequence
        slot.ticket = None
        slot.sequence += 1
        return {
            name: Chunk(
                chunk_id=chunk_id(str(self.options.seed), name, slot.index, incarnation, sequence),
                policy=name,
                slot=slot.index,
                incarnation=incarnation,
                sequence=sequence,
                ticket=number,
                version=slot.versions[name],
                trajectory=trajectory,
                env_steps=int(counts.env_steps),
                agent_steps=int(counts.agent_steps),
            )
            for name, trajectory in filled.trajectories.items()
        }

    def wait(self, timeout_s: float = WAIT_S) -> bool:
        """Sleep until a process or the inference answers. False if nothing is under way at all."""
        if any(worker.waiting for worker in self.workers):
            wait_for_any(self.workers, timeout_s)
            return True
        if any(slot.asked and slot.answer is None for slot in self.slots):
            self._hear(timeout_s)
            return True
        return False

    def settle(self) -> None:
        """Finish what worlds are doing. Answers that were asked for may still be under way."""
        for worker in self.workers:
            worker.drain()
        self.land()

    def _note_faults(self) -> None:
        for slot in self.slots:
            if isinstance(slot.lanes, HostSlot):
                self.events.extend(("world fault", words) for words in slot.lanes.handle.new_faults())

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
