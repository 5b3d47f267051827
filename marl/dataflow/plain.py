"""Trees that a file of arrays gives back without a template: dicts with string keys, lists, tuples, None, arrays and
plain numbers. Text and JSON travel as arrays of bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import CheckpointError

Tree: TypeAlias = Any
Bytes: TypeAlias = NDArray[np.uint8]


def plain(tree: Tree, what: str) -> Tree:
    """The same tree with every mapping a dict.

    Raises: CheckpointError if it has other containers than dict, list and tuple; `what` says whose tree it is.
    """
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {key: plain(child, what) for key, child in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(plain(child, what) for child in tree)
    if tree is None or isinstance(tree, (bool, int, float)) or hasattr(tree, "dtype"):
        return tree
    raise CheckpointError(f"{what} holds a {type(tree).__name__}; only dicts, lists, tuples and arrays can be saved")


def pack_json(value: object) -> Bytes:
    """A JSON value, or a text, as an array of bytes. Raises: TypeError if it is none."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_json(data: Bytes) -> Any:
    """The inverse of `pack_json`."""
    return json.loads(bytes(data))
