"""The road against the reference simulator, highway-env 1.12.x, in float64 on random scenes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.envs.common.car_following import desired_gap, free_acceleration
from marl.envs.heterogeneous_highway.collisions import collide
from marl.envs.heterogeneous_highway.dynamics import advance, meta_action, speed_control, steering_slope
from marl.envs.heterogeneous_highway.env import HeterogeneousHighway
from marl.envs.heterogeneous_highway.ordering import along_the_road
from marl.envs.heterogeneous_highway.params import CONTROLLED, NORMAL, HighwayConfig, default_params
from marl.envs.heterogeneous_highway.reward import reward_terms
from marl.envs.heterogeneous_highway.sensing import observe
from marl.envs.heterogeneous_highway.state import agent_ids, lane_of, spawn
from marl.envs.heterogeneous_highway.traffic import (
    View,
    braking_for,
    closing_speed,
    lane_change_wanted,
    neighbours,
)

pytest.importorskip("highway_env", reason="needs highway-env: pip install -e '.[reference]'")
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]

LEAVES = ("x", "y", "heading", "speed", "target_speed", "target_lane", "timer", "exponent", "kind", "crashed")


def one(state, lane: int = 0) -> dict[str, np.ndarray]:
    """The leaves of one lane of a state."""
    return {name: np.asarray(getattr(state, name))[:, lane] for name in LEAVES}


def random_scene(rng, n: int, lanes: int, road_lanes: int = 8, span: float = 120.0) -> dict[str, np.ndarray]:
    """Normal traffic `[n, lanes]`, a third of it turned and off its lane's centre, some of it exactly level."""
    shape = (n, lanes)
    x = 200 + rng.uniform(0, span, shape)
    x[1::3] = np.round(x[1::3] / 10) * 10
    lane = rng.integers(0, road_lanes, shape)
    speed = rng.uniform(10, 30, shape)
    # Two that are level but not parallel are pushed to a side that depends on rounding in the reference: none of them.
    turned = rng.random(shape) < 0.3
    return {
        "x": x,
        "y": 4.0 * lane + np.where(turned, rng.uniform(-2, 2, shape), 0),
        "heading": np.where(turned, rng.normal(0, 0.1, shape), 0),
        "speed": speed,
        "target_speed": np.clip(speed + rng.uniform(-3, 5, shape), 5, 30),
        "exponent": rng.uniform(3.5, 4.5, shape),
    }


@pytest.mark.parametrize(("dt", "steps"), [(0.2, 1), (1 / 15, 15)])
def test_kinematics(scene, reference, dt, steps):
    rng, n = np.random.default_rng(0), 400
    steering, accel = rng.uniform(-1, 1, n), rng.uniform(-9, 9, n)
    state = scene(
        rng.uniform(0, 900, n),
        rng.uniform(-3, 31, n),
        heading=rng.normal(0, 0.5, n),
        speed=rng.uniform(-45, 45, n),
        crashed=rng.random(n) < 0.2,
    )
    road = reference.make_road(one(state))
    for _ in range(steps):
        state = advance(state, jnp.tan(jnp.asarray(steering))[:, None] / 2, jnp.asarray(accel)[:, None], dt)
        for vehicle, s, a in zip(road.vehicles, steering, accel, strict=True):
            vehicle.action = {"steering": s, "acceleration": a}
            vehicle.step(dt)
    expected = reference.read(road)
    for name in ("x", "y", "heading", "speed"):
        np.testing.assert_allclose(getattr(state, name)[:, 0], expected[name], atol=1e-9, err_msg=name)
    lanes = [vehicle.lane_index[2] for vehicle in road.vehicles]
    assert lane_of(state.y, 8)[:, 0].tolist() == lanes


def test_low_level_control(scene, reference):
    grid = np.meshgrid(
        [-1.5, 0, 0.3, 1.9, 9.7, 30],
        [-0.6, -0.1, 0, 0.02, 0.4, 3.0],
        [-20, -0.005, 0, 0.009, 0.5, 12, 25, 39],
        [0, 3, 7],
    )
    y, heading, speed, lane = (g.ravel() for g in grid)
    state = scene(np.full(len(y), 50.0), y, heading=heading, speed=speed, target_lane=lane, target_speed=25 + 0 * y)
    road = reference.make_road(one(state))
    steering = [v.steering_control(v.target_lane_index) for v in road.vehicles]
    slope = steering_slope(state.y, state.heading, state.speed, state.target_lane)[:, 0]
    np.testing.assert_allclose(jnp.arctan(2 * slope), steering, atol=1e-9)
    accel = [v.speed_control(v.target_speed) for v in road.vehicles]
    np.testing.assert_allclose(speed_control(state.speed, state.target_speed)[:, 0], accel, atol=1e-9)


def test_car_following(scene, reference, drivers_of):
    rng, pairs = np.random.default_rng(1), 2000
    gap = rng.choice([0, 0.004, -0.004, 0.5, 6], pairs)
    gap += np.where(rng.random(pairs) < 0.6, rng.uniform(0, 90, pairs), 0)
    speed = np.stack([rng.uniform(-2, 32, pairs), rng.uniform(-2, 55, pairs)])
    x = np.stack([np.full(pairs, 300.0), 300 + gap])
    target_speed = np.stack([rng.choice([0, 0.002, 15, 25, 30], pairs), rng.uniform(20, 30, pairs)])
    heading = rng.normal(0, 0.3, (2, pairs))
    state = scene(x, np.full((2, pairs), 8.0), heading=heading, speed=speed, target_speed=target_speed,
                  exponent=rng.uniform(3, 4.5, (2, pairs)))  # fmt: skip
    driver = jax.tree.map(lambda leaf: leaf[0], drivers_of(state))
    view = View(state.x, state.speed, jnp.cos(state.heading), jnp.sin(state.heading), state.target_speed)
    ego, front = (jax.tree.map(lambda leaf, i=i: leaf[i], view) for i in (0, 1))
    free = free_acceleration(driver, ego.speed, ego.target_speed, state.exponent[0])
    following = free - braking_for(driver, ego, front)
    wanted = desired_gap(driver, ego.speed, closing_speed(ego, front))
    assert float(wanted.min()) < 0 < float(wanted.max())
    for i in range(pairs):
        a, b = reference.make_road(one(state, i)).vehicles
        np.testing.assert_allclose(free[i], a.acceleration(a), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(following[i], a.acceleration(a, b), rtol=1e-9, atol=1e-9)


def test_neighbours(scene, reference):
    rng, scenes = np.random.default_rng(2), 4
    leaves = random_scene(rng, 55, scenes, span=400)
    leaves["x"][40] = leaves["x"][12]
    leaves["x"][44] = leaves["x"][12]
    state = scene(leaves.pop("x"), leaves.pop("y"), **leaves)
    candidates = jnp.broadcast_to(jnp.arange(8)[:, None, None], (8, 55, scenes))
    found = neighbours(state.y, along_the_road(state.x), candidates, 8)
    for i in range(scenes):
        road = reference.make_road(one(state, i))
        number = {id(vehicle): k for k, vehicle in enumerate(road.vehicles)}
        for lane in range(8):
            for k, vehicle in enumerate(road.vehicles):
                expected = [
                    -1 if v is None else number[id(v)] for v in road.neighbour_vehicles(vehicle, ("0", "1", lane))
                ]
                assert [int(found.front[lane, k, i]), int(found.rear[lane, k, i])] == expected


def test_lane_change_decisions_agree_on_every_one_of_ten_thousand_scenes(scene, reference, drivers_of):
    rng, scenes, n = np.random.default_rng(3), 10_000, 6
    leaves = random_scene(rng, n, scenes, road_lanes=3, span=90)
    leaves["y"][0] = 4.0 + np.where(rng.random(scenes) < 0.3, rng.uniform(-1.9, 1.9, scenes), 0)
    state = scene(leaves.pop("x"), leaves.pop("y"), **leaves)

    drivers = drivers_of(state)

    def decide(state):
        lane = lane_of(state.y, 3)
        nearby = neighbours(state.y, along_the_road(state.x), jnp.stack([lane, lane - 1, lane + 1]), 3)
        view = View(state.x, state.speed, jnp.cos(state.heading), jnp.sin(state.heading), state.target_speed)
        return lane_change_wanted(drivers, state.exponent, view, view.at(nearby.front), view.at(nearby.rear), nearby)

    wanted = np.asarray(jax.jit(decide)(state))[:, 0]
    disagreements, accepted = 0, 0
    for i in range(scenes):
        ego = reference.make_road(one(state, i), lanes=3).vehicles[0]
        lane = ego.lane_index[2]
        for side, candidate in enumerate((lane - 1, lane + 1)):
            if 0 <= candidate < 3:
                expected = ego.mobil(("0", "1", candidate))
                accepted += expected
                disagreements += bool(wanted[side, i]) != expected
    assert disagreements == 0
    assert accepted > 1000


def test_collisions_agree_on_every_one_of_twenty_thousand_pairs(scene, reference):
    rng, pairs = np.random.default_rng(4), 20_000
    x = 100 + np.stack([np.zeros(pairs), rng.uniform(-9, 9, pairs)])
    aside = rng.choice([0, 0, 4, 1], pairs) * rng.uniform(-1, 1, pairs)
    y = 8 + np.stack([np.zeros(pairs), aside])
    turned = (rng.random((2, pairs)) < 0.6) & (aside != 0)
    heading = np.where(turned, rng.normal(0, 0.4, (2, pairs)), 0)
    state = scene(x, y, heading=heading, speed=rng.uniform(-5, 35, (2, pairs)))
    after = jax.jit(lambda s: collide(s, along_the_road(s.x), 0.2))(state)
    crashed, struck = np.asarray(after.crashed), np.asarray(after.struck)
    push = np.stack([np.asarray(after.push_x), np.asarray(after.push_y)])
    for i in range(pairs):
        first, second = reference.make_road(one(state, i)).vehicles
        first.handle_collisions(second, 0.2)
        assert crashed[:, i].tolist() == [first.crashed, second.crashed]
        assert struck[:, i].tolist() == [first.impact is not None, second.impact is not None]
        if first.impact is not None:
            np.testing.assert_allclose(push[:, 0, i], first.impact, atol=1e-9)
            np.testing.assert_allclose(push[:, 1, i], second.impact, atol=1e-9)
    assert 0.1 < crashed.mean() < 0.9
    assert (struck & ~crashed).sum() > 500


def test_collisions_in_a_crowd(scene, reference):
    rng, scenes, n = np.random.default_rng(5), 40, 14
    leaves = random_scene(rng, n, scenes, road_lanes=2, span=40)
    leaves["x"] += rng.uniform(0, 0.01, (n, scenes))
    state = scene(leaves.pop("x"), leaves.pop("y"), **leaves)
    after = collide(state, along_the_road(state.x), 0.2)
    for i in range(scenes):
        road = reference.make_road(one(state, i))
        for k, vehicle in enumerate(road.vehicles):
            for other in road.vehicles[k + 1 :]:
                vehicle.handle_collisions(other, 0.2)
        for k, vehicle in enumerate(road.vehicles):
            assert bool(after.crashed[k, i]) == vehicle.crashed
            assert bool(after.struck[k, i]) == (vehicle.impact is not None)
            if vehicle.impact is not None:
                np.testing.assert_allclose([after.push_x[k, i], after.push_y[k, i]], vehicle.impact, atol=1e-9)


@pytest.mark.parametrize(("mixed", "steps"), [(False, 90), (True, 25)], ids=["normal traffic", "mixed traffic"])
def test_whole_scene_drives_alike(reference, exact_params, mixed, steps):
    """Agents idle; five physics steps a policy step; every vehicle stays within a micrometre of the reference's.

    The mixed scene stops before its first rear-end contact of two vehicles on one line whose headings differ by
    rounding only (step 27): which of the two goes left is an accident in the reference.
    """
    env = HeterogeneousHighway(act_order="sequential")
    params = default_params(env.config)
    share = jnp.float32(0.3 if mixed else 0.0)
    state = spawn(jax.random.key(7), params.replace(aggressive=share, defensive=share), env.config)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
    road = reference.make_road({name: np.asarray(getattr(state, name)) for name in LEAVES})
    step = jax.jit(env._step_batch)
    state, traced = jax.tree.map(lambda leaf: leaf[..., None], state), exact_params()
    idle = jnp.ones((5, 1), jnp.int32)
    for _ in range(steps):
        state, _ = step(state, idle, traced)
        for _ in range(5):
            road.act()
            road.step(0.2)
        expected = reference.read(road)
        for name in ("x", "y", "heading", "speed"):
            np.testing.assert_allclose(getattr(state, name)[:, 0], expected[name], atol=1e-6, err_msg=name)
        for name in ("target_lane", "crashed"):
            np.testing.assert_array_equal(getattr(state, name)[:, 0], expected[name], err_msg=name)
    assert bool(state.crashed.any())


@pytest.fixture(scope="module")
def stock_env():
    import gymnasium
    import highway_env

    gymnasium.register_envs(highway_env)
    limits = {"x": [-100, 100], "y": [-100, 100], "vx": [-20, 20], "vy": [-20, 20]}
    rows = {"type": "Kinematics", "vehicles_count": 15, "features_range": limits}
    env = gymnasium.make(
        "highway-v0",
        config={
            "controlled_vehicles": 5,
            "lanes_count": 8,
            "simulation_frequency": 5,
            "duration": 90,
            "action": {"type": "MultiAgentAction", "action_config": {"type": "DiscreteMetaAction"}},
            "observation": {"type": "MultiAgentObservation", "observation_config": rows},
        },
    ).unwrapped
    env.reset(seed=3)
    yield env
    env.close()


def test_observation_and_reward(scene, stock_env, exact_params):
    rng = np.random.default_rng(6)
    config, params = HighwayConfig(), exact_params()
    agents = np.asarray(agent_ids(config))
    for _ in range(12):
        rows, *_ = stock_env.step(tuple(int(a) for a in rng.integers(0, 5, 5)))
        cars = stock_env.road.vehicles
        state = scene(
            [c.position[0] for c in cars],
            [c.position[1] for c in cars],
            heading=[c.heading for c in cars],
            speed=[c.speed for c in cars],
            target_lane=[c.target_lane_index[2] for c in cars],
            crashed=[c.crashed for c in cars],
            kind=[CONTROLLED if c in stock_env.controlled_vehicles else NORMAL for c in cars],
        )
        assert np.flatnonzero(state.kind[:, 0] == CONTROLLED).tolist() == agents.tolist()
        np.testing.assert_allclose(observe(state, config)[..., 0], np.stack(rows), atol=1e-6)
        mine = jax.tree.map(lambda leaf: leaf[agents] if leaf.shape[0] == 55 else leaf, state)
        reward = sum(reward_terms(mine, params, config).values())[:, 0]
        vehicle = stock_env.controlled_vehicles[0]
        for index, other in enumerate(stock_env.controlled_vehicles):
            stock_env.controlled_vehicles[0] = other  # the stock reward looks at the first vehicle only
            np.testing.assert_allclose(reward[index], stock_env._reward(None), atol=1e-9)
            stock_env.controlled_vehicles[0] = vehicle if index else other


def test_meta_actions(reference):
    names = ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")
    for y, lane in ((0.0, 0), (3.1, 1), (28.0, 7), (13.0, 3), (4.0, 3), (9.9, 2)):
        for speed in (-3, 0, 17.4, 20, 22.5, 22.6, 25, 27.4, 27.5, 27.6, 31, 39):
            for target_speed in (20.0, 25.0, 30.0):
                for action, name in enumerate(names):
                    row = {"x": 100.0, "y": y, "heading": 0.0, "speed": speed, "target_speed": target_speed,
                           "target_lane": lane, "kind": CONTROLLED, "crashed": False}  # fmt: skip
                    (vehicle,) = reference.make_road({key: [value] for key, value in row.items()}).vehicles
                    vehicle.act(name)
                    new_lane, new_speed = _meta(action, y, speed, lane, target_speed)
                    assert (new_lane, new_speed) == (vehicle.target_lane_index[2], vehicle.target_speed)


def _meta(action, y, speed, lane, target_speed):
    new_lane, new_speed = _jitted_meta(action, float(y), float(speed), lane, float(target_speed))
    return int(new_lane), float(new_speed)


_jitted_meta = jax.jit(lambda a, y, v, lane, speed: meta_action(a, y, v, lane, speed, 8))
