"""Rows of worlds in Python: any shapes and dtypes come back from the memory they were written to."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core.host_rows import ALIGNMENT, Field, RowBlock, RowSpec

FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["bool", "uint8", "int32", "float32", "float64"]),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=8,
)


def spec(fields: list[tuple[str, tuple[int, ...]]]) -> RowSpec:
    step = [Field(("obs", f"role{i}"), dtype, shape) for i, (dtype, shape) in enumerate(fields)]
    ends = [Field((name,), "bool", ()) for name in ("first", "last")]
    return RowSpec((*step, *ends), (Field(("role0",), "int32", (2,)),))


@settings(max_examples=60, deadline=None)
@given(FIELDS, st.integers(1, 5), st.integers(0, 2**31))
def test_what_is_written_is_read_whatever_the_shapes(fields: Any, lanes: int, seed: int) -> None:
    made = spec(fields)
    memory = bytearray(RowBlock.size(made, lanes))
    writer, reader = RowBlock(made, lanes, memoryview(memory)), RowBlock(made, lanes, memoryview(memory))
    random = np.random.default_rng(seed)
    written = {path: (random.random(array.shape) * 100).astype(array.dtype) for path, array in writer.arrays.items()}
    for path, array in writer.arrays.items():
        array[...] = written[path]
    for path, array in reader.arrays.items():
        np.testing.assert_array_equal(array, written[path])


@settings(max_examples=30, deadline=None)
@given(FIELDS, st.integers(1, 5))
def test_fields_do_not_overlap_and_are_aligned(fields: Any, lanes: int) -> None:
    made = spec(fields)
    block = RowBlock(made, lanes)
    spans = sorted(
        (array.__array_interface__["data"][0], array.nbytes) for array in block.arrays.values() if array.nbytes
    )
    start = spans[0][0]
    for (at, size), (after, _) in itertools.pairwise(spans):
        assert at + size <= after
        assert (after - start) % ALIGNMENT == 0
