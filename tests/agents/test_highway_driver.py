"""The rule-based driver, on rows written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.scripted.highway import FASTER, IDLE, LANE_LEFT, LANE_RIGHT, SCALES, SLOWER, Defensive, choose
from marl.core.spaces import Box, Discrete
from marl.core.types import RoleSpec

decide = jax.jit(choose, static_argnums=1)


def rows(*others, lane=3, off=0.0, observation="released"):
    """15 rows of an agent `off` metres from the centre of `lane`; others: (dx, lane, speed relative to the agent)."""
    (x, y, vx, _), own = SCALES[observation]
    table = np.zeros((15, 5), np.float32)
    table[0] = [1, 1, (4 * lane + off) / own, 1, 0]
    for row, (dx, where, dv) in enumerate(others, 1):
        table[row] = [1, dx / x, (4 * (where - lane) - off) / y, dv / vx, 0]
    return jnp.asarray(np.clip(table, -1, 1))


@pytest.mark.parametrize("observation", ["released", "unsaturated"])
@pytest.mark.parametrize(
    ("others", "lane", "expected"),
    [
        ([], 3, FASTER),
        ([(60, 3, 0)], 3, IDLE),
        ([(90, 2, -5)], 3, FASTER),  # not on this lane
        ([(20, 3, -5)], 3, LANE_RIGHT),  # both sides are free: the right one pays
        ([(20, 3, -5), (2, 4, 0)], 3, LANE_LEFT),
        ([(20, 3, -5), (2, 4, 0), (-8, 2, 0)], 3, SLOWER),
        ([(20, 7, -5)], 7, LANE_LEFT),
        ([(20, 0, -5), (15, 1, 0)], 0, SLOWER),
        ([(20, 3, -5), (15, 4, -5), (30, 2, 5)], 3, LANE_LEFT),  # more room, and it opens
        ([(-8, 3, 5)], 3, FASTER),
    ],
)
def test_rules(others, lane, expected, observation):
    config = Defensive.Config(observation=observation)
    assert int(decide(rows(*others, lane=lane, observation=observation), config)) == expected


def test_a_change_is_finished_before_the_next_one():
    config = Defensive.Config()
    assert int(decide(rows(off=1.5), config)) == IDLE
    assert int(decide(rows((20, 3, -5), off=1.5), config)) == SLOWER


def test_agents_drive_on_their_own():
    spec = RoleSpec("vehicle", 2, Box((15, 5), -1.0, 1.0), Discrete(5))
    driver = Defensive(Defensive.Config(), (spec,))

    class Step:
        obs = {"vehicle": jnp.stack([rows(), rows((60, 3, 0))])}  # noqa: RUF012

    carry, actions, _ = driver.act((), driver.initial_carry(), Step, jax.random.key(0), explore=True)
    assert (carry, actions["vehicle"].tolist(), actions["vehicle"].dtype) == ((), [FASTER, IDLE], jnp.int32)
