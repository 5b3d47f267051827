"""Arenas: what was packed comes back, and what was changed on the way does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core.errors import CheckpointError
from marl.dataflow.arena import ArenaError, pack, schema_of, unpack

DTYPES = st.sampled_from(["float32", "uint8", "int64", "bool", "float16", "uint32"])
ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    DTYPES,
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 99),
)
TREES = st.recursive(
    ARRAYS | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc/", min_size=1, max_size=4), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if one is None:
        return other is None
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_tree_of_arrays_comes_back_from_a_block_that_cannot_be_written_to(tree: Any) -> None:
    arena = pack(tree)
    arena.setflags(write=False)  # as a store hands it out
    assert same(tree, unpack(arena, schema=schema_of(arena)))


@settings(max_examples=200, deadline=None)
@given(TREES, st.data())
def test_a_block_with_one_byte_changed_is_refused(tree: Any, data: st.DataObject) -> None:
    arena = pack(tree)
    place = data.draw(st.integers(0, arena.size - 1))
    arena[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ArenaError):
        unpack(arena)


def test_arrays_of_a_block_are_views_at_multiples_of_64_bytes() -> None:
    arena = pack({"a": np.zeros(333, np.uint8), "b": np.ones(3, np.float64)})
    found = unpack(arena)
    assert all(np.shares_memory(array, arena) for array in found.values())
    start = arena.__array_interface__["data"][0]
    assert (found["b"].__array_interface__["data"][0] - start) % 64 == 0


def test_another_layout_and_other_containers_are_refused() -> None:
    wanted = schema_of(pack({"a": np.zeros(3, np.float32)}))
    with pytest.raises(ArenaError, match="has layout"):
        unpack(pack({"a": np.zeros(3, np.float64)}), schema=wanted)
    with pytest.raises(ArenaError, match="no arena"):
        unpack(np.zeros(100, np.uint8))
    with pytest.raises(CheckpointError, match="a set of things"):
        pack({"a": {1, 2}}, "a set of things")
