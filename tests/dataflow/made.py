"""Small chunks whose every number tells where it comes from, and the way of a snapshot through a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from marl.core.types import TimeStep, Trajectory
from marl.dataflow.chunks import Chunk, chunk_id
from marl.io.arrays import load_arrays, save_arrays

ROWS, AGENTS = 3, 2


def trajectory(mark: int, lanes: int = 2) -> Trajectory:
    """Lane b's numbers are `10 * mark + b`, everywhere."""
    lane = 10 * mark + np.arange(lanes)

    def by_agent(rows: int, dtype: Any) -> Any:
        return {"a": np.tile(lane[None, :, None], (rows, 1, AGENTS)).astype(dtype)}

    flags = {name: by_agent(ROWS + 1, bool) for name in ("terminated", "truncated", "alive")}
    edges = {name: np.zeros((ROWS + 1, lanes), bool) for name in ("first", "last")}
    obs = {"a": {"x": np.tile(lane[None, :, None, None], (ROWS + 1, 1, AGENTS, 4)).astype(np.float32)}}
    make: Any = TimeStep
    made: Any = Trajectory
    step = make(obs=obs, reward=by_agent(ROWS + 1, np.float32), **flags, **edges)
    return made(
        step=step,
        action=by_agent(ROWS, np.int32),
        extras={"a": {"log_prob": by_agent(ROWS, np.float32)["a"]}},
        carry=(lane.astype(np.int32), {"hidden": np.tile(lane[:, None], (1, 5)).astype(np.float32)}),
        next_action={},
        version=lane.astype(np.int32),
    )


def chunk(ticket: int, *, slot: int = 0, incarnation: int = 0, sequence: int | None = None, **fields: Any) -> Chunk:
    """The chunk of a ticket; its sequence number is the ticket's if none is given."""
    sequence = ticket if sequence is None else sequence
    defaults = {"version": 0, "env_steps": 6, "agent_steps": 12}
    data = fields.pop("trajectory", None)
    return Chunk(
        chunk_id=chunk_id("run", "p", slot, incarnation, sequence),
        policy="p",
        slot=slot,
        incarnation=incarnation,
        sequence=sequence,
        ticket=ticket,
        trajectory=trajectory(ticket) if data is None else data,
        **(defaults | fields),
    )


def through_a_file(tree: Any, folder: Path) -> Any:
    """What a checkpoint would give back for a snapshot."""
    return load_arrays(save_arrays(folder / "snapshot.bin", tree, {}))[0]
