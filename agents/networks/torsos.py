"""Feed-forward torsos."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from marl.core.types import Array

from .initialisers import orthogonal

Activation = Literal["tanh", "relu", "silu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu}


def dense(features: int, gain: float, name: str | None = None) -> nn.Dense:
    """A linear layer with orthogonal weights of the given gain and zero biases."""
    return nn.Dense(features, kernel_init=orthogonal(gain), name=name)


def layer_norm() -> nn.LayerNorm:
    """Layer normalisation with the customary epsilon of 1e-5."""
    return nn.LayerNorm(epsilon=1e-5)


class MLP(nn.Module):
    """Linear layers, each with the activation; `normalise` puts LayerNorm on the input and after each of them."""

    sizes: tuple[int, ...]
    activation: Activation = "tanh"
    normalise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.normalise:
            x = layer_norm()(x)
        for size in self.sizes:
            x = ACTIVATIONS[self.activation](dense(size, math.sqrt(2.0))(x))
            if self.normalise:
                x = layer_norm()(x)
        return x
