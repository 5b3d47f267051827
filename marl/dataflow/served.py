"""Served inference: a policy server behind a link, and the client that an actor asks instead of a server of its own.

What lanes keep between rows travels with every request and comes back with its answer, so the server remembers nothing
of its clients: when it dies, the next one answers what is open and nothing is lost.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np

from marl.core.algorithm import Policy
from marl.core.host_rows import Field, RowSpec
from marl.core.inference import Acted, LaneMemory, act_lanes, start_lanes, time_step_arrays
from marl.core.types import TimeStep, Tree
from marl.dataflow.link import PROBE_S, RESEND_S, Endpoint, LinkClient
from marl.dataflow.link_frames import HostArray, Layout, LinkError, Refusal
from marl.dataflow.link_server import Incoming, LinkServer
from marl.dataflow.server import PolicyServer, Request, Versions

Answer: TypeAlias = tuple[LaneMemory, Acted]

PATIENCE_S = 300.0  # a server may have to be started anew, and to compile
WAIT_FOR_VERSION_S = 60.0
MOST_TOGETHER = 256  # requests in one call


class UnknownVersionError(LinkError):
    """The server does not hold the parameters that a slot acts with, and will not. The slot's request is closed."""

    def __init__(self, slot: int, words: str) -> None:
        super().__init__(f"slot {slot}: {words}")
        self.slot = slot


@dataclasses.dataclass(frozen=True)
class ServedForms:
    """How requests and answers are laid out: the same on both sides if they are made of the same policies and worlds.

    learners: in the order of the versions in a request.  lanes: of a request.
    """

    learners: tuple[str, ...]
    lanes: int
    request: Layout
    answer: Layout
    request_tree: Any
    answer_tree: Any

    @classmethod
    def of(
        cls,
        policies: Mapping[str, Policy],
        learners: Sequence[str],
        fixed: Mapping[str, Tree],
        spec: RowSpec,
        lanes: int,
    ) -> ServedForms:
        """Nothing is computed: shapes follow from shapes.

        learners: names of the policies whose parameters have versions.  fixed: parameters of the others, or their
        shapes.  spec: rows of the world.  lanes: of a slot.
        """
        names = tuple(sorted(learners))
        params = {name: fixed.get(name, ()) for name in policies if name not in names}
        params |= {name: jax.eval_shape(partial(_published, policies[name]), jax.random.key(0)) for name in names}
        step = time_step_arrays({f.path: jax.ShapeDtypeStruct((lanes, *f.shape), np.dtype(f.dtype)) for f in spec.step})
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), lanes))
        memory, _ = jax.eval_shape(partial(start_lanes, policies), keys)
        # `explore` changes what is drawn, not its form.
        answer = jax.eval_shape(partial(act_lanes, policies, explore=True), params, memory, step)
        versions = Field(("versions", *names), "int64", (len(names),))
        asked = (memory, step)
        return cls(
            names,
            lanes,
            Layout.of([versions, *_fields(asked)]),
            Layout.of(_fields(answer)),
            jax.tree.structure(asked),
            jax.tree.structure(answer),
        )

    def request_arrays(self, request: Request) -> list[HostArray]:
        """A request as the arrays of its layout."""
        versions = np.array([request.versions[name] for name in self.learners], np.int64)
        return [versions, *(np.asarray(leaf) for leaf in jax.tree.leaves((request.memory, request.step)))]

    def read_versions(self, arrays: Sequence[HostArray]) -> dict[str, int]:
        """The versions that a request's arrays begin with."""
        return dict(zip(self.learners, arrays[0].tolist(), strict=True))

    def read_whole(self, arrays: Sequence[HostArray]) -> Request:
        """A request of the arrays of its layout."""
        return self.read_request(self.read_versions(arrays), arrays[1:])

    def read_request(self, versions: Versions, leaves: Sequence[Any]) -> Request:
        """A request of arrays; leaves: without the versions, with any number of lanes."""
        memory, step = jax.tree.unflatten(self.request_tree, leaves)
        return Request(versions, memory, step)

    def read_answer(self, arrays: Sequence[HostArray]) -> Answer:
        """An answer of the arrays of its layout."""
        memory, acted = jax.tree.unflatten(self.answer_tree, arrays)
        return memory, acted


def _published(policy: Any, key: Any) -> Tree:
    return policy.publish(policy.init(key))


def _fields(tree: tuple[LaneMemory, TimeStep | Acted]) -> Iterator[Field]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield Field((jax.tree_util.keystr(path),), np.dtype(leaf.dtype).name, tuple(leaf.shape))


class ServedClient:
    """Asks a policy server elsewhere, for all slots of an actor. For one thread.

    fallback: answers here what the server cannot, because it was started anew and has only newer parameters.
    patience_s: how long nothing may come from the server while something is open.
    """

    def __init__(
        self,
        endpoint: Endpoint | Mapping[str, str],
        forms: ServedForms,
        *,
        fallback: PolicyServer | None = None,
        patience_s: float = PATIENCE_S,
        resend_s: float = RESEND_S,
        probe_s: float = PROBE_S,
    ) -> None:
        self.forms, self.fallback, self.patience_s = forms, fallback, patience_s
        self.answered_here = 0
        self.link = LinkClient(endpoint, forms.request, forms.answer, resend_s=resend_s, probe_s=probe_s)
        self._answers: list[tuple[int, Answer]] = []

    def ask(self, asked: Sequence[tuple[int, Request]]) -> None:
        """Send requests by slot. Rows and memories are copied: the caller may go on with them. Raises: ShapeError."""
        for slot, request in asked:
            self.link.send(slot, self.forms.request_arrays(request))

    def poll(self, timeout_s: float = 0.0, descriptors: Sequence[int] = ()) -> list[tuple[int, Answer]]:
        """The answers that are there, or that come first within this time, leaves in NumPy that cannot be written to.
        descriptors: files of the caller; there is no more waiting when one of them can be read.

        Raises: UnknownVersionError for a slot whose parameters are gone (other answers come with the next call);
        LinkError if the server does not fit, or has been silent for too long.
        """
        gone: UnknownVersionError | None = None
        for reply in self.link.poll(0.0 if self._answers else timeout_s, descriptors):
            if reply.arrays is not None:
                self._answers.append((reply.slot, self.forms.read_answer(reply.arrays)))
            elif not self._answer_here(reply.slot):
                gone = gone or UnknownVersionError(reply.slot, reply.words)
        if gone is not None:
            raise gone
        if self.link.silent_s > self.patience_s:
            raise LinkError(
                f"the policy server at {self.link.endpoint.address} has been silent for {self.link.silent_s:.0f} s: it "
                "is gone, cannot be reached from here, or does not let this client in"
            )
        answers, self._answers = self._answers, []
        return answers

    def _answer_here(self, slot: int) -> bool:
        request = self.forms.read_whole(self.link.sent(slot))
        if self.fallback is None or any(v not in self.fallback.held(name) for name, v in request.versions.items()):
            return False
        self._answers.append((slot, self.fallback.act([request])[0]))
        self.answered_here += 1
        return True

    def connect(self, endpoint: Endpoint | Mapping[str, str]) -> None:
        """Ask this server from now on, also for what is open."""
        self.link.connect(endpoint)

    def forget(self, slot: int) -> None:
        """Nobody waits for the answer of this slot any more."""
        self.link.forget(slot)
        self._answers = [(index, answer) for index, answer in self._answers if index != slot]

    def load(self, policy: str, version: int, params: Tree) -> None:
        """The server has its own."""

    def unload(self, policy: str, keep: set[int]) -> None:
        """The server has its own."""

    def close(self) -> None:
        """Give up what is open."""
        self.link.close()


@dataclasses.dataclass
class _Waiting:
    request: Incoming
    versions: dict[str, int]
    since_s: float


class InferenceLoop:
    """Answers what comes over a link, with a policy server, in one thread: the caller's (`step`) or its own (`start`).

    It takes the requests that are there, without a timer: what comes while it works is its next batch. A request whose
    version is not held waits for it. `load`, `unload`, `counters` and `close` may be called from any thread.

    wait_s: how long a request may wait for a version.  most: requests in one call.
    """

    def __init__(
        self,
        server: PolicyServer,
        link: LinkServer,
        forms: ServedForms,
        *,
        wait_s: float = WAIT_FOR_VERSION_S,
        most: int = MOST_TOGETHER,
    ) -> None:
        self.server, self.link, self.forms, self.wait_s, self.most = server, link, forms, wait_s, most
        self._far = (server.device or jax.local_devices()[0]).platform != "cpu"
        self.answered = self.calls = 0
        self.busy_s = 0.0
        self.failure: BaseException | None = None
        self._waiting: dict[tuple[int, int], _Waiting] = {}  # by client and slot
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- parameters --------------------------------------------------------------------------------------------------

    def load(self, policy: str, version: int, params: Tree) -> None:
        """Hold a version of a policy from the next batch on. After a restart, load older versions before newer ones:
        a request for a version older than all that are held is refused. Raises: what ended the loop's own thread."""
        self.check()
        # On the device once, and not with every call. This is slow, and so done here and not in the loop.
        params = jax.device_put(params, self.server.device)
        self._change(partial(self.server.load, policy, version, params))

    def unload(self, policy: str, keep: set[int]) -> None:
        """Forget all versions of a policy but these, from the next batch on."""
        self.check()
        self._change(partial(self.server.unload, policy, set(keep)))

    def _change(self, change: Callable[[], None]) -> None:
        self._changes.put(change)
        self.link.wake()

    def _apply(self) -> None:
        while not self._changes.empty():
            self._changes.get()()

    def warm_up(self, requests: int = 1) -> None:
        """Compile for every size of batch up to this many requests; every policy must have a version. Call this before
        `start`."""
        self._apply()
        versions = {name: self.server.held(name)[-1] for name in self.forms.learners}
        size = 1
        while size < 2 * min(requests if self.server.together else 1, self.most):
            rows = [
                np.zeros((size * field.shape[0], *field.shape[1:]), field.dtype)
                for field in self.forms.request.fields[1:]
            ]
            jax.block_until_ready(self.server.act([self.forms.read_request(versions, rows)]))
            size *= 2

    # ---- answering ---------------------------------------------------------------------------------------------------

    def step(self, timeout_s: float = 0.05) -> int:
        """Answer what can be answered; if nothing is there, wait this long for something. Returns: answers given."""
        for request in self.link.receive(timeout_s):
            key = (request.client, request.slot)
            known = self._waiting.get(key)
            if known is not None and known.request.number > request.number:
                continue
            numbers = self.forms.read_versions(request.arrays)
            again = known is not None and known.request.number == request.number
            since = known.since_s if known is not None and again else time.monotonic()
            self._waiting[key] = _Waiting(request, numbers, since)
        self._apply()
        return self._answer() if self._waiting else 0

    def _answer(self) -> int:
        groups = self._ready()
        if not groups:
            return 0
        started = time.perf_counter()
        answered = 0
        for versions, requests in groups.items():
            named = dict(zip(self.forms.learners, versions, strict=True))
            if self.server.together:
                for first in range(0, len(requests), self.most):
                    self._act_together(named, requests[first : first + self.most])
            else:
                self._act_alone(named, requests)
            answered += len(requests)
        self.answered += answered
        self.busy_s += time.perf_counter() - started
        return answered

    def _ready(self) -> dict[tuple[int, ...], list[Incoming]]:
        """The requests that can be answered, taken from those that wait, by versions. Refuses those that never can."""
        held = {name: self.server.held(name) for name in self.forms.learners}
        now = time.monotonic()
        groups: dict[tuple[int, ...], list[Incoming]] = {}
        for key, waiting in list(self._waiting.items()):
            missing = [(name, version) for name, version in waiting.versions.items() if version not in held[name]]
            if not missing:
                groups.setdefault(tuple(waiting.versions.values()), []).append(waiting.request)
                del self._waiting[key]
                continue
            for name, version in missing:
                too_old = bool(held[name]) and version < held[name][0]
                if too_old or now - waiting.since_s > self.wait_s:
                    why = f"older than {held[name][0]}" if too_old else f"not loaded within {self.wait_s:g} s"
                    self.link.refuse(
                        waiting.request, Refusal.UNKNOWN_VERSION, f"no version {version} of policy {name}: {why}"
                    )
                    del self._waiting[key]
                    break
        return groups

    def _act_alone(self, versions: Versions, requests: list[Incoming]) -> None:
        asked = [self.forms.read_request(versions, request.arrays[1:]) for request in requests]
        self.calls += len(asked)
        answers = [self._fetch(answer) for answer in self.server.act(asked)]
        for request, leaves in zip(requests, answers, strict=True):
            self.link.answer(request, [np.asarray(leaf) for leaf in leaves])

    def _act_together(self, versions: Versions, requests: list[Incoming]) -> None:
        """One call for all. Rows are gathered here: to hand a program many small arrays costs more than a copy."""
        size = 1 << (len(requests) - 1).bit_length()
        padded = [*requests, *[requests[-1]] * (size - len(requests))]
        columns = zip(*(request.arrays[1:] for request in padded), strict=True)
        rows = [np.concatenate(column) if size > 1 else column[0] for column in columns]
        self.calls += 1
        answer = self.server.act([self.forms.read_request(versions, rows)])[0]
        leaves = [np.asarray(leaf) for leaf in self._fetch(answer)]
        lanes = self.forms.lanes
        for index, request in enumerate(requests):
            self.link.answer(request, [leaf[index * lanes : (index + 1) * lanes] for leaf in leaves])

    def _fetch(self, answer: Answer) -> list[Any]:
        """The leaves of an answer, on their way to the host if they are computed elsewhere. (`jax.device_get` would
        take as long again as a small network.)"""
        leaves = jax.tree.leaves(answer)
        if self._far:
            for leaf in leaves:
                leaf.copy_to_host_async()
        return leaves

    # ---- a thread of its own -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Answer in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name="marl-inference", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step(1.0)
        except BaseException as failure:  # the outermost loop: whoever looks after this thread raises it
            self.failure = failure

    def check(self) -> None:
        """Raises: what ended the loop's own thread, if anything did."""
        if self.failure is not None:
            raise self.failure

    def counters(self) -> dict[str, float]:
        """What was done so far: numbers that only grow, and how many requests wait now."""
        self.check()
        return {
            "answered": self.answered,
            "calls": self.calls,
            "busy_s": self.busy_s,
            "waiting": len(self._waiting),
            "refused": sum(self.link.refused.values()),
        }

    def close(self) -> None:
        """End the thread and close the link."""
        self._stop.set()
        if self._thread is not None:
            self.link.wake()
            self._thread.join()
            self._thread = None
        self.link.close()
