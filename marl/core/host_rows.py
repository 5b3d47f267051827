"""One row of several copies of a world in Python, in memory that processes may share. Importing this imports no JAX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.host import HostFactory, HostRow, HostWorld
from marl.core.roles import RoleSpec
from marl.core.spaces import Dict, Discrete, ObservationSpace

ALIGNMENT = 64
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a row: where it belongs, and its dtype and shape for one lane."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """What a world's rows hold. `step`: what arrives.  action: by role.  Hashable, and the same in every process."""

    step: tuple[Field, ...]
    action: tuple[Field, ...]

    @classmethod
    def of(cls, world: HostWorld) -> RowSpec:
        """The rows that this world writes."""
        step: list[Field] = []
        for role in world.roles:
            n = (role.size,)
            step.extend(_leaves(("obs", role.name), role.observation_space, n))
            step.append(Field(("reward", role.name), "float32", n))
            step.extend(Field((name, role.name), "bool", n) for name in ("terminated", "truncated", "alive"))
            if world.turn_based:
                step.append(Field(("acting", role.name), "bool", n))
            if role.name in world.masked:
                assert isinstance(role.action_space, Discrete)
                step.append(Field(("action_mask", role.name), "bool", (role.size, role.action_space.n)))
        state = next((role.state_space for role in world.roles if role.state_space is not None), None)
        if state is not None:
            assert not isinstance(state, Dict)
            step.append(Field(("state",), state.dtype, state.shape or (1,)))
        step.extend(Field((name,), "bool", ()) for name in ("first", "last"))
        return cls(tuple(step), tuple(_action(role) for role in world.roles))

    @property
    def control(self) -> tuple[Field, ...]:
        """What passes between the driver and the worlds beside rows: the seed of the next episode, the fault flag of
        the lane's last transition, and whether the lane stays as it is once its episode is over."""
        return (Field(("seed",), "uint32", ()), Field(("fault",), "bool", ()), Field(("hold",), "bool", ()))

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*self.step, *(Field(("action", *f.path), f.dtype, f.shape) for f in self.action), *self.control)


@dataclasses.dataclass(frozen=True)
class HostWorlds:
    """A world in Python: how to make a copy of it, who is in it, and what its rows hold."""

    factory: HostFactory
    roles: tuple[RoleSpec, ...]
    spec: RowSpec
    max_steps: int | None

    @classmethod
    def of(cls, factory: HostFactory) -> tuple[HostWorlds, HostWorld]:
        """What a copy made for the purpose says, and that copy."""
        world = factory.make()
        return cls(factory, tuple(world.roles), RowSpec.of(world), world.max_steps), world


def _leaves(path: Path, space: ObservationSpace, lead: tuple[int, ...]) -> Iterator[Field]:
    if isinstance(space, Dict):
        for key, part in space.items:
            yield from _leaves((*path, key), part, lead)
    else:
        yield Field(path, space.dtype, (*lead, *space.shape))


def _action(role: RoleSpec) -> Field:
    return Field((role.name,), role.action_space.dtype, (role.size, *role.action_space.shape))


def nest(flat: dict[Path, Any]) -> dict[str, Any]:
    """Nested dicts from values by path."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


class RowBlock:
    """The present row of `lanes` copies, arrays `[lanes, ...]` by field path, in one block of memory.

    buffer: memory of at least `size(spec, lanes)` bytes, such as a shared memory's; own memory if None.
    """

    def __init__(self, spec: RowSpec, lanes: int, buffer: memoryview | None = None) -> None:
        self.spec = spec
        self.lanes = lanes
        offsets, total = _offsets(spec, lanes)
        memory = np.zeros(total, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8, total)
        self.arrays: dict[Path, NDArray[Any]] = {}
        for field, offset in zip(spec.fields, offsets, strict=True):
            shape = (lanes, *field.shape)
            size = math.prod(shape) * np.dtype(field.dtype).itemsize
            self.arrays[field.path] = memory[offset : offset + size].view(field.dtype).reshape(shape)
        self.step: dict[Path, NDArray[Any]] = {f.path: self.arrays[f.path] for f in spec.step}
        self.action: dict[str, NDArray[Any]] = {f.path[0]: self.arrays["action", *f.path] for f in spec.action}
        self.first, self.last = self.arrays["first",], self.arrays["last",]
        self.seed, self.fault = self.arrays["seed",], self.arrays["fault",]
        self.hold = self.arrays.pop(("hold",))  # a wish of the driver's, no part of the row

    @staticmethod
    def size(spec: RowSpec, lanes: int) -> int:
        """Bytes of memory that a block takes."""
        return _offsets(spec, lanes)[1]

    def host_row(self, lane: int) -> HostRow:
        """The views that one copy writes its row into."""
        tree = nest({path: array[lane] for path, array in self.step.items() if array.ndim > 1})
        return HostRow(
            obs=tree["obs"],
            reward=tree["reward"],
            terminated=tree["terminated"],
            truncated=tree["truncated"],
            alive=tree["alive"],
            acting=tree.get("acting"),
            action_mask=tree.get("action_mask", {}),
            state=tree.get("state"),
        )

    def lane_actions(self, lane: int) -> dict[str, NDArray[Any]]:
        """Views of one copy's actions by role."""
        return {role: array[lane] for role, array in self.action.items()}


def _offsets(spec: RowSpec, lanes: int) -> tuple[list[int], int]:
    offsets, at = [], 0
    for field in spec.fields:
        offsets.append(at)
        size = lanes * math.prod(field.shape) * np.dtype(field.dtype).itemsize
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, at
