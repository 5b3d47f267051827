"""Orthogonal weights: orthonormal rows or columns, the gain, and no LAPACK call in the program."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from marl.agents.networks.initialisers import orthogonal


@pytest.mark.parametrize("shape", [(85, 64), (64, 5), (3, 7), (1, 4), (6, 6)])
def test_the_shorter_side_is_orthonormal_times_the_gain(shape: tuple[int, int]) -> None:
    matrix = np.asarray(orthogonal(2.0)(jax.random.key(0), shape))
    square = matrix @ matrix.T if shape[0] <= shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(square, 4.0 * np.eye(min(shape)), atol=2e-5)


def test_a_stack_of_agents_equals_each_agent_alone() -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    stacked = jax.vmap(lambda k: orthogonal()(k, (8, 5)))(keys)
    np.testing.assert_allclose(stacked[2], orthogonal()(keys[2], (8, 5)), atol=1e-6)


def test_no_qr_call_is_left_in_the_program() -> None:
    """Two batched QR calls at once hang XLA's CPU runtime with few threads."""
    program = jax.jit(jax.vmap(lambda k: orthogonal()(k, (8, 5)))).lower(jax.random.split(jax.random.key(0), 2))
    assert "custom_call" not in program.as_text()
