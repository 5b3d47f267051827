"""Arenas: a tree of arrays in one contiguous block of bytes, so that a store or a socket moves it as one array and the
reader gets views of it. Nothing in it is code.

Layout: magic, length of the index (u64), schema (u64: hash of the index's layout), CRC-32 of all that follows the head
(u64), the index (JSON), then the arrays, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import MarlError
from marl.dataflow.plain import Tree, plain
from marl.io.arrays import build, dtype_of, structure_of

_MAGIC = 0x314E_4552_414C_5241  # little endian: ARLAREN1
_HEAD = 4 * 8
_ALIGN = 64


class ArenaError(MarlError):
    """A block of bytes that is no arena, is damaged, or has another layout than is expected."""


def pack(tree: Tree, what: str = "an arena") -> NDArray[np.uint8]:
    """A tree of dicts, lists, tuples, None, arrays and plain numbers (which come back as arrays of no dimension).

    Raises: CheckpointError if it holds other containers; `what` says whose tree it is.
    """
    tree = plain(tree, what)
    leaves: list[NDArray[Any]] = []
    _collect(tree, leaves)
    entries: list[tuple[str, list[int], int]] = []
    at = 0
    for leaf in leaves:
        entries.append((leaf.dtype.name, list(leaf.shape), at))
        at += -(-leaf.nbytes // _ALIGN) * _ALIGN
    index = json.dumps([structure_of(tree), entries]).encode()
    base = -(-(_HEAD + len(index)) // _ALIGN) * _ALIGN
    arena = np.zeros(base + at, np.uint8)
    arena[_HEAD : _HEAD + len(index)] = np.frombuffer(index, np.uint8)
    for leaf, (_, _, offset) in zip(leaves, entries, strict=True):
        if leaf.nbytes:
            place = arena[base + offset : base + offset + leaf.nbytes]
            place.view(leaf.dtype).reshape(leaf.shape)[...] = leaf
    head = arena[:_HEAD].view(np.uint64)
    head[:] = _MAGIC, len(index), _schema(index), zlib.crc32(arena[_HEAD:].data)
    return arena


def _collect(node: Tree, leaves: list[NDArray[Any]]) -> None:
    """The leaves in the order of `structure_of`."""
    if isinstance(node, dict):
        for key in sorted(node):
            _collect(node[key], leaves)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _collect(child, leaves)
    elif node is not None:
        leaves.append(np.asarray(node))


def unpack(arena: NDArray[np.uint8], *, verify: bool = True, schema: int | None = None) -> Tree:
    """The tree, its arrays views of the block (read-only where it is).

    verify: look at the CRC.  schema: the only layout that is accepted.
    Raises: ArenaError if the bytes are no arena, were changed on the way, or have another layout.
    """
    size = int(arena.nbytes)
    head = arena[:_HEAD].view(np.uint64) if size >= _HEAD else None
    if head is None or int(head[0]) != _MAGIC or _HEAD + int(head[1]) > size:
        raise ArenaError(f"{size} bytes that are no arena")
    if verify and zlib.crc32(arena[_HEAD:].data) != int(head[3]):
        raise ArenaError(f"an arena of {size} bytes is damaged: its CRC does not match")
    if schema is not None and int(head[2]) != schema:
        raise ArenaError(f"an arena has layout {int(head[2]):016x}, expected {schema:016x}")
    index = bytes(arena[_HEAD : _HEAD + int(head[1])])
    if _schema(index) != int(head[2]):
        raise ArenaError(f"an arena of {size} bytes is damaged: its index is not the one it was made with")
    structure, entries = json.loads(index)
    base = -(-(_HEAD + len(index)) // _ALIGN) * _ALIGN
    leaves = []
    for name, shape, offset in entries:
        dtype = dtype_of(name)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        leaves.append(arena[base + offset : base + offset + count].view(dtype).reshape(shape))
    return build(structure, leaves)


def schema_of(arena: NDArray[np.uint8]) -> int:
    """The layout of an arena, for `unpack`."""
    return int(arena[:_HEAD].view(np.uint64)[2])


def _schema(index: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(index, digest_size=8).digest(), "little")
