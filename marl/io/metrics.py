"""Rows of metrics, events, and the sinks they go to.

A row is flat: `kind` (train, eval, event or perf), `seed`, `env_steps`, `updates`, `time` (seconds since 1970) and
one entry a tag (`episode/return/<role>`, `loss/<role>/policy`, `perf/env_steps_per_s`, ...). An `event` row carries
`event` and `message`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeAlias

Row: TypeAlias = dict[str, float | int | str]

KINDS = ("train", "eval", "event", "perf")
NOT_TAGS = frozenset({"kind", "seed", "env_steps", "updates", "time", "event", "message"})


class Event(NamedTuple):
    """Something that happened to the run and that its owner should know: `name` is stable, `message` is for people."""

    name: str
    message: str


class MetricSink(Protocol):
    """Where rows go. `write` may buffer; after `flush` the rows survive a kill of the process."""

    def write(self, row: Row) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Sinks:
    """Several sinks as one. Stamps each row with `time` once, so that all sinks agree."""

    def __init__(self, sinks: Iterable[MetricSink]) -> None:
        self.sinks = list(sinks)

    def write(self, row: Row) -> None:
        stamped = row if "time" in row else {**row, "time": round(time.time(), 3)}
        for sink in self.sinks:
            sink.write(stamped)

    def flush(self) -> None:
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        """Close all, the later ones too when one of them fails; the first failure is raised at the end."""
        first: Exception | None = None
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def event_row(event: Event, seed: int, env_steps: int, updates: int) -> Row:
    """An event as a row for the sinks."""
    return {
        "kind": "event",
        "seed": seed,
        "env_steps": env_steps,
        "updates": updates,
        "event": event.name,
        "message": event.message,
    }


def scalars(row: Row) -> dict[str, float]:
    """The tags of a row that hold numbers."""
    return {tag: float(value) for tag, value in row.items() if tag not in NOT_TAGS and not isinstance(value, str)}
