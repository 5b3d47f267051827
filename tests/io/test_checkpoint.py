"""Checkpoints: the whole state comes back bit for bit, into the template or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from marl.core.errors import CheckpointError
from marl.io import checkpoint
from marl.io.metrics import Event


@struct.dataclass
class State:
    params: Any
    key: Any
    updates: Any


@pytest.fixture
def state() -> State:
    return State(
        params={"dense": {"kernel": jnp.linspace(0, 1, 6).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}},
        key={"one": jax.random.key(1), "many": jax.random.split(jax.random.key(2, impl="rbg"), 3)},
        updates=jnp.int32(4),
    )


def none_expected(event: Event) -> None:
    raise AssertionError(f"unexpected event {event}")


def test_the_state_comes_back_bit_for_bit(tmp_path: Path, state: State) -> None:
    path = checkpoint.save(tmp_path, 12, state, {"env_steps": 12, "offset": 99})
    loaded, header = checkpoint.load(path, state)
    assert path.name == "ckpt-000000000012"
    assert header == checkpoint.read_header(path) == {"env_steps": 12, "offset": 99}
    assert jax.tree_util.tree_structure(loaded) == jax.tree_util.tree_structure(state)
    for found, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert found.dtype == wanted.dtype
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(found) == jax.random.key_impl(wanted)
            found, wanted = jax.random.key_data(found), jax.random.key_data(wanted)
        assert not found.weak_type
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()


def test_a_template_of_shapes_is_enough(tmp_path: Path, state: State) -> None:
    path = checkpoint.save(tmp_path, 1, state, {})
    loaded, _ = checkpoint.load(path, jax.eval_shape(lambda: state))
    np.testing.assert_array_equal(
        jax.random.uniform(loaded.key["one"], (4,)), jax.random.uniform(state.key["one"], (4,))
    )


def test_numpy_and_plain_numbers_stay_what_they_are(tmp_path: Path) -> None:
    tree = {"a": np.arange(3, dtype=np.int64), "n": 7, "x": 0.5, "b": False}
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, tree, {}), tree)
    assert isinstance(loaded["a"], np.ndarray)
    assert loaded["a"].dtype == np.int64
    assert [(type(loaded[k]), loaded[k]) for k in "nxb"] == [(int, 7), (float, 0.5), (bool, False)]


def test_a_loaded_array_may_be_donated(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"a": jnp.zeros((64, 64))}, {})
    tree, _ = checkpoint.load(path, {"a": jnp.zeros((64, 64))})
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    assert float(step(step(tree))["a"].sum()) == 2 * 64 * 64


def test_a_loaded_state_does_not_recompile(tmp_path: Path, state: State) -> None:
    step = jax.jit(lambda s: s.replace(updates=s.updates + 1))
    step(step(state))
    compiled = step._cache_size()
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, step(state), {}), jax.eval_shape(lambda: state))
    step(loaded)
    assert step._cache_size() == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"new": jnp.ones(1)}, r"has no leaf \['new'\]"),
        (lambda t: {"a": t["a"]}, r"has a leaf \['b'\] that this run does not have"),
        (lambda t: t | {"a": jnp.ones((2, 4))}, r"leaf \['a'\] is float32\[2, 3\], but this run needs float32\[2, 4\]"),
        (lambda t: t | {"a": jnp.ones((2, 3), jnp.bfloat16)}, r"leaf \['a'\] is float32.*needs bfloat16"),
        (lambda t: t | {"k": jax.random.key(0, impl="rbg")}, r"leaf \['k'\] is key<fry>.*needs key<rbg>"),
        (lambda t: t | {"k": jnp.zeros(2, jnp.uint32)}, r"leaf \['k'\] is key<fry>.*needs uint32"),
        (lambda t: t | {"b": 1}, r"leaf \['b'\] is int32\[\], but this run needs int\[\]"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_by_leaf(tmp_path: Path, change: Any, message: str) -> None:
    tree = {"a": jnp.ones((2, 3)), "b": jnp.int32(1), "k": jax.random.key(0)}
    path = checkpoint.save(tmp_path, 1, tree, {})
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path, change(tree))


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"params": {"dense_0": jnp.ones(1)}}, {})
    with pytest.raises(CheckpointError, match=r"did you mean '\['params'\]\['dense_0'\]'"):
        checkpoint.load(path, {"params": {"Dense_0": jnp.ones(1)}})


def test_checkpoints_are_listed_by_step_and_the_pointer_names_the_last(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint.save(tmp_path, step, {"a": jnp.ones(1)}, {})
    (tmp_path / "ckpt-notes").mkdir()
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)] == [5, 20, 100]
    assert (tmp_path / "latest").read_text() == "ckpt-000000000020\n"
    newest = checkpoint.newest_valid(tmp_path, none_expected)
    assert newest is not None
    assert newest.name == "ckpt-000000000100"
    assert (tmp_path / "latest").read_text() == "ckpt-000000000100\n"
    assert checkpoint.list_checkpoints(tmp_path / "absent") == []
    assert checkpoint.newest_valid(tmp_path / "absent", none_expected) is None


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1, 2):
        path = checkpoint.save(tmp_path, 3, {"a": jnp.int32(value)}, {"value": value})
    loaded, header = checkpoint.load(path, {"a": jnp.int32(0)})
    assert (int(loaded["a"]), header) == (2, {"value": 2})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ckpt-000000000003", "latest"]


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header is not JSON"):
        checkpoint.save(tmp_path, 1, {"a": jnp.ones(1)}, {"bad": object()})
    assert not list(tmp_path.iterdir())


def steps(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(folder)]


def test_prune_keeps_the_newest_the_tagged_and_the_protected(tmp_path: Path) -> None:
    saved = {
        step: checkpoint.save(tmp_path, step, {"a": jnp.ones(1)}, {}, tag="paper" if step == 2 else None)
        for step in range(1, 7)
    }
    deleted = checkpoint.prune(tmp_path, 2, [saved[3]])
    assert [checkpoint.step_of(path) for path in deleted] == [1, 4]
    assert steps(tmp_path) == [2, 3, 5, 6]
    assert checkpoint.prune(tmp_path, 2, [saved[3]]) == []


def test_prune_never_deletes_the_newest_valid_one(tmp_path: Path) -> None:
    saved = {step: checkpoint.save(tmp_path, step, {"a": jnp.ones(1)}, {}) for step in range(1, 6)}
    for step in (4, 5):
        raw = bytearray((saved[step] / "arrays.bin").read_bytes())
        raw[-40] ^= 1
        (saved[step] / "arrays.bin").write_bytes(raw)
    checkpoint.prune(tmp_path, 1, [])
    assert steps(tmp_path) == [3, 5]
    events: list[Event] = []
    newest = checkpoint.newest_valid(tmp_path, events.append)
    assert newest == saved[3]
    assert [event.name for event in events] == ["checkpoint_invalid"]


def test_prune_leaves_what_it_cannot_read(tmp_path: Path) -> None:
    saved = {step: checkpoint.save(tmp_path, step, {"a": jnp.ones(1)}, {}) for step in (1, 2, 3)}
    (saved[1] / "manifest.json").unlink()
    assert checkpoint.prune(tmp_path, 1, []) == [saved[2]]
    assert steps(tmp_path) == [1, 3]
