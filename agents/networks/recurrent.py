"""A gated recurrent unit whose time loops hold only what must be sequential.

Forwards, the input's part of the gates is computed for all rows at once. Backwards (`_scan_backward`), the gates are
computed again for all rows at once, the loop carries the gradient of the state, and the weights' gradients are products
at the end; differentiating the loop itself would add to them row by row. The three gates are separate arrays all along:
cut out of one wide array they would cost XLA's CPU loops their vector instructions, and the unit two thirds of its
speed.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from marl.core.types import Array

from .initialisers import orthogonal
from .torsos import dense

Gates = tuple[Array, Array, Array]  # of the reset gate, the keep gate and the candidate


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), in the form with the reset gate after the recurrent product.

    r = s(W_r x + U_r h),  z = s(W_z x + U_z h),  c = tanh(W_c x + r * (U_c h + b)),  h' = (1 - z) c + z h.
    Weights are orthogonal, gate by gate; W has biases.
    """

    size: int

    def setup(self) -> None:
        def square(name: str) -> Array:
            weights: Array = self.param(f"recurrent_{name}", orthogonal(), (self.size, self.size))
            return weights

        names = ("reset", "keep", "candidate")
        self.inputs = [dense(self.size, 1.0, name=f"input_{name}") for name in names]
        self.recurrent = (square(names[0]), square(names[1]), square(names[2]))
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.size,))

    def _project(self, x: Array) -> Gates:
        reset, keep, candidate = (layer(x) for layer in self.inputs)
        return reset, keep, candidate

    def unroll(self, hidden: Array, x: Array, first: Array) -> Array:
        """Hidden states after each row, `[T, B, size]`; the state is reset to zero before a row where `first`.

        Args: hidden: `[B, size]` before row 0.  x: `[T, B, d]`.  first: bool `[T, B]`.
        """
        rows = self._project(x.reshape(-1, x.shape[-1]))  # one row axis: gradients are then plain matrix products
        reset, keep, candidate = (part.reshape(*x.shape[:-1], self.size) for part in rows)
        stays = 1.0 - first[..., None].astype(jnp.float32)
        return _scan(self.recurrent, self.bias, hidden, (reset, keep, candidate), stays)

    def __call__(self, hidden: Array, x: Array) -> Array:
        """The hidden state after one row of inputs, `[..., size]`."""
        return _step(self.recurrent, self.bias, hidden, self._project(x)).next_hidden(hidden)


class _Step(NamedTuple):
    """What a step computes from its state, `[..., size]`. inner: U_c h + b."""

    reset: Array
    keep: Array
    candidate: Array
    inner: Array

    def next_hidden(self, hidden: Array) -> Array:
        return self.candidate + self.keep * (hidden - self.candidate)


def _step(recurrent: Gates, bias: Array, hidden: Array, projected: Gates) -> _Step:
    reset = jax.nn.sigmoid(projected[0] + hidden @ recurrent[0])
    keep = jax.nn.sigmoid(projected[1] + hidden @ recurrent[1])
    inner = hidden @ recurrent[2] + bias
    return _Step(reset, keep, jnp.tanh(projected[2] + reset * inner), inner)


@jax.custom_vjp
def _scan(recurrent: Gates, bias: Array, hidden: Array, projected: Gates, stays: Array) -> Array:
    """States `[T, B, k]` from the inputs' part of the gates; stays: `[T, B, 1]`, 0 where the state is reset first."""

    def body(h: Array, row: tuple[Gates, Array]) -> tuple[Array, Array]:
        h = h * row[1]
        h = _step(recurrent, bias, h, row[0]).next_hidden(h)
        return h, h

    states: Array = jax.lax.scan(body, hidden, (projected, stays))[1]
    return states


_Saved = tuple[Gates, Array, Array, Gates, Array]


def _scan_forward(recurrent: Gates, bias: Array, hidden: Array, projected: Gates, stays: Array) -> tuple[Array, _Saved]:
    states = _scan(recurrent, bias, hidden, projected, stays)
    before = jnp.concatenate([hidden[None], states[:-1]]) * stays
    return states, (recurrent, bias, before, projected, stays)


def _scan_backward(saved: _Saved, grad_states: Array) -> tuple[Gates, Array, Array, Gates, Array]:
    """Gradients of all arguments, by the chain rule of one step written out (that of `stays` is not needed and 0)."""
    recurrent, bias, before, projected, stays = saved
    flat = before.reshape(-1, before.shape[-1])
    inputs = (projected[0].reshape(flat.shape), projected[1].reshape(flat.shape), projected[2].reshape(flat.shape))
    reset, keep, candidate, inner = (part.reshape(before.shape) for part in _step(recurrent, bias, flat, inputs))
    # From the gradient of the next state to those of the arguments of tanh and the sigmoids, and of U_c h + b.
    to_candidate = (1.0 - keep) * (1.0 - jnp.square(candidate))
    to_keep = (before - candidate) * keep * (1.0 - keep)
    to_reset = to_candidate * inner * reset * (1.0 - reset)
    to_inner = to_candidate * reset

    def body(later: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        grad_state, to_reset, to_keep, to_inner, keep, stays = row
        grad = later + grad_state
        through = (grad * to_reset) @ recurrent[0].T + (grad * to_keep) @ recurrent[1].T
        through = through + (grad * to_inner) @ recurrent[2].T
        return (grad * keep + through) * stays, grad

    rows = (grad_states, to_reset, to_keep, to_inner, keep, stays)
    grad_hidden, grad = jax.lax.scan(body, jnp.zeros_like(before[0]), rows, reverse=True)
    grad_reset, grad_keep, grad_inner = grad * to_reset, grad * to_keep, grad * to_inner
    across = jax.lax.optimization_barrier(flat.T)  # as in `torsos`: products over columns are faster
    weights = [across @ g.reshape(flat.shape) for g in (grad_reset, grad_keep, grad_inner)]
    grad_projected = (grad_reset, grad_keep, grad * to_candidate)
    grad_bias = grad_inner.sum((0, 1))
    return (weights[0], weights[1], weights[2]), grad_bias, grad_hidden, grad_projected, jnp.zeros_like(stays)


_scan.defvjp(_scan_forward, _scan_backward)
