"""What a world is: two pure functions over a state pytree."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from marl.core.config import EnvConfig
from marl.core.types import ByRole, Key, RoleSpec, TimeStep

State = TypeVar("State")
Params = TypeVar("Params")


@runtime_checkable
class Environment(Protocol[State, Params]):
    """A world, written for one lane; the dataflow vmaps it. It never resets itself (next-step reset: see
    `core.collect`).

    The class is made with keyword options (`Config` validates them): sizes that fix shapes and switches. Numbers that
    fix no shape are `default_params`, traced, so that vmap over them is domain randomisation. `reset` returns a row
    with `first` True and reward 0; `step` returns a row with `first` False. Both are pure, jit-safe and vmap-safe.
    `render` is numpy, opens no window and is never needed by training. A world may set `lane_axis = -1` where
    measurement shows that its state is faster with the lane axis last.
    """

    Config: ClassVar[type[EnvConfig]]
    lane_axis: ClassVar[int]

    @property
    def roles(self) -> tuple[RoleSpec, ...]: ...
    @property
    def default_params(self) -> Params: ...
    @property
    def max_steps(self) -> int | None: ...
    def reset(self, key: Key, params: Params) -> tuple[State, TimeStep]: ...
    def step(self, key: Key, state: State, actions: ByRole, params: Params) -> tuple[State, TimeStep]: ...
    def render(self, state: State, params: Params) -> NDArray[np.uint8]: ...


AnyEnvironment = Environment[Any, Any]
