"""The vocabulary: what arrives from a world, what a learner gets, what a learner keeps.

Shapes are written for one lane (one copy of a world). The dataflow adds axes in front: `[T, B, n_role, ...]` in a
learner, time-major. Every dict is keyed by role name; agent names exist only at the PettingZoo boundary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
from flax import struct

from marl.core.roles import RoleSpec as RoleSpec

Tree: TypeAlias = Any  # any pytree of arrays
Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a typed PRNG key (`jax.random.key`)
ByRole: TypeAlias = dict[str, Any]  # arrays [n_role, ...] by role name
Metrics: TypeAlias = dict[str, jax.Array]  # scalars by name, without role or tag prefix


@struct.dataclass
class TimeStep:
    """What arrives. `reward`, `terminated` and `truncated` at row t+1 answer the action taken at row t.

    obs: by role, `[n_role, ...]` (leaves of a pytree).  reward: f32 `[n_role]`, 0 at `first` and after an agent's end.
    terminated, truncated: bool `[n_role]`.  alive: bool `[n_role]`, who is present at this row (an agent that ended at
    row t has alive False from row t on; where the time limit cuts the whole episode, nobody ended by itself, and alive
    stays True on that last row).  first, last: bool scalars of the episode, exactly one row of each an episode.
    action_mask: bool `[n_role, n_actions]`, True = allowed.  state: global state for central critics. info: f32
    scalars; the lane sums them over the episode (a world emits an episode-level figure on its last row only). Reward
    terms are named `reward/<role>/<term>`, each the mean over the role's agents.
    acting: bool `[n_role]` in worlds where agents take turns, None where all that are alive act at every row. Who does
    not act still observes; `core.returns.own_turns` makes time pass from one own turn to the next.
    """

    obs: ByRole
    reward: ByRole
    terminated: ByRole
    truncated: ByRole
    alive: ByRole
    first: Array
    last: Array
    action_mask: ByRole | None = None
    state: Tree | None = None
    info: dict[str, Array] | None = None
    acting: ByRole | None = None


@struct.dataclass
class Trajectory:
    """One learner's share of a rollout: T+1 time steps and the T things done between them, leaves `[T+1 or T, B,
    n_role, ...]`.

    step: T+1 rows, without info.  action: T rows by role.  extras: T rows of what the policy chose to remember.
    carry: the policy's carry before row 0, leaves `[B, ...]`.  next_action: the action drawn at row T, by role, only
    for learners that commit their action (SARSA), else empty.  version: i32 `[B]`, parameter version that acted.
    weight: f32 `[B]`, importance weights of a sample from replay, else None.
    """

    step: TimeStep
    action: ByRole
    extras: Tree
    carry: Tree
    next_action: ByRole
    version: Array
    weight: Array | None = None


@struct.dataclass
class LearnerState:
    """Everything a learner keeps. `env_steps` (f32) is written by the dataflow before each update, for schedules
    only."""

    params: Tree
    opt: Tree
    aux: Tree
    hyper: Tree
    env_steps: Array
    updates: Array


@struct.dataclass
class EpisodeResult:
    """One finished episode: the record of training lanes, of evaluation and of fitness.

    returns: by role, undiscounted sums f32 `[n_role]`.  length: env steps, i32.  agent_steps: i32.  info: sums over the
    episode.
    """

    returns: ByRole
    length: Array
    agent_steps: Array
    info: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Replay:
    """A replay buffer's sizes, counted in trajectories. alpha: None draws uniformly, else in proportion to
    `priority ** alpha`, where `update` returns `metrics["priority"]` `[B]`; beta: of the importance weights."""

    capacity: int
    batch: int
    min_size: int
    updates_per_add: int = 1
    alpha: float | None = None
    beta: float = 0.4


@dataclasses.dataclass(frozen=True)
class DataNeeds:
    """All that the dataflow ever asks an algorithm. `rollout` is T."""

    rollout: int
    whole_episodes: bool = False
    commit_action: bool = False
    replay: Replay | None = None
    max_staleness: int = 0
    gradients: bool = False
    global_state: bool = False
