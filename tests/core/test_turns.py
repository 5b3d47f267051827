"""Turns: what is computed on interleaved rows is what each agent's own sequence of turns gives, number by number."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core import returns
from marl.core.types import TimeStep

ROWS, AGENTS, GAMMA, LAM = 9, 3, 0.9, 0.7


def play(random: np.random.Generator) -> dict[str, Any]:
    """T+1 rows of a game in which one agent or none acts at a row, agents end in all ways, and rewards come at any
    row to anyone that is there."""
    shape = (ROWS + 1, AGENTS)
    rows = {name: np.zeros(shape, bool) for name in ("terminated", "truncated", "alive", "acting")}
    first, last = np.zeros(ROWS + 1, bool), np.zeros(ROWS + 1, bool)
    reward = np.zeros(shape, np.float32)
    alive = np.ones(AGENTS, bool)
    for t in range(ROWS + 1):
        if t == 0 or last[t - 1]:
            first[t], alive = True, np.ones(AGENTS, bool)
        else:
            reward[t] = np.where(alive, random.normal(size=AGENTS), 0.0)
            all_end = random.random() < 0.15
            ends = alive & ((random.random(AGENTS) < 0.15) | all_end)
            by_time = random.random(AGENTS) < 0.5
            rows["terminated"][t], rows["truncated"][t] = ends & ~by_time, ends & by_time
            alive = alive & ~ends
            last[t] = not alive.any()
            if last[t] and random.random() < 0.5:  # at the end of time everybody is still there
                alive = rows["truncated"][t]
        rows["alive"][t] = alive
        present = np.flatnonzero(alive)
        if present.size and random.random() < 0.9:
            rows["acting"][t, random.choice(present)] = True
    return {**rows, "reward": reward, "first": first, "last": last, "value": random.normal(size=shape)}


def time_steps(game: dict[str, Any], turns: bool = True) -> TimeStep:
    """One lane of role `a`."""
    by_role = {name: {"a": jnp.asarray(game[name])[:, None]} for name in ("reward", "terminated", "truncated", "alive")}
    return TimeStep(
        obs={},
        **by_role,
        first=jnp.asarray(game["first"])[:, None],
        last=jnp.asarray(game["last"])[:, None],
        acting={"a": jnp.asarray(game["acting"])[:, None]} if turns else None,
    )


def own_sequence(game: dict[str, Any], agent: int) -> list[tuple[int, float, float, float, bool]]:
    """(row, reward until the next own turn, discount, value there, whether a sum stops there), turn by turn."""
    found = []
    for t in range(ROWS):
        if not game["acting"][t, agent] or game["last"][t]:
            continue
        total, u = 0.0, t
        while True:
            u += 1
            total += game["reward"][u, agent]
            dead = bool(game["terminated"][u, agent])
            stop = bool(game["truncated"][u, agent] or game["last"][u])
            if dead or stop or game["acting"][u, agent] or u == ROWS:
                break
        found.append((t, total, 0.0 if dead else GAMMA, game["value"][u, agent], stop))
    return found


def slow_gae(game: dict[str, Any], agent: int) -> dict[int, float]:
    advantage, later = {}, 0.0
    for t, reward, discount, after, stop in reversed(own_sequence(game, agent)):
        delta = reward + discount * after - game["value"][t, agent]
        later = delta + (0.0 if stop else LAM * discount * later)
        advantage[t] = later
    return advantage


def slow_vtrace(game: dict[str, Any], agent: int, log_ratio: Any) -> tuple[dict[int, float], dict[int, float]]:
    advantage, target, later = {}, {}, 0.0
    for t, reward, discount, after, stop in reversed(own_sequence(game, agent)):
        value, weight = game["value"][t, agent], min(1.0, math.exp(log_ratio[t, agent]))
        passed = 0.0 if stop else later
        advantage[t] = weight * (reward + discount * (after + passed) - value)
        later = weight * (reward + discount * after - value) + discount * LAM * weight * passed
        target[t] = value + later
    return advantage, target


@jax.jit
def fast(step: TimeStep, value: Any, log_ratio: Any) -> Any:
    reward = step.reward["a"][1:]
    by_gae = returns.advantages(step, "a", reward, value, GAMMA, LAM)
    return by_gae, returns.advantages(step, "a", reward, value, GAMMA, LAM, log_ratio), returns.valid(step, "a")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_interleaved_turns_give_what_each_agents_own_sequence_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    game = play(random)
    log_ratio = random.normal(size=(ROWS, AGENTS))
    value = jnp.asarray(game["value"], jnp.float32)[:, None]
    by_gae, by_vtrace, counts = fast(time_steps(game), value, jnp.asarray(log_ratio, jnp.float32)[:, None])
    for agent in range(AGENTS):
        wanted = slow_gae(game, agent)
        assert np.flatnonzero(counts[:, 0, agent]).tolist() == sorted(wanted)
        corrected, targets = slow_vtrace(game, agent, log_ratio)
        for t in wanted:
            assert by_gae[0][t, 0, agent] == pytest.approx(wanted[t], abs=1e-4)
            assert by_gae[1][t, 0, agent] == pytest.approx(wanted[t] + game["value"][t, agent], abs=1e-4)
            assert by_vtrace[0][t, 0, agent] == pytest.approx(corrected[t], abs=1e-4)
            assert by_vtrace[1][t, 0, agent] == pytest.approx(targets[t], abs=1e-4)


def test_a_reward_on_the_opponents_turn_goes_to_ones_own_last_move() -> None:
    """Agent 0 moves, agent 1 moves and wins: both are paid at row 2, agent 0 for its move at row 0."""
    rows = {
        "reward": np.asarray([[0, 0], [0, 0], [-1, 1], [0, 0]], np.float32),
        "terminated": np.asarray([[0, 0], [0, 0], [1, 1], [0, 0]], bool),
        "truncated": np.zeros((4, 2), bool),
        "alive": np.asarray([[1, 1], [1, 1], [0, 0], [1, 1]], bool),
        "acting": np.asarray([[1, 0], [0, 1], [0, 0], [1, 0]], bool),
        "first": np.asarray([1, 0, 0, 1], bool),
        "last": np.asarray([0, 0, 1, 0], bool),
    }
    value = jnp.asarray([[0.5, 0.25], [9, 0.5], [9, 9], [9, 9]], jnp.float32)[:, None]
    step = time_steps(rows)
    advantage, target = returns.advantages(step, "a", step.reward["a"][1:], value, 0.9, 1.0)
    assert returns.valid(step, "a")[:, 0].tolist() == [[True, False], [False, True], [False, False]]
    np.testing.assert_allclose((target[0, 0, 0], target[1, 0, 1]), (-1.0, 1.0))
    np.testing.assert_allclose((advantage[0, 0, 0], advantage[1, 0, 1]), (-1.5, 0.5))


def test_a_reward_on_the_opponents_turn_counts_without_discounting_too() -> None:
    """gamma = 0 values the whole reward of one's move, not only that of the first row after it."""
    rows = {
        "reward": np.asarray([[0, 0], [1, 0], [2, 0], [4, 0]], np.float32),
        "terminated": np.zeros((4, 2), bool),
        "truncated": np.zeros((4, 2), bool),
        "alive": np.ones((4, 2), bool),
        "acting": np.asarray([[1, 0], [0, 1], [1, 0], [0, 1]], bool),
        "first": np.asarray([1, 0, 0, 0], bool),
        "last": np.zeros(4, bool),
    }
    step = time_steps(rows)
    _, target = returns.advantages(step, "a", step.reward["a"][1:], jnp.full((4, 1, 2), 5.0), 0.0, 0.9)
    np.testing.assert_allclose((target[0, 0, 0], target[2, 0, 0]), (3.0, 4.0))


def test_without_turns_everything_stays_as_it_is() -> None:
    """Bit for bit what GAE gives on the plain rows."""
    game = play(np.random.default_rng(0))
    step, value = time_steps(game, turns=False), jnp.asarray(game["value"], jnp.float32)[:, None]
    reward, discount, cut = step.reward["a"][1:], returns.discount(step, "a", GAMMA), returns.cut(step, "a")
    plain = returns.gae(reward, discount, value[:-1], value[1:], LAM, cut)
    advantage, target = returns.advantages(step, "a", reward, value, GAMMA, LAM)
    np.testing.assert_array_equal(advantage, plain)
    np.testing.assert_array_equal(target, plain + value[:-1])
    turns = returns.own_turns(step, "a", reward, discount, value, cut, LAM)
    assert turns.reward is reward
    assert turns.cut is cut
