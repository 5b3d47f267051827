"""Epochs and minibatches: gradient steps on networks that are stacked over groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from marl.core.errors import ShapeError
from marl.core.types import Array, Key, Metrics, Tree

from .config import PPOConfig

Loss = Callable[[Tree, Tree], tuple[Array, Metrics]]
Networks = Mapping[str, Mapping[str, Any]]  # by kind ("actor", "critic"), then by role or critic name
T = TypeVar("T")


def each_network(f: Callable[..., T], first: Networks, *others: Networks) -> dict[str, dict[str, T]]:
    """Applies `f` network by network: `{kind: {name: f(first[kind][name], ...)}}`."""
    return {k: {n: f(x, *(o[k][n] for o in others)) for n, x in by_name.items()} for k, by_name in first.items()}


def optimiser(config: PPOConfig, axis: str | None) -> optax.GradientTransformation:
    """Adam's direction for one group's network, gradient averaged over the mesh axis and then limited in norm."""
    average = optax.stateless(lambda grads, _: jax.lax.pmean(grads, axis)) if axis else optax.identity()
    return optax.chain(
        average, optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_eps)
    )


def optimise(
    config: PPOConfig,
    transform: optax.GradientTransformation,
    losses: Networks,
    params: Networks,
    opt: Networks,
    rows: Networks,
    rate: Array,
    key: Key,
) -> tuple[Networks, Networks, Metrics]:
    """`epochs` passes over `rows` (leaves `[G, T, L, ...]`), each in `minibatches` parts of the L sequences.

    Every group's gradient is limited and applied on its own, so no agent's step depends on another's gradient.
    Returns: parameters, optimiser states, and metrics averaged over groups and steps.
    Raises: ShapeError if `minibatches` does not divide L.
    """
    lengths = sorted({leaf.shape[2] for leaf in jax.tree.leaves(rows)})
    parts = config.minibatches
    for length in lengths:
        if length % parts:
            what = "sequences (lanes)" if config.recurrent else "rows (rollout x lanes)"
            raise ShapeError(f"minibatches: {parts} does not divide the {length} {what} of one update on one device")

    def gradient_step(loss: Loss, p: Tree, state: Tree, batch: Tree) -> tuple[Tree, Tree, Metrics]:
        grads, metrics = jax.grad(loss, has_aux=True)(p, batch)
        direction, state = transform.update(grads, state, p)
        p = jax.tree.map(lambda a, d: a - rate * d, p, direction)
        return p, state, metrics | {"grad_norm": optax.tree.norm(grads)}

    def body(carry: tuple[Networks, Networks], chosen: dict[int, Array]) -> tuple[tuple[Networks, Networks], Metrics]:
        def part(leaf: Array) -> Array:
            return leaf if parts == 1 else jnp.take(leaf, chosen[leaf.shape[2]], axis=2)

        def one(loss: Loss, p: Tree, state: Tree, batch: Tree) -> tuple[Tree, Tree, Metrics]:
            stepped = jax.vmap(lambda *group: gradient_step(loss, *group))(p, state, jax.tree.map(part, batch))
            return stepped

        done = each_network(one, losses, *carry, rows)
        new = each_network(lambda d: d[0], done), each_network(lambda d: d[1], done)
        return new, _mean_metrics(each_network(lambda d: d[2], done))

    order = {}
    if parts > 1:
        for length in lengths:
            keys = jax.random.split(jax.random.fold_in(key, length), config.epochs)
            shuffled = jax.vmap(lambda k, n=length: jax.random.permutation(k, n))(keys)
            order[length] = shuffled.reshape(config.epochs * parts, length // parts)
    (params, opt), metrics = jax.lax.scan(body, (params, opt), order, length=config.epochs * parts)
    return params, opt, {name: jnp.mean(value) for name, value in metrics.items()}


def _mean_metrics(by_network: Networks) -> Metrics:
    """Means over the networks that report a name; gradient norms are kept apart by kind."""
    found: dict[str, list[Array]] = {}
    for kind, by_name in by_network.items():
        for metrics in by_name.values():
            for name, value in metrics.items():
                tag = name if name != "grad_norm" else {"actor": "optim/grad_norm"}.get(kind, f"optim/{kind}_grad_norm")
                found.setdefault(tag, []).append(jnp.mean(value))
    return {name: sum(values[1:], values[0]) / len(values) for name, values in found.items()}
