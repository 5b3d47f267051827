"""Chunks have ids that never change, lie side by side in the order given, and pass through a file unharmed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from marl.core.errors import CheckpointError
from marl.dataflow.chunks import Chunk, chunk_id, concatenate, ids
from marl.dataflow.plain import pack_json, unpack_json

from .made import ROWS, chunk, through_a_file, trajectory


def test_an_id_is_the_same_in_every_process() -> None:
    assert (
        chunk_id("run", "cars", 3, 0, 17) == 0x9F8E5B8F90074EBD
    )  # printf 'run\\0cars\\0003\\0000\\00017' | b2sum -l 64


def test_ids_differ_wherever_the_origin_differs() -> None:
    made = {
        chunk_id(run, policy, slot, incarnation, sequence)
        for run in ("r", "r1")
        for policy in ("p", "1p")
        for slot in (0, 1, 11)
        for incarnation in (0, 1)
        for sequence in range(50)
    }
    assert len(made) == 2 * 2 * 3 * 2 * 50
    assert all(0 <= number < 2**64 for number in made)


def test_lanes_lie_side_by_side_in_the_given_order() -> None:
    joined = concatenate([chunk(3), chunk(1), chunk(2)])
    lanes = np.array([30, 31, 10, 11, 20, 21])
    np.testing.assert_array_equal(joined.version, lanes)
    np.testing.assert_array_equal(joined.carry[1]["hidden"][:, 0], lanes)
    np.testing.assert_array_equal(joined.action["a"], np.broadcast_to(lanes[None, :, None], (ROWS, 6, 2)))
    np.testing.assert_array_equal(joined.step.obs["a"]["x"][:, :, 1, 3], np.broadcast_to(lanes, (ROWS + 1, 6)))
    assert joined.step.first.shape == (ROWS + 1, 6)
    assert joined.step.action_mask is None


def test_a_single_chunk_is_not_copied() -> None:
    only = chunk(1)
    assert concatenate([only]) is only.trajectory


def test_chunks_of_different_structure_are_not_joined() -> None:
    other = dataclasses.replace(trajectory(2), extras={})
    with pytest.raises(ValueError, match="structure"):
        concatenate([chunk(1), chunk(2, trajectory=other)])


def test_ids_of_chunks_are_u64() -> None:
    chunks = [chunk(1), chunk(2)]
    assert ids(chunks).dtype == np.uint64
    assert ids(chunks).tolist() == [c.chunk_id for c in chunks]


def test_a_chunk_passes_through_a_file(tmp_path: Path) -> None:
    before = chunk(7, slot=3, incarnation=2, sequence=5, version=4)
    after = Chunk.restored(through_a_file(before.snapshot(), tmp_path))
    for field in dataclasses.fields(Chunk):
        if field.name != "trajectory":
            assert getattr(after, field.name) == getattr(before, field.name)
    assert jax.tree.structure(after.trajectory) == jax.tree.structure(before.trajectory)
    jax.tree.map(np.testing.assert_array_equal, after.trajectory, before.trajectory)
    assert after.lanes == 2


def test_containers_that_a_file_does_not_give_back_are_told() -> None:
    odd = dataclasses.replace(trajectory(1), carry={1: np.zeros(2)})
    with pytest.raises(CheckpointError, match="carry"):
        chunk(1, trajectory=odd).snapshot()


def test_text_and_json_are_bytes_in_a_tree() -> None:
    for value in ("Läufer", {"elo": 3.5, "tags": [1, None]}, ""):
        assert unpack_json(pack_json(value)) == value
