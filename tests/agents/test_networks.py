"""Network parts: inputs of every space, the GRU through time, value rescaling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.networks.groups import from_groups, to_groups
from marl.agents.networks.heads import ActionHead
from marl.agents.networks.observations import flat_size, flatten
from marl.agents.networks.recurrent import GRU
from marl.agents.ppo.learning import _pack, _unpack
from marl.agents.ppo.values import denormalise, normalise, rescale_head
from marl.core.errors import UserError
from marl.core.prng import stream
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete
from marl.core.stats import RunningMoments


def test_every_space_flattens_to_its_size() -> None:
    space = {"b": (Box((2, 3)), Discrete(4)), "a": MultiDiscrete((2, 3))}
    x = {
        "a": jnp.asarray([[1, 2]], jnp.int32),
        "b": (jnp.arange(6, dtype=jnp.float32).reshape(1, 2, 3), jnp.asarray([3], jnp.int32)),
    }
    flat = flatten(space, x)
    assert flat.shape == (1, flat_size(space))
    np.testing.assert_array_equal(flat[0], [0, 1, 0, 0, 1, 0, 1, 2, 3, 4, 5, 0, 0, 0, 1])
    np.testing.assert_allclose(flatten(Box((2,), 0, 255, "uint8"), jnp.asarray([0, 255], jnp.uint8)), [0, 1])
    np.testing.assert_array_equal(flatten(Discrete(2), jnp.int32(-1)), [0, 0])
    nested = Dict.of({"b": Dict.of({"d": Discrete(2), "c": Box((1,))}), "a": Discrete(3)})
    element = {"b": {"c": jnp.asarray([[7.0]]), "d": jnp.asarray([1])}, "a": jnp.asarray([0])}
    assert flat_size(nested) == 6
    np.testing.assert_array_equal(flatten(nested, element), [[1, 0, 0, 7, 0, 1]])
    with pytest.raises(UserError, match="type str"):
        flat_size("pixels")


def test_remembered_actions_are_what_the_world_saw() -> None:
    for space, raw, expected in (
        (Discrete(3), jnp.asarray([2]), [[0, 0, 1]]),
        (MultiDiscrete((2, 2)), jnp.asarray([[0, 1]]), [[1, 0, 0, 1]]),
        (Box((2,), -3.0, 3.0), jnp.asarray([[0.5, 9.0]]), [[0.5, 1.0]]),
        (Box((2,)), jnp.asarray([[0.5, 9.0]]), [[0.5, 9.0]]),
    ):
        head = ActionHead(space)
        np.testing.assert_allclose(head.features(raw), expected)
        np.testing.assert_array_equal(head.features(head.none(1)), np.zeros((1, head.outputs)))
    np.testing.assert_allclose(ActionHead(Box((2,), -2.0, 6.0)).action(jnp.asarray([[0.5, 9.0]])), [[4.0, 6.0]])
    np.testing.assert_allclose(ActionHead(Box((1,), -1.0, 1.0), squash=True).action(jnp.ones((1, 1))), np.tanh([[1.0]]))


def test_gru_unrolled_equals_its_steps_and_a_reset_forgets() -> None:
    gru = GRU(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)), jnp.float32)
    hidden = jnp.full((2, 4), 0.5, jnp.float32)
    params = gru.init(stream(0, "init"), hidden, x[0])
    first = jnp.zeros((5, 2), bool).at[3, 1].set(True)
    states = gru.apply(params, hidden, x, first, method="unroll")
    step = jax.jit(gru.apply)
    h = hidden
    for t in range(5):
        h = step(params, jnp.where(first[t][:, None], 0.0, h), x[t])
        np.testing.assert_allclose(states[t], h, rtol=1e-5, atol=1e-6)


def test_gru_gradients_written_out_equal_those_of_its_steps() -> None:
    gru = GRU(4)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)
    hidden, target = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4), (5, 2, 4)))
    first = jnp.zeros((5, 2), bool).at[3, 1].set(True).at[0, 0].set(True)
    params = gru.init(stream(0, "init"), hidden, x[0])
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)

    def unrolled(params: Any, hidden: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(target * gru.apply(params, hidden, x, first, method="unroll"))

    def stepped(params: Any, hidden: jax.Array, x: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for t in range(5):
            hidden = gru.apply(params, jnp.where(first[t][:, None], 0.0, hidden), x[t])
            total += jnp.sum(target[t] * hidden)
        return total

    found, wanted = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(params, hidden, x) for f in (unrolled, stepped))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_flow_back_through_time_and_stop_at_a_reset() -> None:
    gru = GRU(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 3)), jnp.float32)
    hidden = jnp.zeros((1, 4), jnp.float32)
    params = gru.init(stream(0, "init"), hidden, x[0])

    def last_state(inputs: jax.Array, first: jax.Array) -> jax.Array:
        return gru.apply(params, hidden, inputs, first, method="unroll")[-1].sum()

    gradient = jax.jit(jax.grad(last_state))
    plain = gradient(x, jnp.zeros((5, 1), bool))
    assert (jnp.abs(plain).max(axis=(1, 2)) > 1e-6).all()
    reset = gradient(x, jnp.zeros((5, 1), bool).at[2].set(True))
    assert not reset[:2].any()
    assert (jnp.abs(reset[2:]).max(axis=(1, 2)) > 1e-6).all()


def test_groups_keep_every_agents_rows() -> None:
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for groups, shape in ((4, (4, 2, 3, 5)), (1, (1, 2, 12, 5))):
        grouped = to_groups(x, groups)
        assert grouped.shape == shape
        np.testing.assert_array_equal(from_groups(grouped, 4), x)


def test_rescaling_the_head_keeps_what_the_critic_predicts() -> None:
    old = RunningMoments(jnp.full((2, 1), 10.0), jnp.asarray([[1.0], [2.0]]), jnp.asarray([[40.0], [90.0]]))
    new = RunningMoments(jnp.full((2, 1), 20.0), jnp.asarray([[-3.0], [5.0]]), jnp.asarray([[20.0], [500.0]]))
    rng = np.random.default_rng(0)
    head = {"kernel": jnp.asarray(rng.normal(size=(2, 4, 1))), "bias": jnp.asarray(rng.normal(size=(2, 1)))}
    features = jnp.asarray(rng.normal(size=(2, 3, 5, 4)))

    def value(params: dict[str, dict[str, jax.Array]], moments: RunningMoments) -> jax.Array:
        weights = params["head"]
        output = jnp.einsum("gtlh,ghk->gtlk", features, weights["kernel"]) + weights["bias"][:, None, None]
        return denormalise(moments, output)

    before = value({"head": head}, old)
    np.testing.assert_allclose(value(rescale_head({"head": head}, old, new), new), before, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(denormalise(new, normalise(new, before)), before, rtol=1e-5)


def test_rows_packed_for_one_gather_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    rows = {
        "x": jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32),
        "action": jnp.asarray(rng.integers(-1, 9, (2, 3, 5)), jnp.int32),
        "valid": jnp.asarray(rng.random((2, 3, 5)) < 0.5),
        "hidden": jnp.asarray(rng.normal(size=(2, 1, 5, 6)), jnp.float32),
    }
    chosen = jnp.asarray([4, 0, 2])
    packed = [jnp.take(matrix, chosen, axis=2) for matrix in _pack(rows, 2)]
    back = _unpack(packed, rows, 2)
    for name, leaf in rows.items():
        assert back[name].dtype == leaf.dtype
        np.testing.assert_array_equal(back[name], jnp.take(leaf, chosen, axis=2))
