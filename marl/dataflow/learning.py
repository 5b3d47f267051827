"""What every placement does around a learner: its share of a rollout, one guarded update, what a dispatch reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from marl.core.algorithm import Algorithm, Policy
from marl.core.collect import Rollout, restrict
from marl.core.errors import CheckpointError
from marl.core.types import Array, Key, LearnerState, Metrics, Trajectory, Tree

MESH_AXIS = "data"  # the mesh axis over which lanes are split and learners average
PRIORITY = "priority"  # the one metric that is a number a lane


@struct.dataclass
class DispatchResult:
    """What one dispatch reports; leaves `[seed]`.

    metrics: by policy name, the mean over the dispatch's updates.  env_steps, agent_steps, updates: how many.
    episodes: how many ended.  returns: by role, sum over those of the role's mean return.  length, info: sums.
    flow: what the dataflow says of itself, by tag.
    """

    metrics: dict[str, Metrics]
    env_steps: Array
    agent_steps: Array
    updates: dict[str, Array]
    skipped: dict[str, Array]
    episodes: Array
    returns: dict[str, Array]
    length: Array
    info: dict[str, Array]
    flow: dict[str, Array] = dataclasses.field(default_factory=dict)


class Updates(NamedTuple):
    """What a dispatch's updates amount to, by policy name: mean metrics, how many, how many thrown away in a row."""

    metrics: dict[str, Metrics]
    updates: dict[str, Array]
    skipped: dict[str, Array]


@struct.dataclass
class Counts:
    """What rows amount to; the fields mean what they do in `DispatchResult`."""

    env_steps: Array
    agent_steps: Array
    episodes: Array
    returns: dict[str, Array]
    length: Array
    info: dict[str, Array]


def count(rollout: Rollout) -> Counts:
    """Sums over a rollout of what its transitions and its finished episodes amount to."""
    before_last = ~rollout.step.last[:-1]
    done = rollout.finished

    def over_finished(x: Array) -> Array:
        return jnp.where(done, x, 0).sum(dtype=x.dtype)

    acting = sum(
        ((alive[:-1] & before_last[..., None]).sum(dtype=jnp.int32) for alive in rollout.step.alive.values()),
        jnp.zeros((), jnp.int32),
    )
    episode = rollout.episode
    return Counts(
        env_steps=before_last.sum(dtype=jnp.int32),
        agent_steps=acting,
        episodes=done.sum(dtype=jnp.int32),
        returns={role: over_finished(r.mean(axis=-1)) for role, r in episode.returns.items()},
        length=over_finished(episode.length),
        info={name: over_finished(x) for name, x in episode.info.items()},
    )


def trajectory_of(policy: Policy, name: str, rollout: Rollout, version: Array) -> Trajectory:
    """A learner's share of a rollout: its own roles, acted by parameter version `version`."""
    lanes = rollout.step.last.shape[1]
    return Trajectory(
        step=restrict(rollout.step, policy.roles),
        action={role: rollout.action[role] for role in policy.roles},
        extras=rollout.extras[name],
        carry=rollout.carry[name],
        next_action={role: a for role, a in rollout.next_action.items() if role in policy.roles},
        version=jnp.broadcast_to(version, (lanes,)),
    )


def learn(
    algorithm: Algorithm, learner: LearnerState, skipped: Array, batch: Trajectory, key: Key, axis: str | None = None
) -> tuple[LearnerState, Array, Metrics]:
    """One update; one that is not finite is thrown away and counted, so no NaN is ever published. axis: as `guarded`"""
    new, metrics = algorithm.update(learner, batch, key)
    return guarded(new, metrics, learner, skipped, axis)


def guarded(
    new: LearnerState, metrics: Metrics, old: LearnerState, skipped: Array, axis: str | None = None
) -> tuple[LearnerState, Array, Metrics]:
    """The new state with its metrics if both are finite, else the old one; skipped: updates thrown away in a row.

    axis: the mesh axis of devices that share the update. Metrics are averaged over it, and what is not finite on one
    of them is thrown away on all, so that their states stay the same.
    """
    if axis is not None:
        metrics = {tag: value if tag == PRIORITY else jax.lax.pmean(value, axis) for tag, value in metrics.items()}
    finite = _all_finite((new.params, metrics))
    if axis is not None:
        finite = jax.lax.pmin(finite.astype(jnp.int32), axis) > 0
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    metrics = {tag: jnp.where(finite, value, 0.0).astype(jnp.float32) for tag, value in metrics.items()}
    return kept, jnp.where(finite, 0, skipped + 1).astype(jnp.int32), metrics


def _all_finite(tree: Tree) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in floats])) if floats else jnp.array(True)


def pack(tree: Tree) -> list[np.ndarray[Any, Any]]:
    """The leaves of a tree in order, as plain NumPy arrays (typed keys as their numbers)."""
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in jax.tree.leaves(tree)]


def unpack(stored: Sequence[np.ndarray[Any, Any]], like: Tree, what: str) -> Tree:
    """The inverse of `pack`, in the structure of `like`. Raises: CheckpointError if shapes differ, naming `what`."""
    leaves, form = jax.tree.flatten(like)
    wanted = [np.shape(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]
    if wanted != [np.shape(x) for x in stored]:
        raise CheckpointError(f"the checkpoint's {what} has arrays of other shapes than this run's")
    new = [
        jax.random.wrap_key_data(jnp.asarray(x), impl=str(jax.random.key_impl(old)))
        if _is_key(old)
        else jnp.asarray(x, old.dtype)
        for x, old in zip(stored, leaves, strict=True)
    ]
    return jax.tree.unflatten(form, new)


def _is_key(x: object) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def add_counts(counts: Sequence[Counts]) -> Counts:
    """The sum of one or more."""
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *counts)  # type: ignore[no-any-return]


def report(counts: Sequence[Counts], updates: Updates, flow: Mapping[str, float]) -> DispatchResult:
    """What a dispatch of one seed reports; leaves are NumPy's numbers without a seed axis."""
    total = add_counts(counts)
    make: Any = DispatchResult
    made: DispatchResult = make(
        metrics=updates.metrics,
        env_steps=total.env_steps,
        agent_steps=total.agent_steps,
        updates=updates.updates,
        skipped=updates.skipped,
        episodes=total.episodes,
        returns=total.returns,
        length=total.length,
        info=total.info,
        flow={tag: np.float64(value) for tag, value in flow.items()},
    )
    return made


def tree_of(counts: Counts) -> dict[str, Any]:
    """Counts for a report."""
    return {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}


def plain_counts(stored: Mapping[str, Any]) -> Counts:
    """Counts from a report."""
    make: Any = Counts
    made: Counts = make(**stored)
    return made
