"""The file of named arrays: everything comes back bit for bit, damage is noticed, no JAX is needed to read it."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from marl.core.errors import CheckpointError
from marl.io.arrays import FILE_NAME, FORMAT, load_arrays, read_file, read_index, save_arrays


@pytest.fixture
def params() -> dict[str, object]:
    return {
        "vehicle": {
            "dense": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "bias": jnp.zeros(3, jnp.bfloat16)},
            "stack": [jnp.int32(7), (jnp.ones((0, 4)), None)],
        },
        "count": 3,
        "rate": 0.1,
        "flag": True,
    }


def test_a_nested_tree_comes_back_without_a_template(tmp_path: Path, params: dict[str, object]) -> None:
    written = save_arrays(tmp_path / "policy", params, {"roles": ["vehicle"], "best": float("-inf")})
    loaded, header = load_arrays(tmp_path / "policy")
    assert written == tmp_path / "policy" / FILE_NAME
    assert header == {"roles": ["vehicle"], "best": float("-inf")}
    assert jax.tree_util.tree_structure(loaded) == jax.tree_util.tree_structure(params)
    assert (loaded["count"], loaded["rate"], loaded["flag"]) == (3, 0.1, True)
    assert loaded["flag"] is True
    for found, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert np.asarray(found).dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    assert loaded["vehicle"]["dense"]["bias"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint32", "int64", "float16", "float64", "bfloat16", "float8_e4m3fn", "complex64"]
)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(np.dtype(dtype))
    loaded, _ = load_arrays(save_arrays(tmp_path / "one.bin", {"a": array}, {}))
    assert loaded["a"].dtype == array.dtype
    assert loaded["a"].tobytes() == array.tobytes()


def test_transposed_and_strided_arrays_are_stored_by_value(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    loaded, _ = load_arrays(save_arrays(tmp_path / "one.bin", {"t": array.T, "s": array[::2, ::3]}, {}))
    np.testing.assert_array_equal(loaded["t"], array.T)
    np.testing.assert_array_equal(loaded["s"], array[::2, ::3])


def test_reading_needs_no_jax(tmp_path: Path, params: dict[str, object]) -> None:
    save_arrays(tmp_path / "policy", params, {"a": 1})
    program = (
        "import sys; from pathlib import Path; from marl.io.checkpoint import load_arrays;"
        f"tree, header = load_arrays(Path({str(tmp_path / 'policy')!r}));"
        "assert header == {'a': 1} and tree['vehicle']['dense']['kernel'].sum() == 15;"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_other_containers_need_a_template(tmp_path: Path) -> None:
    written = save_arrays(tmp_path / "one.bin", OrderedDict(b=np.ones(1), a=np.zeros(1)), {})
    with pytest.raises(CheckpointError, match="give a template"):
        load_arrays(written)


@pytest.mark.parametrize("leaf", ["text", object(), np.array([None])])
def test_a_leaf_that_is_no_array_is_refused_by_name(tmp_path: Path, leaf: object) -> None:
    with pytest.raises(CheckpointError, match=r"leaf \['a'\]"):
        save_arrays(tmp_path / "policy", {"a": leaf}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("position", [3, 9, 40, -200, -10])
def test_a_flipped_bit_is_noticed(tmp_path: Path, params: dict[str, object], position: int) -> None:
    file = save_arrays(tmp_path / "one.bin", params, {})
    raw = bytearray(file.read_bytes())
    raw[position] ^= 4
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"damaged|not a file of arrays"):
        read_file(file)


@pytest.mark.parametrize("size", [0, 5, 16, 100, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, params: dict[str, object], size: int) -> None:
    file = save_arrays(tmp_path / "one.bin", params, {})
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"damaged|not a file of arrays"):
        read_file(file)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_arrays(tmp_path / "policy")


def test_another_format_version_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marl.io.arrays.FORMAT", FORMAT + 1)
    file = save_arrays(tmp_path / "one.bin", {"a": np.ones(1)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"format version {FORMAT + 1}.*reads version {FORMAT}"):
        read_index(file)


def test_saving_again_replaces_the_file_whole(tmp_path: Path) -> None:
    for value in (1, 2):
        save_arrays(tmp_path / "policy", {"a": np.full(3, value)}, {"value": value})
    loaded, header = load_arrays(tmp_path / "policy")
    assert (loaded["a"].tolist(), header) == ([2, 2, 2], {"value": 2})
    assert [path.name for path in (tmp_path / "policy").iterdir()] == [FILE_NAME]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_arrays(tmp_path / "policy", {"a": np.zeros(3)}, {})
    monkeypatch.setenv("MARL_FAULT", "policy.arrays:1+:enospc")
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_arrays(tmp_path / "policy", {"a": np.ones(3)}, {})
    assert load_arrays(tmp_path / "policy")[0]["a"].sum() == 0
    assert [path.name for path in (tmp_path / "policy").iterdir()] == [FILE_NAME]
