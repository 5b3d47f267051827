"""The returns and values that the probes' docstrings promise, by playing every case."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.types import TimeStep
from marl.envs.probe.coordination import Coordination
from marl.envs.probe.credit import Credit
from marl.envs.probe.memory import Memory
from marl.envs.probe.roles import Roles
from marl.envs.probe.truncation import Truncation
from marl.envs.probe.value import Value

Play = Callable[[TimeStep], dict[str, Any]]


@functools.cache
def compiled(env: Any) -> tuple[Any, Any]:
    return jax.jit(env.reset), jax.jit(env.step)


def played(env: Any, act: Play, seed: int = 0, prize: float | None = None) -> list[TimeStep]:
    """The rows of one episode in which `act` chooses, in NumPy."""
    params = env.default_params
    params = params if prize is None else params.replace(prize=params.prize * prize)
    reset, step = compiled(env)
    state, row = reset(jax.random.key(seed), params)
    rows = [jax.device_get(row)]
    while not rows[-1].last:
        actions = {role: np.asarray(action, np.int32) for role, action in act(rows[-1]).items()}
        state, row = step(jax.random.key(0), state, actions, params)
        rows.append(jax.device_get(row))
    return rows


def total(rows: list[TimeStep], role: str, discount: float = 1.0) -> list[float]:
    """The return of each agent of a role, from the first row."""
    return list(sum(discount**t * row.reward[role] for t, row in enumerate(rows[1:])).tolist())


def test_value_pays_one_for_anything() -> None:
    for action in (0, 1):
        rows = played(Value(agents=2), lambda row, action=action: {"agent": [action] * 2})
        assert total(rows, "agent") == [1.0, 1.0]
        assert len(rows) == 2
        assert rows[-1].terminated["agent"].all()
    np.testing.assert_array_equal(rows[0].obs["agent"], rows[1].obs["agent"])


def test_the_prize_is_a_parameter() -> None:
    assert total(played(Value(), lambda row: {"agent": [0]}, prize=2.5), "agent") == [2.5]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_credit_pays_the_first_action_one_row_later(seed: int) -> None:
    env = Credit()
    for right in (True, False):
        for second in (0, 1):

            def act(row: TimeStep, right: bool = right, second: int = second) -> dict[str, Any]:
                cue = row.obs["agent"][0, 0]
                return {"agent": [int((cue > 0) == right) if row.first else second]}

            rows = played(env, act, seed)
            assert [row.reward["agent"][0] for row in rows] == [0.0, 0.0, float(right)]
            np.testing.assert_allclose(total(rows, "agent", 0.9), [0.9 * right], rtol=1e-6)
            np.testing.assert_array_equal(rows[1].obs["agent"], [[0.0, 1.0, float(right)]])


def test_both_cues_of_credit_occur() -> None:
    env = Credit()
    cues = {float(played(env, lambda row: {"agent": [0]}, seed)[0].obs["agent"][0, 0]) for seed in range(8)}
    assert cues == {-1.0, 1.0}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_memory_pays_what_was_seen_at_the_first_row_only(seed: int) -> None:
    env = Memory(delay=3)
    seen = played(env, lambda row: {"agent": [0]}, seed)
    cue = int(seen[0].obs["agent"][0, 0] > 0)
    assert [float(row.obs["agent"][0, 0]) for row in seen[1:]] == [0.0] * 4
    assert [float(row.obs["agent"][0, 1]) for row in seen] == [0.0, 0.0, 0.0, 1.0, 0.0]
    returns = {said: total(played(env, lambda row, said=said: {"agent": [said]}, seed), "agent") for said in (0, 1, 2)}
    assert returns == {0: [0.0], 1: [float(cue == 0)], 2: [float(cue == 1)]}


def test_memory_lets_nobody_write_the_cue_into_its_actions() -> None:
    rows = played(Memory(delay=2), lambda row: {"agent": [0]})
    masks = [row.action_mask["agent"][0].tolist() for row in rows if row.action_mask is not None]
    assert masks[:3] == [[True, False, False], [True, False, False], [False, True, True]]


def test_coordination_is_perfect_by_either_convention_and_fails_by_their_mixture() -> None:
    env = Coordination()

    def returns(flips: tuple[int, int]) -> list[float]:
        def act(row: TimeStep) -> dict[str, Any]:
            return {"agent": (row.obs["agent"][:, 0] > 0) ^ np.asarray(flips, bool)}

        return [total(played(env, act, seed), "agent")[0] for seed in range(8)]

    assert returns((0, 0)) == returns((1, 1)) == [1.0] * 8
    assert returns((0, 1)) == returns((1, 0)) == [0.0] * 8


def test_an_agent_of_coordination_gains_nothing_from_its_cue_alone() -> None:
    """Over all four pairs of cues, against a partner that always does the same."""
    env, step = Coordination(), jax.jit(Coordination().step)
    state, _ = env.reset(jax.random.key(0), env.default_params)
    paid = []
    for cue in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        told = state.replace(cue=np.asarray(cue, np.int32))
        actions = {"agent": np.asarray([cue[0], 1], np.int32)}
        paid.append(float(step(jax.random.key(0), told, actions, env.default_params)[1].reward["agent"][0]))
    assert sum(paid) / 4 == 0.5


def test_the_global_state_of_coordination_holds_both_cues() -> None:
    row = played(Coordination(), lambda row: {"agent": [0, 0]})[0]
    np.testing.assert_array_equal(row.state, row.obs["agent"][:, 0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_roles_pay_each_agent_for_its_own_digit(seed: int) -> None:
    def act(row: TimeStep) -> dict[str, Any]:
        return {role: row.obs[role].argmax(-1) for role in ("leader", "follower")}

    rows = played(Roles(), act, seed)
    assert total(rows, "leader") == [1.0]
    assert total(rows, "follower") == [1.0, 1.0]

    def one_wrong(row: TimeStep) -> dict[str, Any]:
        right = act(row)
        return {**right, "follower": [right["follower"][0], (right["follower"][1] + 2) % 3]}

    rows = played(Roles(), one_wrong, seed)
    assert total(rows, "follower") == [1.0, 0.0]
    assert rows[-1].info is not None
    assert rows[-1].info["reward/follower/match"] == 0.5


def test_the_mask_of_roles_forbids_one_wrong_digit() -> None:
    row = played(Roles(), lambda row: {"leader": [0], "follower": [0, 0]})[0]
    digits, mask = row.obs["follower"].argmax(-1), row.action_mask["follower"] if row.action_mask else None
    assert mask is not None
    assert mask.sum() == 4
    assert [bool(mask[i, digit]) for i, digit in enumerate(digits)] == [True, True]
    assert [bool(mask[i, (digit + 1) % 3]) for i, digit in enumerate(digits)] == [False, False]


def test_truncation_lets_one_agent_leave_before_the_other() -> None:
    rows = played(Truncation(steps=4, leave=2), lambda row: {"agent": [0, 0]})
    assert [row.truncated["agent"].tolist() for row in rows] == [
        [False, False],
        [False, False],
        [False, True],
        [False, False],
        [True, False],
    ]
    assert [row.alive["agent"].tolist() for row in rows] == [[True, True]] * 2 + [[True, False]] * 3
    assert [row.reward["agent"].tolist() for row in rows] == [[0, 0], [1, 1], [1, 1], [1, 0], [1, 0]]
    assert not any(row.terminated["agent"].any() for row in rows)
    assert [bool(row.last) for row in rows] == [False] * 4 + [True]
    assert total(rows, "agent") == [4.0, 2.0]


def test_truncation_shows_the_constant_where_its_future_is_bootstrapped_from() -> None:
    """Bellman's equation holds with V = 1 / (1 - g) at every transition that counts."""
    discount = 0.9
    value = 1.0 / (1.0 - discount)
    rows = played(Truncation(steps=4, leave=2), lambda row: {"agent": [0, 0]})
    for before, after in itertools.pairwise(rows):
        for agent in np.flatnonzero(before.alive["agent"]):
            assert after.obs["agent"][agent, 0] == 1.0
            target = after.reward["agent"][agent] + discount * (1.0 - after.terminated["agent"][agent]) * value
            assert target == pytest.approx(value)


def test_an_agent_of_truncation_cannot_leave_after_the_end() -> None:
    with pytest.raises(ValueError, match="leave must be smaller than steps, got leave 9 and steps 8"):
        Truncation(leave=9)
