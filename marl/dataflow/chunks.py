"""Chunks: what one slot of lanes hands over at once, for one policy, with the numbers that account for it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.types import TimeStep, Trajectory
from marl.dataflow.plain import Tree, pack_json, plain, unpack_json

_NUMBERS = ("slot", "incarnation", "sequence", "ticket", "version", "env_steps", "agent_steps")
_BY_ROW = ("step", "action", "extras")  # time-major, lanes on axis 1; the other fields have lanes on axis 0


def chunk_id(run: str, policy: str, slot: int, incarnation: int, sequence: int) -> int:
    """64 bits that name one chunk of one run, the same in every process (BLAKE2b of the arguments)."""
    name = "\0".join((run, policy, str(slot), str(incarnation), str(sequence)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """One rollout of one slot for one policy. Its arrays must not change while a buffer holds it.

    chunk_id: see `chunk_id`.  slot: the group of lanes.  incarnation: how often that slot was started anew.
    sequence: 0, 1, ... within an incarnation.  ticket: the permission it was collected under.  version: of the
    parameters that acted, the oldest if several.  trajectory: NumPy leaves `[T+1 or T, lanes, n_role, ...]`.
    env_steps, agent_steps: what its rows count.
    """

    chunk_id: int
    policy: str
    slot: int
    incarnation: int
    sequence: int
    ticket: int
    version: int
    trajectory: Trajectory
    env_steps: int
    agent_steps: int

    @property
    def lanes(self) -> int:
        return int(self.trajectory.version.shape[0])

    def snapshot(self) -> Tree:
        """A plain tree that shares the chunk's arrays. Raises: CheckpointError if a policy's carry or extras have
        containers that a file of arrays does not give back."""
        return {
            "id": np.array([self.chunk_id], np.uint64),
            "policy": pack_json(self.policy),
            "numbers": np.array([getattr(self, name) for name in _NUMBERS], np.int64),
            "trajectory": trajectory_snapshot(self.trajectory),
        }

    @classmethod
    def restored(cls, tree: Tree) -> Chunk:
        """The inverse of `snapshot`."""
        numbers = dict(zip(_NUMBERS, tree["numbers"].tolist(), strict=True))
        return cls(
            chunk_id=int(tree["id"][0]),
            policy=unpack_json(tree["policy"]),
            trajectory=trajectory_restored(tree["trajectory"]),
            **numbers,
        )


def ids(chunks: Sequence[Chunk]) -> NDArray[np.uint64]:
    """Their ids `[chunks]`."""
    return np.array([chunk.chunk_id for chunk in chunks], np.uint64)


def map_lanes(function: Callable[..., Any], *trajectories: Trajectory) -> Trajectory:
    """`function(axis, *leaves)` for every leaf of trajectories of one structure; axis: where its lanes are."""

    def part(name: str) -> Tree:
        axis = 1 if name in _BY_ROW else 0
        return jax.tree.map(lambda *leaves: function(axis, *leaves), *(getattr(t, name) for t in trajectories))

    make: Any = Trajectory
    made: Trajectory = make(**{field.name: part(field.name) for field in dataclasses.fields(make)})
    return made


def concatenate(chunks: Sequence[Chunk]) -> Trajectory:
    """The lanes of all chunks side by side, in the given order: each leaf is copied once. One chunk is not copied.

    Raises: ValueError if there is none, or their structures or shapes differ.
    """
    if len(chunks) == 1:
        return chunks[0].trajectory
    return map_lanes(lambda axis, *leaves: np.concatenate(leaves, axis), *(chunk.trajectory for chunk in chunks))


def trajectory_snapshot(trajectory: Trajectory) -> Tree:
    """A trajectory as a plain tree that shares its arrays. Raises: CheckpointError as `Chunk.snapshot`."""
    fields = _fields(trajectory) | {"step": _fields(trajectory.step)}
    return plain(fields, "a trajectory (observations, actions, extras or carry)")


def trajectory_restored(tree: Tree) -> Trajectory:
    """The inverse of `trajectory_snapshot`."""
    make: Any = Trajectory
    step: Any = TimeStep
    made: Trajectory = make(**(tree | {"step": step(**tree["step"])}))
    return made


def _fields(struct: Any) -> dict[str, Any]:
    return {field.name: getattr(struct, field.name) for field in dataclasses.fields(struct)}
