"""A process that steps worlds: `python -m marl.dataflow.worker COMMANDS REPLIES MEMORY` (open file descriptors).

It reads JSON lines, steps the group of the slot that a line names, and answers with a JSON line; rows and actions lie
in the memory that it shares with the program that started it. It imports no JAX, so it starts in a moment and stays
small.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from marl.core.errors import MarlError
from marl.core.host import HostFactory
from marl.core.host_group import FaultPolicy, HostGroup
from marl.core.host_rows import Field, RowBlock, RowSpec


def main(arguments: list[str]) -> int:
    """Serve until the other side closes the pipe of commands."""
    # Ctrl-C reaches the whole terminal, a job scheduler's SIGTERM often every process: the main program decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    commands, replies, memory = (int(text) for text in arguments)
    with os.fdopen(commands, "rb", buffering=0) as inbox, os.fdopen(replies, "wb", buffering=0) as outbox:
        lines = _lines(inbox)
        groups: dict[int, HostGroup] = {}
        for line in lines:
            message = json.loads(line)
            try:
                answer = _do(message, groups, memory)
            except MarlError as error:
                answer = {"error": str(error)}
            try:
                outbox.write(json.dumps({"slot": message["slot"], **answer}).encode() + b"\n")
            except BrokenPipeError:  # the main program was killed
                break
        for group in groups.values():
            group.close()
    return 0


def _lines(inbox: Any) -> Any:
    """Whole lines as they come; a plain file iterator would wait for its buffer to fill."""
    rest = b""
    while chunk := inbox.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _do(message: dict[str, Any], groups: dict[int, HostGroup], memory: int) -> dict[str, Any]:
    slot, seconds = message["slot"], 0.0
    match message["do"]:
        case "make":
            sys.path[:] = message["path"]
            spec = RowSpec(_fields(message["step"]), _fields(message["action"]))
            size = RowBlock.size(spec, message["lanes"])
            shared = mmap.mmap(memory, message["offset"] + size)
            block = RowBlock(spec, message["lanes"], memoryview(shared)[message["offset"] :])
            factory = HostFactory(message["function"], message["arguments"])
            groups[slot] = HostGroup(factory, block, FaultPolicy(**message["policy"]))
            return {}
        case "start":
            groups[slot].start()
        case "advance":
            started = time.perf_counter()
            groups[slot].advance()
            seconds = time.perf_counter() - started
        case "replay":
            actions = {
                role: np.asarray(rows, groups[slot].block.action[role].dtype)
                for role, rows in message["actions"].items()
            }
            groups[slot].replay(message["lane"], message["seed"], actions)
    faults = groups[slot].new_faults()
    return {"seconds": seconds, **({"faults": faults} if faults else {})}


def _fields(stored: list[Any]) -> tuple[Field, ...]:
    return tuple(Field(tuple(path), dtype, tuple(shape)) for path, dtype, shape in stored)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
