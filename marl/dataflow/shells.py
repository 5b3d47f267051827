"""What a process of a cluster holds: a plain object around an actor, a learner or a policy server. Nothing here imports
Ray; calls bring and give back plain values and arenas, so that the same objects can be driven in one process.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marl.core.errors import ConfigError
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.core.prng import stream
from marl.core.types import Tree
from marl.dataflow.actor import ActorCore, ActorOptions, InlineInference
from marl.dataflow.actor_state import restore_slots, snapshot_slots
from marl.dataflow.arena import ArenaError, pack, unpack
from marl.dataflow.buffers import Accepted
from marl.dataflow.chunks import Chunk
from marl.dataflow.flow import FlowMeter
from marl.dataflow.learner import LearnerCore
from marl.dataflow.learner_sharded import ShardedLearner
from marl.dataflow.learning import add_counts, tree_of
from marl.dataflow.parts import Blueprint, Parts
from marl.dataflow.server import PolicyServer
from marl.dataflow.stage import common_rollout
from marl.dataflow.tickets import Ticket
from marl.dataflow.trainer import Trainer

Arena: TypeAlias = NDArray[np.uint8]
SHOWN = ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_FLAGS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def about() -> dict[str, Any]:
    """Which process this is, where its arrays live, and what its environment said when it began."""
    return {
        "pid": os.getpid(),
        "devices": [f"{d.platform}:{d.id}" for d in jax.local_devices()],
        "env": {name: os.environ[name] for name in SHOWN if name in os.environ},
    }


def pack_weights(published: Mapping[str, Tree]) -> Arena:
    """What learners published, as one block."""
    return pack(jax.device_get(dict(published)), "the parameters of a policy")


def unpack_weights(arena: Arena) -> dict[str, Tree]:
    """The inverse of `pack_weights`, in memory of its own: a view would pin the block in the store."""
    return jax.tree.map(lambda x: jnp.array(x), unpack(arena))  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class ActorJob:
    """What an actor is told when it is made; plain values. identity: of the blueprint, as the driver sees it.  serve:
    how to reach the policy servers (`served.ServedClient`); None: actions are inferred in the actor."""

    seed: int
    num_envs: int
    total_slots: int
    slots: tuple[int, ...]
    incarnation: int
    random_phase: bool
    faults: tuple[float, int, float]
    identity: str
    serve: Any = None


class ActorShell:
    """An actor in a process of its own. Nothing is made before `start`, whose errors the driver sees as they are."""

    def __init__(self, blueprint: Blueprint, job: ActorJob) -> None:
        self.blueprint, self.job = blueprint, job

    def _make(self) -> None:
        job = self.job
        self.blueprint.check(job.identity)
        self.parts = self.blueprint.make()
        self.server = PolicyServer(self.parts.policies, self.parts.all_fixed)
        self.client: Any = None
        if job.serve is not None:
            from marl.dataflow.served import ServedClient

            forms = forms_of(self.parts, job.num_envs // job.total_slots)
            self.client = ServedClient(nearest(job.serve), forms, fallback=self.server)
        self.flow = FlowMeter()
        self._full: list[dict[str, Chunk]] = []  # rollouts of this call, by learner
        self.core = ActorCore(
            self.parts.worlds,
            self.parts.policies,
            self.parts.algorithms,
            ActorOptions(
                seed=job.seed,
                num_envs=job.num_envs,
                total_slots=job.total_slots,
                slots=job.slots,
                random_phase=job.random_phase,
                faults=FaultPolicy(*job.faults),
                incarnation=job.incarnation,
            ),
            length=common_rollout(self.parts.algorithms),
            inference=self.client or InlineInference(self.server),
            params=self.server.params,
            flow=self.flow,
            on_filled=lambda slot, filled: self._full.append(self.core.chunks(slot, filled)),
        )

    def start(self, version: int, weights: Arena) -> dict[str, Any]:
        """Begin the first episodes. Returns what process this is.

        Raises: RunError if the process runs other code than the driver; WorldError if the worlds cannot be made.
        """
        self._make()
        self._load(version, weights)
        self.core.start(self._params(version))
        return about()

    def ping(self) -> None:
        """Answered by whoever is there."""

    def _load(self, version: int, arena: Arena | None) -> None:
        if arena is None:
            if any(version not in self.server.held(name) for name in self.parts.learners):
                raise ArenaError(f"version {version} was lost on its way")  # with the call that brought it
            return
        for name, params in unpack_weights(arena).items():
            self.server.load(name, version, params)
            used = {slot.versions[name] for slot in self.core.slots if slot.ticket is not None}
            self.server.unload(name, used | {version})

    def _params(self, version: int) -> dict[str, Tree]:
        return self.server.params(dict.fromkeys(self.parts.learners, version))

    def collect(self, tickets: Sequence[Ticket], version: int, weights: Arena | None) -> tuple[Any, ...]:
        """A rollout of every slot that a ticket names, acting with `version`.

        weights: that version's; None if an earlier call brought them.  Returns: a report of plain values, then an arena
        a learner.
        """
        self._load(version, weights)
        self._play(tickets, version)
        full, self._full = self._full, []
        full.sort(key=lambda chunks: min(chunk.slot for chunk in chunks.values()))
        arenas = [pack([chunks[name].snapshot() for chunks in full], name) for name in self.parts.learners]
        return self._report(full), *arenas

    def gradient(self, ticket: Ticket, version: int, weights: Arena | None) -> tuple[Any, ...]:
        """A rollout of one slot and the gradient of every learner on it, taken here.

        Returns: a report, with the env steps and metrics of the gradient in it, then an arena a learner.
        """
        self._load(version, weights)
        self._play([ticket], version)
        full, self._full = self._full, []
        (chunks,) = full
        grads, metrics, steps = [], {}, 0
        params = self._params(version)
        for name, chunk in chunks.items():
            key = jax.random.fold_in(stream(self.job.seed, "gradient"), chunk.slot)
            key = jax.random.fold_in(key, chunk.sequence)
            core = LearnerCore(name, self.parts.algorithms[name])
            found, said = core.gradient(params[name], chunk.trajectory, key)
            grads.append(pack(jax.device_get(found), f"the gradient of '{name}'"))
            metrics[name] = {tag: float(value) for tag, value in said.items()}
            steps = chunk.env_steps
        return {**self._report(full), "metrics": metrics, "env_steps": steps}, *grads

    def _play(self, tickets: Sequence[Ticket], version: int) -> None:
        by_index = {slot.index: slot for slot in self.core.slots}
        versions = dict.fromkeys(self.parts.learners, version)
        for ticket in tickets:
            self.core.begin(by_index[ticket.slot], ticket, versions)
        while len(self._full) < len(tickets):
            if not self.core.step():
                started = time.perf_counter()
                self.core.wait()
                self.flow.add_time("waiting", time.perf_counter() - started)

    def _report(self, full: Sequence[Mapping[str, Chunk]]) -> dict[str, Any]:
        counts, self.core.counts = self.core.counts, []
        events, self.core.events = self.core.events, []
        frames = {chunk.ticket: chunk.env_steps for chunks in full for chunk in chunks.values()}
        return {"counts": tree_of(add_counts(counts)), "flow": self.flow.take(), "events": events, "frames": frames}

    def snapshot(self) -> Arena:
        """Every slot between two calls: open episodes, recurrent states, keys."""
        self.core.settle()
        return pack(snapshot_slots(self.core), "a slot")

    def restore(self, stored: Arena, version: int, incarnation: int, weights: Arena) -> list[tuple[str, str]]:
        """Go on from a snapshot, on an actor that was started. Returns what could not be brought back.

        incarnation: the highest that its slots had.  Raises: CheckpointError if it is of other slots.
        """
        self._load(version, weights)
        self.core.options = dataclasses.replace(self.core.options, incarnation=incarnation)
        restore_slots(self.core, own_memory(unpack(stored)), self._params(version))
        events, self.core.events = self.core.events, []
        return events

    def close(self) -> None:
        self.core.close()
        if self.client is not None:
            self.client.close()


class ServerShell:
    """A policy server in a process of its own. Nothing is made before `start`.

    folder: for its socket, so that a server that takes this one's place is found where this one was; a fresh one if
    None.  tcp: address that clients on other nodes reach this node at; None: there are none.
    """

    def __init__(
        self, blueprint: Blueprint, identity: str, lanes: int, together: bool, folder: str | None, tcp: str | None
    ) -> None:
        self.blueprint, self.identity = blueprint, identity
        self.lanes, self.together, self.folder, self.tcp = lanes, together, folder, tcp

    def _make(self) -> None:
        from marl.dataflow.link_server import LinkServer
        from marl.dataflow.served import InferenceLoop

        self.blueprint.check(self.identity)
        self.parts = self.blueprint.make()
        forms = forms_of(self.parts, self.lanes)
        server = PolicyServer(self.parts.policies, self.parts.all_fixed, together=self.together)
        folder = Path(self.folder) if self.folder else None
        self.loop = InferenceLoop(server, LinkServer(forms.request, forms.answer, folder=folder, tcp=self.tcp), forms)

    def start(self, version: int, weights: Arena, requests: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compile and answer from now on. requests: most at a time.

        Returns: what process this is, and what clients need to reach it.
        Raises: RunError if the process runs other code than the driver; ConfigError for worlds in JAX.
        """
        self._make()
        self.load(version, weights)
        self.loop.warm_up(requests)
        self.loop.start()
        return about(), {name: endpoint.plain() for name, endpoint in self.loop.link.endpoints.items()}

    def load(self, version: int, weights: Arena, used: Sequence[int] = ()) -> None:
        """Hold a version, and of the ones before it those that slots still act with."""
        for name, params in unpack_weights(weights).items():
            self.loop.load(name, version, params)
            self.loop.unload(name, {version, *used})

    def counters(self) -> dict[str, float]:
        """What was done so far."""
        return self.loop.counters()

    def close(self) -> None:
        self.loop.close()


def nearest(endpoints: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """The way to a server from here: its socket file if that is on this machine, else the network."""
    local = endpoints.get("ipc")
    if local is not None and ("tcp" not in endpoints or Path(local["address"].removeprefix("ipc://")).exists()):
        return local
    return endpoints["tcp"]


def forms_of(parts: Parts, lanes: int) -> Any:
    """How requests of these parts are laid out. Raises: ConfigError for worlds in JAX, which infer where they run."""
    from marl.dataflow.served import ServedForms

    if not isinstance(parts.worlds, HostWorlds):
        raise ConfigError("served inference is for worlds in Python")
    return ServedForms.of(parts.policies, parts.learners, parts.all_fixed, parts.worlds.spec, lanes)


@dataclasses.dataclass(frozen=True)
class LearnerJob:
    """What a learner is told when it is made; plain values. devices: of its process that it splits batches over.
    ranks: how to start other processes that share every batch (`ray_ranks.RayRanks`); None: it learns alone."""

    seed: int
    batch: int
    ordered: bool
    capacity: int
    identity: str
    devices: int = 1
    ranks: Any = None


class LearnerShell:
    """Buffers and learners in a process of their own. `version` counts publications and never goes back: one that
    replaces another begins at the next. Nothing is made before `start`.
    """

    def __init__(self, blueprint: Blueprint, job: LearnerJob) -> None:
        self.blueprint, self.job = blueprint, job
        self.flow = FlowMeter()
        self.version = 0
        self._made = False
        self._bad: Arena | None = None  # chunks of the first update that was not finite

    def _make(self) -> None:
        self._made, blueprint, job = True, self.blueprint, self.job
        blueprint.check(job.identity)
        ranks = None if job.ranks is None else job.ranks.join(blueprint, job.identity)
        self.parts: Parts = blueprint.make()

        def make(name: str, algorithm: Any) -> Any:
            on_axis = partial(self.parts.on_axis, name)
            if ranks is not None:
                return ranks.learner(name, algorithm, on_axis)
            if job.devices == 1:
                return LearnerCore(name, algorithm)
            return ShardedLearner(name, on_axis, jax.local_devices()[: job.devices])

        self.trainer = Trainer(
            self.parts.algorithms,
            self.flow,
            batch=job.batch,
            ordered=job.ordered,
            capacity=job.capacity,
            seed=job.seed,
            make_learner=make,
        )

    def start(self, version: int, stored: Arena | None, slower: float = 1.0) -> tuple[dict[str, Any], Arena]:
        """Fresh learners, or those of a snapshot; their parameters are published as `version`.

        slower: multiplies learning rates; `slower` of what is returned says whether there were any.
        Raises: RunError if the process runs other code than the driver; CheckpointError if the snapshot is of another
        run.
        """
        if not self._made:
            self._make()
        self.trainer.start()
        if stored is not None:
            self.trainer.restore(own_memory(unpack(stored)))
        slowed = slower != 1.0 and self.trainer.slow_down(slower)
        self.version = version
        return {**about(), "slower": slowed}, pack_weights(self.trainer.published())

    def offer(self, goal: int, *arenas: Arena) -> tuple[dict[str, Any], Arena | None]:
        """Take chunks, learn while a batch is there and the version is below `goal`.

        arenas: one a learner, in their order, or none.
        Returns: a report (`version`, `accepted` ticket numbers, `rejected` ones with the reason, what was `damaged`,
        how many updates were `skipped` in a row, whether it `published`), and the weights if it did.
        """
        accepted: list[int] = []
        rejected: list[tuple[int, str]] = []
        damaged = ""
        try:
            offered = [[Chunk.restored(tree) for tree in unpack(arena)] for arena in arenas]
        except ArenaError as error:  # nothing of it is taken
            offered, damaged = [], str(error)
        for chunks in offered:
            for chunk in chunks:
                answer = self.trainer.offer(chunk, self.version)
                if isinstance(answer, Accepted):
                    accepted.append(chunk.ticket)
                else:
                    rejected.append((chunk.ticket, answer.reason))
        before = self.version
        while self.version < goal and self.trainer.prepare(self.version):
            started = time.perf_counter()
            chunks = self.trainer.all_next_chunks
            self.trainer.learn(self.version)
            self.trainer.finish()
            self.version += 1
            weights = self.trainer.published()
            self.flow.add_time("learner", time.perf_counter() - started)
            if self.trainer.skipped == 1:
                self._bad = pack([chunk.snapshot() for chunk in chunks], "a batch")
        report = {"version": self.version, "accepted": accepted, "rejected": rejected, "damaged": damaged}
        report |= {"skipped": self.trainer.skipped, "published": self.version > before}
        return report, pack_weights(weights) if self.version > before else None

    def apply(
        self, acted: int, env_steps: int, metrics: Mapping[str, Any], *arenas: Arena
    ) -> tuple[dict[str, Any], Arena | None]:
        """Apply a gradient, one arena a learner, that was taken at version `acted`. Returns as `offer`."""
        started = time.perf_counter()
        try:
            found = {n: own_memory(unpack(arena)) for n, arena in zip(self.parts.learners, arenas, strict=True)}
        except ArenaError as error:
            report = {"version": self.version, "accepted": [], "rejected": [], "damaged": str(error)}
            return report | {"skipped": self.trainer.skipped, "published": False}, None
        self.trainer.apply(self.version, {n: (grads, metrics[n]) for n, grads in found.items()}, acted, env_steps)
        self.trainer.finish()
        self.version += 1
        weights = pack_weights(self.trainer.published())
        self.flow.add_time("learner", time.perf_counter() - started)
        report = {"version": self.version, "accepted": [], "rejected": [], "damaged": ""}
        return report | {"skipped": self.trainer.skipped, "published": True}, weights

    def health(self) -> dict[str, int]:
        """How many updates were thrown away in a row; env steps that were learned from, and that buffers hold."""
        held = {name: stage.buffer.held_steps for name, stage in self.trainer.stages.items()}
        return {
            "skipped": self.trainer.skipped,
            "learned_steps": self.trainer.env_steps_learned,
            "held_steps": next(iter(held.values())),
        }

    def bad_batch(self) -> Arena:
        """The chunks of the first of the last updates that were not finite, packed; nothing but a list if none was."""
        return pack([], "a batch") if self._bad is None else self._bad

    def take(self) -> dict[str, Any]:
        """What the updates since the last call amounted to, and the flow; plain values."""
        updates = self.trainer.take_updates()
        counters = {name: stage.buffer.counters() for name, stage in self.trainer.stages.items()}
        return {"updates": updates._asdict(), "flow": self.flow.take(), "counters": counters}

    def snapshot(self) -> Arena:
        """Learners, buffers, keys."""
        return pack(self.trainer.snapshot(), "a learner")


def own_memory(tree: Tree) -> Tree:
    """The tree with every array copied: writable, and free of the block that it was a view of."""
    return jax.tree.map(np.array, tree)
