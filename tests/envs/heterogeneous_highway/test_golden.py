"""Numbers of the reference simulator (highway-env 1.12.1, float64), written down: kinematics, control, IDM, MOBIL,
contact.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.envs.common.car_following import desired_gap, free_acceleration
from marl.envs.heterogeneous_highway.collisions import collide
from marl.envs.heterogeneous_highway.dynamics import advance, meta_action, speed_control, steering_slope
from marl.envs.heterogeneous_highway.ordering import along_the_road
from marl.envs.heterogeneous_highway.params import AGGRESSIVE, CONTROLLED, DEFENSIVE, NORMAL, HighwayConfig
from marl.envs.heterogeneous_highway.traffic import (
    View,
    braking_for,
    closing_speed,
    decide,
    lane_change_wanted,
    neighbours,
)

pytestmark = pytest.mark.usefixtures("x64")


@functools.partial(jax.jit, static_argnums=2)
def decided(state, drivers, config):
    return decide(state, along_the_road(state.x), drivers, config)


@jax.jit
def collided(state):
    return collide(state, along_the_road(state.x), 0.2)


@jax.jit
def wanted_changes(state, drivers):
    """MOBIL's answer for the lanes to the left and right of each vehicle on a road of four."""
    current = state.target_lane
    nearby = neighbours(state.y, along_the_road(state.x), jnp.stack([current, current - 1, current + 1]), 4)
    view = View(state.x, state.speed, jnp.ones_like(state.x), jnp.zeros_like(state.x), state.target_speed)
    return lane_change_wanted(drivers, state.exponent, view, view.at(nearby.front), view.at(nearby.rear), nearby)


@pytest.mark.parametrize(
    ("heading", "speed", "steering", "acceleration", "dt", "steps", "expected"),
    [
        (0, 25, 0, 1, 0.2, 1, (105.0, 8.0, 0, 25.2)),
        (0.05, 25, 0.02, -2, 0.2, 1, (104.9910024, 8.299825024, 0.070001667, 24.6)),
        (0.05, 25, 0.02, -2, 1 / 15, 15, (123.925051943, 10.519645916, 0.146274689, 23.0)),
        (-0.1, 10, -0.3, 3, 0.2, 5, (109.50944064, 2.466685083, -0.784770982, 13.0)),
        (0, 42, 0, 5, 0.2, 1, (108.4, 8.0, 0, 41.6)),
    ],
)
def test_bicycle_moves_as_the_reference(scene, heading, speed, steering, acceleration, dt, steps, expected):
    state = scene([100], [8], heading=[heading], speed=[speed])
    slope, acceleration = jnp.full((1, 1), np.tan(steering) / 2), jnp.full((1, 1), acceleration, jnp.float64)
    for _ in range(steps):
        state = advance(state, slope, acceleration, dt)
    np.testing.assert_allclose(
        [state.x.item(), state.y.item(), state.heading.item(), state.speed.item()], expected, atol=2e-9
    )


@pytest.mark.parametrize(
    ("speed", "target", "front_x", "front_speed", "expected", "gap"),
    [
        (25, 25, None, None, 0.0, None),
        (25, 30, 130, 20, -11.945834508, 63.637431),
        (25, 30, 112, 20, -82.815979562, 63.637431),
        (25, 22, 180, 30, -2.463607499, 31.362569),
        (0, 25, 108, 0, -1.6875, 10.0),
        (20, 30, 140, 20, -0.592592593, 40.0),
    ],
)
def test_normal_driver_follows_as_the_reference(scene, drivers_of, speed, target, front_x, front_speed, expected, gap):
    state = scene([100, front_x or 0], [4, 6.9], speed=[speed, front_speed or 0], target_speed=[target, 20])
    driver = jax.tree.map(lambda leaf: leaf[0], drivers_of(state))
    view = View(state.x, state.speed, jnp.ones((2, 1)), jnp.zeros((2, 1)), state.target_speed)
    me, front = (jax.tree.map(lambda leaf, i=i: leaf[i], view) for i in (0, 1))
    value = free_acceleration(driver, me.speed, me.target_speed, jnp.float64(4.0))
    if front_x is not None:
        value = value - braking_for(driver, me, front)
        np.testing.assert_allclose(desired_gap(driver, me.speed, closing_speed(me, front)), gap, atol=1e-6)
    np.testing.assert_allclose(value, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "exponent", "idm", "gap", "released", "follows"),
    [
        (NORMAL, 4.0, -40.942981, 73.8855, -6.0, -6.0),
        (AGGRESSIVE, 4.0, -36.0105, 48.9969, 0.0, -9.0),
        (DEFENSIVE, 3.5, -49.385665, 99.3838, 0.0, -5.0),
    ],
)
def test_only_normal_drivers_brake_unless_asked(scene, drivers_of, kind, exponent, idm, gap, released, follows):
    state = scene([100, 120], [4, 4], speed=[24, 15], kind=[kind, NORMAL], exponent=[exponent, 4.0])
    drivers = drivers_of(state)
    driver = jax.tree.map(lambda leaf: leaf[0], drivers)
    view = View(state.x, state.speed, jnp.ones((2, 1)), jnp.zeros((2, 1)), state.target_speed)
    me, front = (jax.tree.map(lambda leaf, i=i: leaf[i], view) for i in (0, 1))
    value = free_acceleration(driver, me.speed, me.target_speed, jnp.float64(exponent)) - braking_for(driver, me, front)
    np.testing.assert_allclose(value, idm, atol=5e-6)
    np.testing.assert_allclose(desired_gap(driver, me.speed, closing_speed(me, front)), gap, atol=5e-5)
    for mode, expected in (("released", released), ("idm", follows)):
        decision = decided(state, drivers, HighwayConfig(hetero_longitudinal=mode))
        np.testing.assert_allclose(decision.acceleration[0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("y", "heading", "speed", "lane", "expected"),
    [
        (4, 0, 25, 2, 0.265971092),
        (5, 0.1, 25, 1, -0.165763278),
        (4, 0, 0, 2, 1.047197551),
        (4, -0.2, 10, 0, -1.047197551),
    ],
)
def test_steering_to_a_lane_is_the_reference_angle(y, heading, speed, lane, expected):
    slope = steering_slope(*(jnp.float64(v) for v in (y, heading, speed)), jnp.int32(lane))
    np.testing.assert_allclose(jnp.arctan(2 * slope), expected, atol=1e-9)


def test_speed_control_is_the_reference_acceleration():
    np.testing.assert_allclose(speed_control(jnp.float64(25), jnp.float64(30)), 8.333333333, atol=1e-9)


@pytest.mark.parametrize("politeness", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], (False, False)),
        ([(220, 1, 20)], (True, True)),
        ([(220, 1, 20), (185, 2, 28)], (True, False)),
        ([(220, 1, 20), (185, 0, 30), (230, 2, 25)], (False, True)),
        ([(220, 1, 20), (195, 2, 25)], (True, False)),
        ([(260, 1, 24), (265, 0, 24)], (True, True)),
    ],
)
def test_lane_changes_are_wanted_as_in_the_reference(scene, drivers_of, others, politeness, expected):
    x, lane, speed = (np.asarray(c, float) for c in zip((200, 1, 25), *others, strict=True))
    state = scene(x, 4 * lane, speed=speed, target_speed=np.concatenate([[30], speed[1:]]))
    wanted = wanted_changes(state, drivers_of(state, politeness_normal=politeness))
    assert tuple(bool(v) for v in wanted[:, 0, 0]) == expected


@pytest.mark.parametrize("swap", [False, True], ids=["a first", "b first"])
@pytest.mark.parametrize(
    ("a", "b", "crash", "push"),
    [
        ((100, 8, 0, 25), (104, 8, 0, 20), True, (-1, 0)),
        ((100, 8, 0, 25), (105.5, 8, 0, 20), False, (-0.25, 0)),
        ((100, 8, 0, 25), (106.5, 8, 0, 20), False, None),
        ((100, 8, 0, 25), (100, 10.5, 0, 25), False, None),
        ((100, 8, 0.2, 25), (103, 10.2, -0.1, 25), True, (-0.084021232, -0.837409747)),
        ((100, 8, 0.4, 20), (104.5, 10, 0, 15), True, (-0.688157402, 0)),
    ],
)
def test_contact_is_the_reference_contact(scene, a, b, crash, push, swap):
    x, y, heading, speed = zip(*((b, a) if swap else (a, b)), strict=True)
    state = scene(x, y, heading=heading, speed=speed)
    after = collided(state)
    mine, other = (1, 0) if swap else (0, 1)
    assert after.crashed[:, 0].tolist() == [crash, crash]
    assert after.struck[:, 0].tolist() == [push is not None] * 2
    if push is not None:
        np.testing.assert_allclose([after.push_x[mine, 0], after.push_y[mine, 0]], push, atol=1e-9)
        np.testing.assert_allclose([after.push_x[other, 0], after.push_y[other, 0]], np.negative(push), atol=1e-9)


@pytest.mark.parametrize(
    ("action", "speed", "target_speed", "lane", "acceleration", "steering"),
    [
        (3, 25, 30, 2, 8.333333333, 0),
        (4, 25, 20, 2, -8.333333333, 0),
        (3, 27.4, 30, 2, (30 - 27.4) / 0.6, 0),
        (3, 27.6, 30, 2, (30 - 27.6) / 0.6, 0),
        (3, 22.5, 25, 2, 2.5 / 0.6, 0),  # halfway between two target speeds: the even index, 0
        (4, 27.5, 25, 2, -2.5 / 0.6, 0),  # and 2
        (2, 25, 25, 3, 0, 0.265971092),
        (0, 25, 25, 1, 0, -0.265971092),
        (1, 25, 25, 2, 0, 0),
    ],
)
def test_meta_actions_set_the_reference_targets(action, speed, target_speed, lane, acceleration, steering):
    v, y = jnp.float64(speed), jnp.float64(8)
    new_lane, new_speed = meta_action(jnp.int32(action), y, v, jnp.int32(2), jnp.float64(25), 8)
    assert (int(new_lane), float(new_speed)) == (lane, target_speed)
    np.testing.assert_allclose(speed_control(v, new_speed), acceleration, atol=1e-9)
    np.testing.assert_allclose(jnp.arctan(2 * steering_slope(y, jnp.float64(0), v, new_lane)), steering, atol=1e-9)


def test_lane_actions_at_the_edge_and_out_of_reach_do_nothing():
    v = jnp.float64(25)
    for action, y, target, expected in ((0, 0, 0, 0), (2, 28, 7, 7), (2, 4, 3, 3), (0, 28, 6, 5), (0, 28, 5, 5)):
        lane, _ = meta_action(jnp.int32(action), jnp.float64(y), v, jnp.int32(target), v, 8)
        assert int(lane) == expected


def test_controlled_vehicles_are_followed_but_decide_nothing(scene, drivers_of):
    state = scene([100, 110], [4, 4], speed=[25, 15], kind=[CONTROLLED, NORMAL], timer=[5, 5])
    decision = decided(state, drivers_of(state), HighwayConfig())
    assert (int(decision.target_lane[0, 0]), float(decision.acceleration[0, 0])) == (1, 0.0)
    assert float(decision.timer[0, 0]) == 5.0
