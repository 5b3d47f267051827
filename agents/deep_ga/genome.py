"""From a seed to the weights of a network, the same bits in every process.

The noise of a seed is drawn in blocks of 65,536 numbers, each from a key of its own, and laid over all weights in the
order of their names: neither the order of layers nor the number of devices enters it. Block length and order are part
of what a seed means and never change.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.types import Array, Key, Tree

BLOCK = 65_536
INITIAL = 0  # the stream of initial weights; mutations have another, so that the two never share numbers
IMPL = "threefry2x32"  # its integers are the same on every backend
LAST_LAYER = "head"  # its name in `networks.network`
LAST_LAYER_STD = 0.1


def noise(root: Key, stream: int, seed: Array, size: int) -> Array:
    """Standard normal numbers f32 `[size]`. seed: u32."""
    own = jax.random.fold_in(jax.random.fold_in(root, stream), seed)

    def block(index: Array | int, length: int) -> Array:
        return jax.random.normal(jax.random.fold_in(own, index), (length,), jnp.float32)

    full, rest = divmod(size, BLOCK)
    parts = []
    if full:
        parts.append(jax.vmap(lambda index: block(index, BLOCK))(jnp.arange(full, dtype=jnp.uint32)).reshape(-1))
    if rest:  # a short block begins as a whole one does
        parts.append(block(full, rest))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


class Weights:
    """How a flat vector of numbers lies in a network's parameters, and how wide each is drawn at first.

    template: the parameters or their shapes; leaves `[G, ...]` of G networks side by side.
    """

    def __init__(self, template: Tree, init: Literal["fan_in", "glorot"]) -> None:
        paths, self._form = jax.tree.flatten_with_path(template)
        self.shapes = [leaf.shape for _, leaf in paths]
        self._stds = [_std([str(part.key) for part in path], leaf.shape, init) for path, leaf in paths]
        self._bases = [float(str(path[-1].key) == "scale") for path, _ in paths]  # of layer normalisation
        self.size = sum(math.prod(shape) for shape in self.shapes)
        self._ends = np.cumsum([math.prod(shape) for shape in self.shapes])

    def initial(self, root: Key, seed: Array) -> Tree:
        """The parameters of a seed (u32)."""
        parts = jnp.split(noise(root, INITIAL, seed, self.size), self._ends[:-1])
        leaves: list[Any] = [
            base + std * part.reshape(shape)
            for base, std, part, shape in zip(self._bases, self._stds, parts, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self._form, leaves)


def _std(path: list[str], shape: tuple[int, ...], init: str) -> float:
    """Deviation of a leaf's initial weights; 0 for biases and whatever is no weight matrix."""
    own = shape[1:]  # of one network
    if len(own) < 2:
        return 0.0
    inputs, outputs = math.prod(own[:-1]), own[-1]
    wide = LAST_LAYER_STD if LAST_LAYER in path else 1.0
    return wide * math.sqrt(1.0 / inputs if init == "fan_in" else 2.0 / (inputs + outputs))
