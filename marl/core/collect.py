"""The one actor loop: every placement, evaluation and the population evaluator step their lanes through `collect`.

A lane is one copy of a world with its policies' carry. Worlds never reset themselves: when the row in hand has `last`,
the action drawn there is ignored and the next row is the next episode's `first` (next-step reset). So the final
observation is an ordinary row, and `obs[t+1]` is the true successor of `obs[t]` wherever the transition counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from marl.core.algorithm import Policy
from marl.core.env import AnyEnvironment
from marl.core.types import Array, ByRole, EpisodeResult, Key, TimeStep, Tree


@struct.dataclass
class Lane:
    """One copy of a world and all that acts in it. A batch has B of them, axis 0 (`world`: the world's `lane_axis`).

    pending: by policy name, for policies that commit their action (SARSA): what they already drew on `step`.
    sums: the running episode.  key: the lane's own randomness, so that no result depends on who shares the batch.
    params: this lane's world parameters, or None for the world's defaults.
    """

    world: Tree
    step: TimeStep
    carry: dict[str, Tree]
    pending: dict[str, Tree]
    sums: EpisodeResult
    key: Key
    params: Tree


@struct.dataclass
class Rollout:
    """What `collect` saw. Leaves of `step` are `[T+1, B, ...]`, of the others `[T, B, ...]`.

    carry: by policy, before row 0, `[B, ...]`.  next_action: by role, drawn at row T by policies that commit theirs.
    finished: True where the transition leaving row t ended an episode; `episode` holds its result there.
    """

    step: TimeStep
    action: ByRole
    extras: dict[str, Tree]
    carry: dict[str, Tree]
    next_action: ByRole
    finished: Array
    episode: EpisodeResult


def restrict(step: TimeStep, roles: tuple[str, ...]) -> TimeStep:
    """The time step as the policy that plays `roles` sees it: its own roles, no info."""

    def pick(by_role: ByRole) -> ByRole:
        return {role: by_role[role] for role in roles}

    mask = None if step.action_mask is None else {r: step.action_mask[r] for r in roles if r in step.action_mask}
    return step.replace(  # type: ignore[attr-defined, no-any-return]
        obs=pick(step.obs),
        reward=pick(step.reward),
        terminated=pick(step.terminated),
        truncated=pick(step.truncated),
        alive=pick(step.alive),
        action_mask=mask or None,
        acting=None if step.acting is None else pick(step.acting),
        info=None,
    )


def _where(condition: Array, yes: Tree, no: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _zero_result(step: TimeStep) -> EpisodeResult:
    info = {} if step.info is None else step.info
    return EpisodeResult(
        returns={role: jnp.zeros_like(reward) for role, reward in step.reward.items()},
        length=jnp.zeros((), jnp.int32),
        agent_steps=jnp.zeros((), jnp.int32),
        info={name: jnp.zeros((), jnp.float32) for name in info},
    )


def _add(sums: EpisodeResult, before: TimeStep, after: TimeStep) -> EpisodeResult:
    """The running episode after one more transition."""
    acting = sum((alive.sum(dtype=jnp.int32) for alive in before.alive.values()), jnp.zeros((), jnp.int32))
    info = {} if after.info is None else after.info
    return EpisodeResult(
        returns={role: total + after.reward[role] for role, total in sums.returns.items()},
        length=sums.length + 1,
        agent_steps=sums.agent_steps + acting,
        info={name: total + info[name] for name, total in sums.info.items()},
    )


def _act(
    policies: Mapping[str, Policy],
    params: Mapping[str, Tree],
    carry: Mapping[str, Tree],
    step: TimeStep,
    key: Key,
    explore: bool,
    commits: bool,
) -> dict[str, Tree]:
    """(carry, action, extras) by policy, for the policies whose `commit_action` equals `commits`."""
    acted = {}
    for index, (name, policy) in enumerate(policies.items()):
        if policy.needs.commit_action == commits:
            own_key = key if len(policies) == 1 else jax.random.fold_in(key, index)
            acted[name] = policy.act(params[name], carry[name], restrict(step, policy.roles), own_key, explore=explore)
    return acted


def lane_axes(env: AnyEnvironment, params: Tree) -> Any:
    """The vmap axes of a batch of lanes: 0 everywhere, the world's own `lane_axis` for its state."""
    make: Any = Lane
    return make(env.lane_axis, 0, 0, 0, 0, 0, None if params is None else 0)


def init_lanes(
    env: AnyEnvironment,
    policies: Mapping[str, Policy],
    params: Mapping[str, Tree],
    keys: Key,
    *,
    explore: bool = True,
    env_params: Tree = None,
) -> Lane:
    """Fresh lanes, one a key. keys: `[B]`.  env_params: leaves `[B, ...]`, or None for the world's defaults."""

    def one(key: Key, own_params: Tree) -> Lane:
        own, k_world, k_act = jax.random.split(key, 3)
        world, step = env.reset(k_world, env.default_params if own_params is None else own_params)
        carry = {name: policy.initial_carry() for name, policy in policies.items()}
        pending = _act(policies, params, carry, step, k_act, explore, commits=True)
        return Lane(world, step, carry, pending, _zero_result(step), own, own_params)

    axes = lane_axes(env, env_params)
    lanes: Lane = jax.vmap(one, in_axes=(0, axes.params), out_axes=axes)(keys, env_params)
    return lanes


def collect(
    env: AnyEnvironment,
    policies: Mapping[str, Policy],
    params: Mapping[str, Tree],
    lanes: Lane,
    length: int,
    *,
    explore: bool = True,
    hold: bool = False,
    record: tuple[str, ...] = (),
    keep_state: bool = False,
) -> tuple[Lane, Rollout]:
    """Step B lanes for `length` rows.

    policies, params: by policy name; together they play every role of the world.  explore: sample, or act greedily.
    hold: a lane stays where it is after `last` (one whole episode a lane, so that short ones are not over-represented).
    record: policies whose rows, actions and extras are kept (the others' `Rollout` entries are absent).
    keep_state: keep `TimeStep.state` for central critics.

    Returns: the lanes after `length` rows, and the rollout.
    """
    roles = tuple(role for name in record for role in policies[name].roles)

    def kept(step: TimeStep) -> TimeStep:
        row = restrict(step, roles)
        return row if keep_state else row.replace(state=None)  # type: ignore[attr-defined]

    def body(lane: Lane) -> tuple[Lane, Tree]:
        own_params = env.default_params if lane.params is None else lane.params
        key, k_world, k_act = jax.random.split(lane.key, 3)
        acted = {**_act(policies, params, lane.carry, lane.step, k_act, explore, commits=False), **lane.pending}
        action = {role: acts[role] for _, acts, _ in acted.values() for role in acts}
        # Only one of reset and step counts on a row, so both may use the same key.
        moved = env.step(k_world, lane.world, action, own_params)
        ended = lane.step.last
        other = (lane.world, lane.step) if hold else env.reset(k_world, own_params)
        world, step = _where(ended, other, moved)
        summed = _add(lane.sums, lane.step, moved[1])
        finished = moved[1].last & ~ended
        sums = _where(ended, lane.sums if hold else _zero_result(step), summed)
        carry = {name: acted[name][0] for name in policies}
        fresh = {name: policy.initial_carry() for name, policy in policies.items()}
        carry = _where(step.first, fresh, carry)
        pending = _act(policies, params, carry, step, k_act, explore, commits=True)
        seen = (
            {role: action[role] for role in roles},
            {name: acted[name][2] for name in record},
            finished,
            summed,
        )
        return Lane(world, step, carry, pending, sums, key, lane.params), seen

    axes = lane_axes(env, lanes.params)
    step_all = jax.vmap(body, in_axes=(axes,), out_axes=(axes, 0))

    # Rows go into a preallocated [T+1] buffer in the scan's carry: concatenating the last row would copy them all.
    first_row = kept(lanes.step)
    buffer = jax.tree.map(lambda x: jnp.zeros((length + 1, *x.shape), x.dtype), first_row)

    def put(rows: Tree, row: Tree, index: Array | int) -> Tree:
        return jax.tree.map(lambda r, x: jax.lax.dynamic_update_index_in_dim(r, x, index, 0), rows, row)

    def scanned(state: tuple[Lane, Tree], index: Array) -> tuple[tuple[Lane, Tree], Tree]:
        current, rows = state
        rows = put(rows, kept(current.step), index)
        following, seen = step_all(current)
        return (following, rows), seen

    carry_before = {name: lanes.carry[name] for name in record}
    (after, rows), (action, extras, finished, episode) = jax.lax.scan(
        scanned, (lanes, buffer), jnp.arange(length, dtype=jnp.int32)
    )
    rows = put(rows, kept(after.step), length)
    next_action = {role: acts[role] for name, (_, acts, _) in after.pending.items() if name in record for role in acts}
    return after, Rollout(rows, action, extras, carry_before, next_action, finished, episode)
