"""Who is in a world. Importing this imports no JAX."""

from __future__ import annotations

from typing import NamedTuple

from marl.core.spaces import ObservationSpace, Space


class RoleSpec(NamedTuple):
    """A set of `size` agents with one observation and one action space. Static and hashable."""

    name: str
    size: int
    observation_space: ObservationSpace
    action_space: Space
    state_space: ObservationSpace | None = None
    max_steps: int | None = None
