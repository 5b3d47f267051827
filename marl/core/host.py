"""What a world written in Python is: PettingZoo's, Gymnasium's, anyone's. Importing this imports no JAX, so that the
processes that step such worlds stay small.

The rows mean what those of `core.types.TimeStep` mean, with the same next-step reset: a world is never stepped after
the row that was its `last`; whoever drives it resets it for the row after.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from marl.core.roles import RoleSpec

Tree = Any


@dataclasses.dataclass
class HostRow:
    """Where a world writes one row of one copy: views into the arrays of a trajectory. A world fills all of them.

    obs: by role `[n_role, ...]` (a dict of such arrays by key for a `Dict` space); zeros for agents that are not
    there. reward: f32 `[n_role]`.  terminated, truncated, alive: bool `[n_role]`.  acting: bool `[n_role]`, for worlds
    that are `turn_based`, else None.  action_mask: bool `[n_role, n_actions]` for the roles in the world's `masked`
    (all True for an agent that does not act).  state: the global state, for worlds whose roles have a `state_space`.
    """

    obs: dict[str, Tree]
    reward: dict[str, NDArray[np.float32]]
    terminated: dict[str, NDArray[np.bool_]]
    truncated: dict[str, NDArray[np.bool_]]
    alive: dict[str, NDArray[np.bool_]]
    acting: dict[str, NDArray[np.bool_]] | None = None
    action_mask: dict[str, NDArray[np.bool_]] = dataclasses.field(default_factory=dict)
    state: NDArray[Any] | None = None


@runtime_checkable
class HostWorld(Protocol):
    """One copy of a world. `name` is for messages.  max_steps: longest episode, None if it does not say.

    masked: roles whose agents have an action mask.  turn_based: agents act one after another (AEC).
    Everything that goes wrong in foreign code is raised as it is, or as WorldError with agent and expectation; whoever
    drives the world adds its name and the step.
    """

    name: str
    roles: tuple[RoleSpec, ...]
    max_steps: int | None
    masked: frozenset[str]
    turn_based: bool

    def reset(self, seed: int, row: HostRow) -> None:
        """Start the episode of a seed (0 to 2^31-1) and write its first row, rewards 0. The same seed and the same
        actions give the same episode, if the world is reproducible at all."""
        ...

    def step(self, actions: dict[str, NDArray[Any]], row: HostRow) -> bool:
        """Actions by role `[n_role, ...]` (those of agents that do not act are ignored); writes the next row. Returns
        whether it is the episode's last."""
        ...

    def render(self) -> NDArray[np.uint8]:
        """The present picture, `[H, W, 3]`."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class HostFactory:
    """How any process makes a copy of a world: `function` is `package.module:name`, `arguments` are JSON."""

    function: str
    arguments: dict[str, Any]

    def make(self, *, render: bool = False) -> HostWorld:
        """A new copy. render: it will be drawn (some worlds must know when they are made)."""
        import importlib

        module, _, name = self.function.partition(":")
        world: HostWorld = getattr(importlib.import_module(module), name)(**self.arguments, render=render)
        return world
