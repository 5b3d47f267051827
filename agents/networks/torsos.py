"""Feed-forward torsos."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from marl.core.types import Array

from .config import Activation
from .initialisers import orthogonal

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu}


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """`x @ kernel`, whose gradient multiplies with a transposed copy of `x`."""
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return grad @ kernel.T, jax.lax.optimization_barrier(x.T) @ grad


_product.defvjp(_product_forward, _product_backward)


def _dot_general(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **_: Any) -> Array:
    """What a linear layer multiplies with. XLA's CPU products are a third slower over the rows than over the columns of
    their left side, so on rows of inputs the copy that `_product` makes pays."""
    if x.ndim == 2 and jax.default_backend() == "cpu":
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimensions, precision)


def dense(features: int, gain: float, name: str | None = None) -> nn.Dense:
    """A linear layer with orthogonal weights of the given gain and zero biases."""
    return nn.Dense(features, kernel_init=orthogonal(gain), dot_general=_dot_general, name=name)


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
