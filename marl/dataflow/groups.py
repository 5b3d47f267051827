"""Where the worlds of a slot are stepped: in this process, or in one of its own. Importing this imports no JAX."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from marl.core.errors import WorldError
from marl.core.host import HostFactory
from marl.core.host_group import FaultPolicy, HostGroup
from marl.core.host_rows import Field, RowBlock, RowSpec

START_LIMIT_S = 180.0  # to import and make the worlds of a process, on a busy machine
GIVE_UP_RESTARTS = 5  # of one process, before the run is called failed


class GroupHandle(Protocol):
    """The worlds of one slot. `send` begins to advance them; once `ready`, the block holds the next row."""

    block: RowBlock

    def start(self) -> None:
        """Begin an episode in every copy, from the block's seeds; returns when the first rows are there."""
        ...

    def send(self) -> None: ...
    def ready(self) -> bool: ...
    def new_faults(self) -> list[str]:
        """What went wrong since the last call, in words."""
        ...

    def replay(self, lane: int, seed: int, actions: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Bring one copy to where an episode stood."""
        ...

    def close(self) -> None: ...


class InlineGroup:
    """Stepped in this process, at once."""

    def __init__(self, factory: HostFactory, spec: RowSpec, lanes: int, policy: FaultPolicy) -> None:
        self.block = RowBlock(spec, lanes)
        self._group = HostGroup(factory, self.block, policy)

    def start(self) -> None:
        self._group.start()

    def send(self) -> None:
        self._group.advance()

    def ready(self) -> bool:
        return True

    def new_faults(self) -> list[str]:
        return self._group.new_faults()

    def replay(self, lane: int, seed: int, actions: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._group.replay(lane, seed, dict(actions))

    def close(self) -> None:
        self._group.close()


class WorkerProcess:
    """A process that steps the worlds of several slots, one slot at a time, in memory shared with this one."""

    def __init__(self, factory: HostFactory, spec: RowSpec, lanes: int, slots: list[int], policy: FaultPolicy) -> None:
        self.factory, self.spec, self.lanes, self.policy = factory, spec, lanes, policy
        size = -(-RowBlock.size(spec, lanes) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory_file = _memory(size * len(slots))
        self._memory = mmap.mmap(self._memory_file, size * len(slots))
        self.offsets = {slot: size * index for index, slot in enumerate(slots)}
        self.blocks = {
            slot: RowBlock(spec, lanes, memoryview(self._memory)[offset:]) for slot, offset in self.offsets.items()
        }
        self.waiting: dict[int, float] = {}  # slot: since when
        self.faults: dict[int, list[str]] = {slot: [] for slot in slots}
        self.restarts = 0
        self.busy_s = 0.0  # spent in worlds since `take_busy`
        self._process: subprocess.Popen[bytes] | None = None
        self._spawn()

    def _spawn(self) -> None:
        theirs_in, self._commands = os.pipe()
        self._replies, theirs_out = os.pipe()
        fds = (theirs_in, theirs_out, self._memory_file)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "marl.dataflow.worker", *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        common = {
            "do": "make",
            "path": sys.path,
            "function": self.factory.function,
            "arguments": self.factory.arguments,
            "lanes": self.lanes,
            "step": [_stored(field) for field in self.spec.step],
            "action": [_stored(field) for field in self.spec.action],
            "policy": {
                "share": self.policy.share,
                "grace": self.policy.grace,
                "timeout_s": self.policy.timeout_s,
            },
        }
        for slot, offset in self.offsets.items():
            self.ask({**common, "slot": slot, "offset": offset})

    def ask(self, message: dict[str, Any]) -> None:
        """Send a command; its answer clears the slot from `waiting`."""
        self.waiting[message["slot"]] = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # seen as a closed pipe when the answer is read
            os.write(self._commands, json.dumps(message).encode() + b"\n")

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take the answers that are there, or wait for one. A process that died or hangs is started again.

        Raises: WorldError if the worlds say that the run must stop, or the process keeps dying.
        """
        if not self.waiting:
            return
        if not select.select([self._replies], [], [], timeout_s)[0]:
            if time.monotonic() - min(self.waiting.values()) > START_LIMIT_S + 2 * self.policy.timeout_s:
                self._restart("did not answer and was ended")
            return
        chunk = os.read(self._replies, 1 << 16)
        if not chunk:
            self._restart("died")
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self.waiting.pop(answer["slot"], None)
            self.faults[answer["slot"]].extend(answer.get("faults", ()))
            self.busy_s += answer.get("seconds", 0.0)
            if "error" in answer:
                raise WorldError(answer["error"])

    def _restart(self, what: str) -> None:
        """New worlds for all slots: the episodes that were open are over, as after any other fault."""
        code = self._end()
        self.restarts += 1
        words = f"a process that steps worlds {what} (exit code {code})"
        if self.restarts > GIVE_UP_RESTARTS:
            raise WorldError(f"{words} {self.restarts} times, so the run stops")
        self.waiting.clear()
        self._spawn()
        self.drain()
        for slot, block in self.blocks.items():
            for path, array in block.step.items():
                array[:] = path[0] == "action_mask"
            block.last[:] = True
            block.fault[:] = True
            self.faults[slot].append(words)

    def take_busy(self) -> float:
        """Seconds that the worlds took since the last call."""
        taken, self.busy_s = self.busy_s, 0.0
        return taken

    def drain(self, limit_s: float = START_LIMIT_S) -> None:
        """Wait until nothing is under way. Raises: WorldError as `poll`, or after the limit."""
        deadline = time.monotonic() + limit_s
        while self.waiting:
            self.poll(1.0)
            if self.waiting and time.monotonic() > deadline:
                raise WorldError(f"a process that steps worlds did not answer within {limit_s:g} s")

    def _end(self) -> int | None:
        assert self._process is not None
        os.close(self._commands)
        try:
            code = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        os.close(self._replies)
        return code

    def close(self) -> None:
        """End the process; its memory goes with it."""
        if self._process is not None:
            self._end()
            self._process = None
            os.close(self._memory_file)


class RemoteGroup:
    """The worlds of one slot in a `WorkerProcess`."""

    def __init__(self, worker: WorkerProcess, slot: int) -> None:
        self.worker, self.slot = worker, slot
        self.block = worker.blocks[slot]

    def start(self) -> None:
        self.worker.drain()
        self.worker.ask({"do": "start", "slot": self.slot})
        self.worker.drain()

    def send(self) -> None:
        self.worker.ask({"do": "advance", "slot": self.slot})

    def ready(self) -> bool:
        if self.slot in self.worker.waiting:
            self.worker.poll()
        return self.slot not in self.worker.waiting

    def new_faults(self) -> list[str]:
        fresh, self.worker.faults[self.slot] = self.worker.faults[self.slot], []
        return fresh

    def replay(self, lane: int, seed: int, actions: Mapping[str, np.ndarray[Any, Any]]) -> None:
        rows = {role: array.tolist() for role, array in actions.items()}
        self.worker.ask({"do": "replay", "slot": self.slot, "lane": lane, "seed": seed, "actions": rows})
        self.worker.drain()

    def close(self) -> None:
        """The process is closed by whoever started it."""


def wait_for_any(workers: list[WorkerProcess], timeout_s: float) -> None:
    """Sleep until some process answers."""
    busy = [worker._replies for worker in workers if worker.waiting]
    if busy:
        select.select(busy, [], [], timeout_s)


def _stored(field: Field) -> list[Any]:
    return [list(field.path), field.dtype, list(field.shape)]


def _memory(size: int) -> int:
    """A descriptor of memory without a name, which goes when its last user does."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("marl-rows")
    else:  # other systems than Linux
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
