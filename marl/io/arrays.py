"""One file of named arrays: the format of checkpoints and of published policies. Arrays and JSON only, no code is
ever loaded.

Layout: 8 bytes of magic, the length of the index (u64, little endian), the index (JSON, UTF-8), zeros up to a
multiple of 64, the arrays one after the other (little endian, C order, each padded to 64 bytes), and the SHA-256 of
all that precedes. The index holds the format version, the caller's header, one entry a leaf (path as
`jax.tree_util.keystr` gives it, dtype name, shape, offset, bytes) and, where the tree is made of dicts, lists,
tuples and None, its structure, so that it can be read back without a template and without JAX. A typed PRNG key is
stored as its key data and the name of its implementation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import CheckpointError
from marl.io.faults import fault_point
from marl.io.files import dumps, fsync_folder, loads, reason

Tree: TypeAlias = Any  # a pytree of arrays
Array: TypeAlias = NDArray[Any]

FORMAT = 1
FILE_NAME = "arrays.bin"

_MAGIC = b"MARLARR\n"
_ALIGN = 64
_MAX_INDEX_BYTES = 1 << 28
_PYTHON_SCALARS = (bool, int, float)


class Leaf(NamedTuple):
    """One array of a file. kind: `array`, `key` (typed PRNG key; `note` names its implementation) or `python` (a
    plain number; `note` names its type). dtype and shape are those of the stored data; for a key, `shape` is that of
    the keys and `dtype` the name that JAX gives it."""

    path: str
    kind: str
    note: str
    dtype: str
    shape: tuple[int, ...]
    data: Array


def host_leaves(tree: Tree) -> list[Leaf]:
    """The leaves of a pytree, copied to the host in one transfer, in `jax.tree_util` order.

    Raises: CheckpointError if a leaf is not an array, a typed key or a plain number.
    """
    import jax

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    kinds = [_kind(jax.tree_util.keystr(path), leaf) for path, leaf in flat]
    raw = [
        jax.random.key_data(leaf) if kind == "key" else leaf for (_, leaf), (kind, _) in zip(flat, kinds, strict=True)
    ]
    leaves = []
    for (path, leaf), (kind, note), data in zip(flat, kinds, jax.device_get(raw), strict=True):
        array = np.asarray(data)
        if array.dtype.hasobject:
            raise CheckpointError(f"leaf {jax.tree_util.keystr(path)} cannot be stored: it is no array of numbers")
        dtype = str(leaf.dtype) if kind == "key" else array.dtype.name
        shape = tuple(leaf.shape) if kind == "key" else array.shape
        leaves.append(Leaf(jax.tree_util.keystr(path), kind, note, dtype, shape, array))
    return leaves


def _kind(path: str, leaf: object) -> tuple[str, str]:
    if isinstance(leaf, _PYTHON_SCALARS):
        return "python", type(leaf).__name__
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        raise CheckpointError(
            f"leaf {path or '(root)'} is a {type(leaf).__name__}; only arrays and numbers can be stored"
        )
    import jax
    import jax.numpy as jnp

    if isinstance(leaf, jax.Array) and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf))
    return "array", ""


def structure_of(tree: Tree) -> object | None:
    """The tree as JSON with leaves replaced by their number in `jax.tree_util` order, or None if it holds other
    containers.
    """
    counter = iter(range(1 << 62))

    def walk(node: Tree) -> object:
        if node is None:
            return {"none": True}
        if type(node) is dict and all(isinstance(key, str) for key in node):
            return {"dict": {key: walk(node[key]) for key in sorted(node)}}
        if type(node) in (list, tuple):
            return {type(node).__name__: [walk(child) for child in node]}
        if isinstance(node, _PYTHON_SCALARS) or hasattr(node, "dtype"):
            return {"leaf": next(counter)}
        raise TypeError

    try:
        return walk(tree)
    except TypeError:
        return None


def build(structure: Any, leaves: list[Tree]) -> Tree:
    """The inverse of `structure_of`."""
    ((kind, value),) = structure.items()
    if kind == "none":
        return None
    if kind == "leaf":
        return leaves[value]
    if kind == "dict":
        return {key: build(child, leaves) for key, child in value.items()}
    children = [build(child, leaves) for child in value]
    return tuple(children) if kind == "tuple" else children


def write_file(path: Path, leaves: list[Leaf], structure: object | None, header: object, fault: str) -> tuple[str, int]:
    """Write one file of arrays, flushed to disk. Returns the SHA-256 of the whole file and its size in bytes.

    Raises: OSError; TypeError if the header cannot be written as JSON. `fault` names the point passed half way.
    """
    data = [np.asarray(leaf.data, order="C") for leaf in leaves]
    entries, offset = [], 0
    for leaf, array in zip(leaves, data, strict=True):
        stored = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset, "bytes": array.nbytes}
        entries.append(
            {"path": leaf.path, "kind": leaf.kind, "note": leaf.note, "of": [leaf.dtype, leaf.shape], **stored}
        )
        offset += _padded(array.nbytes)
    index = dumps({"format": FORMAT, "structure": structure, "leaves": entries, "header": header}).encode()
    head = _MAGIC + len(index).to_bytes(8, "little") + index
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(block: bytes | memoryview) -> None:
            for part in (block, bytes(_padded(len(block)) - len(block))):
                digest.update(part)
                file.write(part)

        put(head)
        for number, array in enumerate(data):
            if number == len(data) // 2:
                fault_point(fault)
            put(array.reshape(-1).view(np.uint8).data)
        file.write(digest.digest())
        digest.update(digest.digest())
        file.flush()
        os.fsync(file.fileno())
        return digest.hexdigest(), file.tell()


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def read_index(path: Path) -> dict[str, Any]:
    """The index of a file of arrays, without reading the arrays and without checking the hash.

    Raises: CheckpointError if the file is missing, is not of this format, or is of a newer version of it.
    """
    try:
        with open(path, "rb") as file:
            return _parse_index(path, file.read(16), file.read)[0]
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error


def _parse_index(path: Path, start: bytes, read: Any) -> tuple[dict[str, Any], int]:
    """The index and the offset of the first array."""
    size = int.from_bytes(start[8:16], "little")
    if start[:8] != _MAGIC or len(start) < 16 or size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{path} is not a file of arrays")
    text = read(size)
    try:
        index = loads(text)
        version = index["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its index cannot be read") from error
    check_version(path, version)
    return index, _padded(16 + size)


def check_version(path: Path, version: object) -> None:
    """Raises: CheckpointError if `version` is not the one this program writes."""
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format version {version}, but this program reads version {FORMAT}: "
            "use the version of marl that wrote it"
        )


def read_file(path: Path, *, verify: bool = True) -> tuple[list[Leaf], object | None, Any]:
    """The leaves, the structure (None if it needs a template) and the header of a file of arrays. No JAX needed.

    The arrays are views of one writable buffer. Raises: CheckpointError if the file is missing, damaged or of
    another version.
    """
    try:
        raw = bytearray(path.stat().st_size)
        with open(path, "rb") as file:
            if file.readinto(raw) != len(raw):
                raise CheckpointError(f"{path} is truncated")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    view = memoryview(raw)
    if verify and view[:8] == _MAGIC and hashlib.sha256(view[:-32]).digest() != view[-32:]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match")
    index, base = _parse_index(path, bytes(view[:16]), lambda size: bytes(view[16 : 16 + size]))
    try:
        leaves = [_leaf(entry, raw, base) for entry in index["leaves"]]
        return leaves, index["structure"], index["header"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _leaf(entry: dict[str, Any], raw: bytearray, base: int) -> Leaf:
    shape = tuple(entry["shape"])
    dtype = dtype_of(entry["dtype"])
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(raw, dtype, count, base + entry["offset"]) if count else np.zeros(0, dtype)
    of_dtype, of_shape = entry["of"]
    return Leaf(entry["path"], entry["kind"], entry["note"], of_dtype, tuple(of_shape), array.reshape(shape))


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of that name; bfloat16 and the 8-bit floats come from ml_dtypes.

    Raises: ValueError for an unknown name.
    """
    try:
        found = np.dtype(name)
    except TypeError:
        import ml_dtypes

        if not hasattr(ml_dtypes, name):
            raise ValueError(f"unknown dtype {name}") from None
        found = np.dtype(getattr(ml_dtypes, name))
    if found.kind == "O":
        raise ValueError("dtype object is not allowed")
    return found


def save_arrays(path: Path, tree: Tree, header: dict[str, Any]) -> Path:
    """Write a pytree and a JSON header to one file, atomically; `path` without suffix means a folder holding
    `arrays.bin`.

    A reader at any time sees the old file or the new one. Returns the path of the file.

    Raises: CheckpointError if it cannot be written; what was there stays.
    """
    file = path if path.suffix == ".bin" else path / FILE_NAME
    leaves = host_leaves(tree)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(temporary, leaves, structure_of(tree), header, "policy.arrays")
        os.replace(temporary, file)
        fsync_folder(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(f"cannot write {file}: {reason(error)}") from error
    return file


def load_arrays(path: Path) -> tuple[Tree, dict[str, Any]]:
    """What `save_arrays` wrote, as nested dicts, lists and tuples of NumPy arrays, and its header. Needs no JAX.

    A typed PRNG key comes back as its key data (u32).  Raises: CheckpointError if it is missing, damaged, of another
    version, or was saved from a tree of other containers (then use `marl.io.checkpoint.fill`).
    """
    file = path / FILE_NAME if path.is_dir() else path
    leaves, structure, header = read_file(file)
    if structure is None:
        raise CheckpointError(
            f"{file} was saved from a tree of other containers than dict, list and tuple: give a template"
        )
    values = [leaf.data.item() if leaf.kind == "python" else leaf.data for leaf in leaves]
    return build(structure, values), header


def json_digest(obj: object) -> str:
    """SHA-256 of an object's canonical JSON: for a manifest that protects itself."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
