"""Running on many lanes with the lane axis last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from marl.envs.common.lane_layout import computed_once, lanes_last


def test_lanes_last_is_the_same_function_alone_in_a_batch_and_in_a_batch_of_batches():
    shapes = []

    def batched(tree, scale):
        shapes.append((tree["a"].shape, scale.shape))
        return {"sum": tree["a"].sum(0) * scale, "flag": tree["b"] > 0}

    one = lanes_last(batched)
    a, b = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(-3, 3).reshape(2, 3)
    alone = one({"a": a[1, 2], "b": b[1, 2]}, jnp.float32(2))
    assert float(alone["sum"]) == 2 * float(a[1, 2].sum())
    many = jax.vmap(jax.vmap(lambda x, y: one({"a": x, "b": y}, jnp.float32(2))))(a, b)
    np.testing.assert_allclose(many["sum"], 2 * a.sum(-1))
    np.testing.assert_array_equal(many["flag"], b > 0)
    assert shapes[-1] == ((4, 6), (6,))  # all six lanes in one call, also what is not mapped


def test_lanes_last_takes_keyword_trees_under_jit_and_scan():
    one = lanes_last(lambda x: (x + 1, x.sum(0)))

    @jax.jit
    def run(x):
        return jax.lax.scan(lambda c, _: jax.vmap(one)(c), x, None, length=3)

    last, sums = run(jnp.zeros((5, 2)))
    np.testing.assert_allclose(last, 3)
    np.testing.assert_allclose(sums, np.broadcast_to(np.arange(3.0)[:, None] * 2, (3, 5)))


def test_computed_once_changes_nothing():
    tree = {"i": jnp.arange(6).reshape(2, 3), "b": jnp.asarray([True, False]), "f": jnp.asarray([jnp.inf, 2.0])}
    for function in (computed_once, jax.jit(computed_once)):
        jax.tree.map(np.testing.assert_array_equal, function(tree), tree)
