"""Epochs and minibatches: gradient steps on networks that are stacked over groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from marl.agents.networks.groups import map_groups
from marl.core.errors import ShapeError
from marl.core.prng import permutation
from marl.core.types import Array, Key, Metrics, Tree

from .config import PPOConfig

Loss = Callable[[Tree, Tree], tuple[Array, Metrics]]
Networks = Mapping[str, Mapping[str, Any]]  # by kind ("actor", "critic"), then by role or critic name
T = TypeVar("T")


def each_network(f: Callable[..., T], first: Networks, *others: Networks) -> Mapping[str, Mapping[str, T]]:
    """Applies `f` network by network: `{kind: {name: f(first[kind][name], ...)}}`."""
    return {k: {n: f(x, *(o[k][n] for o in others)) for n, x in by_name.items()} for k, by_name in first.items()}


def optimiser(config: PPOConfig) -> optax.GradientTransformation:
    """Adam's direction for one group's network, gradient limited in norm."""
    limit, adam = optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_eps)
    return optax.chain(optax.identity(), limit, adam)  # the first keeps Adam's place in saved states: third


def ravel(stacked: Tree) -> Array:
    """All leaves `[G, ...]` of stacked networks as one array `[G, P]`, group by group."""
    leaves = jax.tree.leaves(stacked)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def optimise(
    config: PPOConfig,
    transform: optax.GradientTransformation,
    losses: Networks,
    params: Networks,
    opt: Networks,
    rows: Networks,
    rate: Array,
    key: Key,
    mesh_axis: str | None = None,
) -> tuple[Networks, Networks, Metrics]:
    """`epochs` passes, each in `minibatches` parts of the L rows (`[G, L, ...]`) or sequences (`[G, T, L, ...]`).

    Every group's gradient is limited and applied on its own, so no agent's step depends on another's gradient. The
    optimiser works on one vector a group: many small arrays would cost more in calls than in arithmetic. Gradients are
    averaged over `mesh_axis` first.
    Returns: parameters, optimiser states, and metrics averaged over groups and steps.
    Raises: ShapeError if `minibatches` does not divide L.
    """
    parts, axis = config.minibatches, 2 if config.recurrent else 1
    lengths = sorted({leaf.shape[axis] for leaf in jax.tree.leaves(rows)})
    for length in lengths:
        if length % parts:
            what = "sequences (lanes)" if config.recurrent else "rows (rollout x lanes)"
            raise ShapeError(f"minibatches: {parts} does not divide the {length} {what} of one update on one device")

    packed = each_network(partial(_pack, axis=axis), rows)

    def steps(carry: tuple[Networks, Networks], chosen: dict[int, Array]) -> tuple[tuple[Networks, Networks], Metrics]:
        def part(matrix: Array) -> Array:
            where = (*[slice(None)] * axis, chosen[matrix.shape[axis]])
            return matrix.at[where].get(mode="promise_in_bounds", unique_indices=True)

        def one(
            loss: Loss, stacked: Tree, flat: Array, state: Tree, whole: Tree, matrices: list[Array]
        ) -> tuple[Array, Tree, Metrics]:
            batch = whole if parts == 1 else _unpack([part(matrix) for matrix in matrices], whole, axis)

            def gradient_step(vector: Array, state: Tree, batch: Tree) -> tuple[Array, Tree, Metrics]:
                grads, metrics = jax.grad(loss, has_aux=True)(_unravel(vector, stacked), batch)
                grad = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(grads)])
                if mesh_axis is not None:
                    grad = jax.lax.pmean(grad, mesh_axis)
                direction, state = transform.update(grad, state)
                return vector - rate * direction, state, metrics | {"grad_norm": optax.tree.norm(grad)}

            done: tuple[Array, Tree, Metrics] = map_groups(gradient_step, flat, state, batch)
            return done

        done = each_network(one, losses, params, *carry, rows, packed)
        new = each_network(lambda d: d[0], done), each_network(lambda d: d[1], done)
        return new, _mean_metrics(each_network(lambda d: d[2], done))

    order = {}
    if parts > 1:
        for length in lengths:
            keys = jax.random.split(key, config.epochs)
            shuffled = jax.vmap(partial(permutation, n=length))(keys)
            order[length] = shuffled.reshape(config.epochs * parts, length // parts)
    start = each_network(ravel, params), opt
    (flat, opt), metrics = jax.lax.scan(steps, start, order, length=config.epochs * parts)
    params = each_network(lambda vectors, stacked: jax.vmap(lambda v: _unravel(v, stacked))(vectors), flat, params)
    return params, opt, {name: jnp.mean(value) for name, value in metrics.items()}


def _pack(rows: Tree, axis: int) -> list[Array]:
    """The leaves of `rows` side by side, f32 `[..., L, width]`: one gather of wide rows beats many small ones.

    One matrix for the leaves of each leading shape, up to and with `axis`. Small integers and truth values stay exact.
    """
    columns: dict[tuple[int, ...], list[Array]] = {}
    for leaf in jax.tree.leaves(rows):
        lead = leaf.shape[: axis + 1]
        columns.setdefault(lead, []).append(leaf.reshape(*lead, -1).astype(jnp.float32))
    return [jnp.concatenate(parts, axis=-1) for parts in columns.values()]


def _unpack(matrices: list[Array], like: Tree, axis: int) -> Tree:
    """The inverse of `_pack` on some of the rows: the structure, types and trailing shapes are those of `like`."""
    leaves, structure = jax.tree.flatten(like)
    sources = dict(zip(dict.fromkeys(leaf.shape[: axis + 1] for leaf in leaves), matrices, strict=True))
    used = dict.fromkeys(sources, 0)
    unpacked = []
    for leaf in leaves:
        lead, shape = leaf.shape[: axis + 1], leaf.shape[axis + 1 :]
        source, start, width = sources[lead], used[lead], math.prod(shape)
        part = source[..., start : start + width].reshape(*source.shape[:-1], *shape)
        unpacked.append(part.astype(leaf.dtype))
        used[lead] = start + width
    return jax.tree.unflatten(structure, unpacked)


def _unravel(vector: Array, stacked: Tree) -> Tree:
    """One group's parameters from its vector, in the structure and shapes of `stacked` without the group axis."""
    leaves, structure = jax.tree.flatten(stacked)
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = [vector[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]
    return jax.tree.unflatten(structure, parts)


def _mean_metrics(by_network: Networks) -> Metrics:
    """Means over the networks that report a name; gradient norms are kept apart by kind."""
    found: dict[str, list[Array]] = {}
    for kind, by_name in by_network.items():
        for metrics in by_name.values():
            for name, value in metrics.items():
                tag = name if name != "grad_norm" else {"actor": "optim/grad_norm"}.get(kind, f"optim/{kind}_grad_norm")
                found.setdefault(tag, []).append(jnp.mean(value))
    return {name: sum(values[1:], values[0]) / len(values) for name, values in found.items()}
