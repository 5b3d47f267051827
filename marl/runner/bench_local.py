"""What `marl bench` measures of worlds in Python and of the local placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.host_group import FaultPolicy, HostGroup
from marl.core.host_rows import HostWorlds, RowBlock
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Discrete
from marl.dataflow.learner import LearnerCore
from marl.dataflow.local import Local

MADE_AHEAD = 64  # rows of random actions, drawn before the clock runs


def host_stepper(worlds: HostWorlds, lanes: int) -> tuple[HostGroup, Callable[[], int]]:
    """Copies of a world in this process, and a function that moves each of them on by `MADE_AHEAD` rows with random
    actions and returns how many env steps that were; resets are in the time."""
    block = RowBlock(worlds.spec, lanes)
    group = HostGroup(worlds.factory, block, FaultPolicy())
    random = np.random.default_rng(0)
    actions = {role.name: _draw(random, role, lanes) for role in worlds.roles}
    block.seed[:] = np.arange(lanes)
    group.start()

    def step() -> int:
        done = 0
        for t in range(MADE_AHEAD):
            for role, rows in actions.items():
                mask = block.step.get(("action_mask", role))
                block.action[role][:] = rows[t] if mask is None else _legal(random, mask)
            done += int((~block.last).sum())
            block.seed[:] = (block.seed + lanes) % 2**31
            group.advance()
        return done

    return group, step


def _draw(random: np.random.Generator, role: RoleSpec, lanes: int) -> NDArray[Any]:
    """Random actions `[MADE_AHEAD, lanes, n, ...]`; unbounded ones near 0."""
    space = role.action_space
    size = (MADE_AHEAD, lanes, role.size, *space.shape)
    if isinstance(space, Discrete):
        return random.integers(0, space.n, size, np.int32)
    if isinstance(space, Box):
        low, high = np.clip(space.low, -1, None), np.clip(space.high, None, 1)
        return random.uniform(low, high, size).astype(space.dtype)
    return random.integers(0, np.asarray(space.nvec), size).astype(space.dtype)


def _legal(random: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Uniform over what each mask `[..., actions]` allows."""
    draw: NDArray[np.int32] = (random.random(mask.shape, np.float32) + mask).argmax(-1).astype(np.int32)
    return draw


@contextmanager
def nothing_learned(local: Local) -> Iterator[None]:
    """Within it updates are left out; everything else goes on, to the batches on the learner's device."""
    learners = [stage.learner for run in local.runs for stage in run.stages.values()]
    for learner in learners:
        for name, does_nothing in (
            ("update", lambda batch, env_steps, key: {}),
            ("gradient", lambda params, batch, key: ((), {})),
            ("apply", lambda grads, metrics, env_steps: {}),
        ):
            setattr(learner, name, does_nothing)
    try:
        yield
    finally:
        for learner in learners:
            for name in ("update", "gradient", "apply"):
                assert hasattr(LearnerCore, name)
                delattr(learner, name)


def dispatcher(local: Local) -> Callable[[], int]:
    """A function that makes one dispatch and returns how many env steps that was."""

    def step() -> int:
        _, result = local.dispatch(local, [0] * len(local.seeds))
        return int(result.env_steps.sum())

    return step


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time went, by part of the dataflow: means of the `flow/bottleneck/` tags of training rows."""
    prefix = "flow/bottleneck/"
    parts = dict.fromkeys(tag.removeprefix(prefix) for row in rows for tag in row if tag.startswith(prefix))
    return {part: float(np.mean([row.get(prefix + part, 0.0) for row in rows])) for part in parts}
