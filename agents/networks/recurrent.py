"""A gated recurrent unit whose input part is computed for all time steps at once."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from marl.core.types import Array

from .initialisers import orthogonal


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), in the form with the reset gate after the recurrent product.

    r = s(W_r x + U_r h),  z = s(W_z x + U_z h),  c = tanh(W_c x + r * (U_c h + b)),  h' = (1 - z) c + z h.
    Weights are orthogonal, gate by gate.
    """

    size: int

    def setup(self) -> None:
        def gates(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
            one = orthogonal()
            keys = jax.random.split(key, 3)
            return jnp.concatenate([one(k, (shape[0], self.size), dtype) for k in keys], axis=1)

        self.input = nn.Dense(3 * self.size, kernel_init=gates)
        self.recurrent = self.param("recurrent", gates, (self.size, 3 * self.size))
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.size,))

    def project(self, x: Array) -> Array:
        """The input's part of the three gates, `[..., 3 size]`: one product for a whole sequence."""
        projected: Array = self.input(x)
        return projected

    def step(self, hidden: Array, projected: Array) -> Array:
        """The next hidden state, `[..., size]`."""
        inner = hidden @ self.recurrent
        k = self.size
        gates = jax.nn.sigmoid(projected[..., : 2 * k] + inner[..., : 2 * k])
        reset, keep = gates[..., :k], gates[..., k:]
        candidate = jnp.tanh(projected[..., 2 * k :] + reset * (inner[..., 2 * k :] + self.bias))
        return candidate + keep * (hidden - candidate)

    def unroll(self, hidden: Array, x: Array, first: Array) -> Array:
        """Hidden states after each row, `[T, B, size]`; the state is reset to zero before a row where `first`.

        Args: hidden: `[B, size]` before row 0.  x: `[T, B, d]`.  first: bool `[T, B]`.
        """

        def body(h: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            projected, start = row
            h = self.step(jnp.where(start[..., None], 0.0, h), projected)
            return h, h

        projected = self.project(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 3 * self.size)
        states: Array = jax.lax.scan(body, hidden, (projected, first))[1]
        return states

    def __call__(self, hidden: Array, x: Array) -> Array:
        """One step from the raw input; also what initialisation traces."""
        return self.step(hidden, self.project(x))
