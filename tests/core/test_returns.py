"""Hand-worked targets: plain sums, truncation, termination, an agent that leaves early, and off-policy corrections."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.core import returns
from marl.core.errors import ShapeError
from marl.core.types import Array, TimeStep


def column(*numbers: float) -> Array:
    return jnp.asarray(numbers, jnp.float32)


def close(actual: Array, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected, np.float32), rtol=1e-6, atol=1e-6)


def rows(
    reward: list[list[float]],
    *,
    terminated: list[list[int]],
    truncated: list[list[int]],
    alive: list[list[int]],
    first: list[int],
    last: list[int],
) -> TimeStep:
    """One lane of role `a`: lists are `[T+1][n]`, or `[T+1]` for `first` and `last`."""

    def by_agent(x: list[list[int]], dtype: type) -> dict[str, Array]:
        return {"a": jnp.asarray(x, dtype)[:, None, :]}

    return TimeStep(
        obs={},
        reward=by_agent(reward, jnp.float32),
        terminated=by_agent(terminated, bool),
        truncated=by_agent(truncated, bool),
        alive=by_agent(alive, bool),
        first=jnp.asarray(first, bool)[:, None],
        last=jnp.asarray(last, bool)[:, None],
    )


def gae_of(step: TimeStep, value: list[list[float]], gamma: float = 0.5, lam: float = 0.5) -> tuple[Array, Array]:
    values = jnp.asarray(value, jnp.float32)[:, None, :]
    advantage = returns.gae(
        step.reward["a"][1:],
        returns.discount(step, "a", gamma),
        values[:-1],
        values[1:],
        lam,
        returns.cut(step, "a"),
    )
    return advantage[:, 0], returns.valid(step, "a")[:, 0]


def test_discounted_returns_sum_backwards() -> None:
    close(returns.discounted_returns(column(1, 2, 3), column(0.5, 0.5, 0.5)), [1 + 0.5 * (2 + 0.5 * 3), 2 + 1.5, 3])


def test_discounted_returns_go_on_with_the_value_where_cut_and_at_the_end() -> None:
    cut = jnp.asarray([False, True, False])
    result = returns.discounted_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), cut, column(10, 20, 30))
    close(result, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20, 3 + 0.5 * 30])


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [1 + 0.5 * 10, 2 + 0.5 * 20, 3 + 0.5 * 30]),
        (2, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * (3 + 0.5 * 30), 3 + 0.5 * 30]),
        (9, [1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 30)), 2 + 0.5 * (3 + 0.5 * 30), 3 + 0.5 * 30]),
    ],
)
def test_n_step_returns_bootstrap_after_n_rewards(n: int, expected: list[float]) -> None:
    close(returns.n_step_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), column(10, 20, 30), n), expected)


def test_n_step_returns_stop_at_a_cut() -> None:
    cut = jnp.asarray([True, False, False])
    result = returns.n_step_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), column(10, 20, 30), 3, cut)
    close(result, [1 + 0.5 * 10, 2 + 0.5 * (3 + 0.5 * 30), 3 + 0.5 * 30])


def test_lambda_returns_mix_the_value_and_the_later_target() -> None:
    last = 3 + 0.5 * 30
    middle = 2 + 0.5 * (0.75 * 20 + 0.25 * last)
    result = returns.lambda_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), column(10, 20, 30), 0.25)
    close(result, [1 + 0.5 * (0.75 * 10 + 0.25 * middle), middle, last])


def test_lambda_zero_is_one_step_and_gae_is_lambda_return_minus_value() -> None:
    reward, discount, value, after = column(1, 2, 3), column(0.5, 0.9, 0.5), column(7, 8, 9), column(8, 9, 10)
    close(returns.lambda_returns(reward, discount, after, 0.0), reward + discount * after)
    difference = returns.lambda_returns(reward, discount, after, 0.7) - value
    close(returns.gae(reward, discount, value, after, 0.7), difference)


def test_gae_by_hand() -> None:
    delta = [1 + 0.5 * 8 - 7, 2 + 0.5 * 9 - 8, 3 + 0.5 * 10 - 9]
    result = returns.gae(column(1, 2, 3), column(0.5, 0.5, 0.5), column(7, 8, 9), column(8, 9, 10), 0.5)
    close(result, [delta[0] + 0.25 * (delta[1] + 0.25 * delta[2]), delta[1] + 0.25 * delta[2], delta[2]])


def test_a_terminated_episode_does_not_bootstrap_and_the_next_one_does_not_leak_back() -> None:
    step = rows(
        [[0], [1], [2], [0], [5]],
        terminated=[[0], [0], [1], [0], [0]],
        truncated=[[0]] * 5,
        alive=[[1], [1], [0], [1], [1]],
        first=[1, 0, 0, 1, 0],
        last=[0, 0, 1, 0, 0],
    )
    advantage, valid = gae_of(step, [[10], [20], [77], [30], [40]])
    second = 2 + 0 - 20
    assert valid[:, 0].tolist() == [True, True, False, True]
    close(advantage[valid], [1 + 0.5 * 20 - 10 + 0.25 * second, second, 5 + 0.5 * 40 - 30])


def test_a_truncated_episode_bootstraps_from_its_own_final_row() -> None:
    step = rows(
        [[0], [1], [2], [0], [5]],
        terminated=[[0]] * 5,
        truncated=[[0], [0], [1], [0], [0]],
        alive=[[1], [1], [0], [1], [1]],
        first=[1, 0, 0, 1, 0],
        last=[0, 0, 1, 0, 0],
    )
    advantage, valid = gae_of(step, [[10], [20], [60], [30], [40]])
    second = 2 + 0.5 * 60 - 20
    assert valid[:, 0].tolist() == [True, True, False, True]
    close(advantage[valid], [1 + 0.5 * 20 - 10 + 0.25 * second, second, 5 + 0.5 * 40 - 30])


def test_an_agent_truncated_early_bootstraps_there_while_the_others_go_on() -> None:
    step = rows(
        [[0, 0], [1, 1], [2, 2], [3, 0]],
        terminated=[[0, 0]] * 4,
        truncated=[[0, 0], [0, 0], [0, 1], [0, 0]],
        alive=[[1, 1], [1, 1], [1, 0], [1, 0]],
        first=[1, 0, 0, 0],
        last=[0, 0, 0, 0],
    )
    advantage, valid = gae_of(step, [[10, 10], [20, 20], [30, 60], [40, 99]])
    assert valid.tolist() == [[True, True], [True, True], [True, False]]
    third = 3 + 0.5 * 40 - 30
    second = 2 + 0.5 * 30 - 20 + 0.25 * third
    close(advantage[:, 0], [1 + 0.5 * 20 - 10 + 0.25 * second, second, third])
    leaver = 2 + 0.5 * 60 - 20
    close(advantage[:2, 1], [1 + 0.5 * 20 - 10 + 0.25 * leaver, leaver])


def test_an_agent_that_dies_early_does_not_bootstrap_while_the_others_go_on() -> None:
    step = rows(
        [[0, 0], [1, 1], [2, 2]],
        terminated=[[0, 0], [0, 1], [0, 0]],
        truncated=[[0, 0]] * 3,
        alive=[[1, 1], [1, 0], [1, 0]],
        first=[1, 0, 0],
        last=[0, 0, 0],
    )
    advantage, valid = gae_of(step, [[10, 10], [20, 99], [30, 99]])
    assert valid.tolist() == [[True, True], [True, False]]
    close(advantage[0, 1], 1 - 10)


def test_vtrace_on_policy_equals_lambda_returns() -> None:
    reward, discount, value, after = column(1, 2, 3), column(0.5, 0.9, 0.5), column(7, 8, 9), column(8, 9, 10)
    target, advantage = returns.vtrace(jnp.zeros(3), reward, discount, value, after)
    expected = returns.lambda_returns(reward, discount, after, 1.0)
    close(target, expected)
    close(advantage, reward + discount * jnp.asarray([expected[1], expected[2], after[2]]) - value)


def test_vtrace_clips_ratios_and_stops_at_a_cut() -> None:
    log_ratio = jnp.log(column(0.5, 4.0))
    target, advantage = returns.vtrace(log_ratio, column(1, 2), column(0.5, 0.5), column(7, 8), column(8, 9))
    later = 1.0 * (2 + 0.5 * 9 - 8)
    close(target, [7 + 0.5 * (1 + 0.5 * 8 - 7) + 0.5 * 0.5 * later, 8 + later])
    close(advantage, [0.5 * (1 + 0.5 * (8 + later) - 7), later])
    cut = jnp.asarray([True, False])
    target, advantage = returns.vtrace(log_ratio, column(1, 2), column(0.5, 0.5), column(7, 8), column(8, 9), cut=cut)
    close(target, [7 + 0.5 * (1 + 0.5 * 8 - 7), 8 + later])
    close(advantage[0], 0.5 * (1 + 0.5 * 8 - 7))


def test_targets_keep_trailing_axes_and_carry_no_gradient() -> None:
    x = jnp.arange(24, dtype=jnp.float32).reshape(4, 3, 2)
    whole = returns.gae(x, 0.1 * x, x, x, 0.5)
    close(whole[:, 1, 1], returns.gae(x[:, 1, 1], 0.1 * x[:, 1, 1], x[:, 1, 1], x[:, 1, 1], 0.5))
    for f in (
        lambda v: returns.gae(v, v, v, v, 0.5),
        lambda v: returns.lambda_returns(v, v, v, 0.5),
        lambda v: returns.n_step_returns(v, v, v, 2),
        lambda v: sum(returns.vtrace(v, v, v, v, v)),
    ):
        assert not jax.grad(lambda v, f=f: f(v).sum())(x).any()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\), \(2,\)"):
        returns.gae(column(1, 2, 3), column(1, 2), column(1, 2, 3), column(1, 2, 3), 0.9)
    with pytest.raises(ShapeError, match="at least one row"):
        returns.discounted_returns(jnp.zeros(0), jnp.zeros(0))
    with pytest.raises(ShapeError, match="n >= 1"):
        returns.n_step_returns(column(1), column(1), column(1), 0)
