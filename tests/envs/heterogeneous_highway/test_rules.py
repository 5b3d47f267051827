"""The road against a plain re-telling of its rules (`oracle.py`): whole policy steps on crowded random scenes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.envs.heterogeneous_highway.env import HeterogeneousHighway
from marl.envs.heterogeneous_highway.ordering import along_the_road
from marl.envs.heterogeneous_highway.params import CONTROLLED, HighwayConfig
from marl.envs.heterogeneous_highway.state import agent_ids, lane_of
from marl.envs.heterogeneous_highway.traffic import decide, neighbours

N, SCENES = 20, 40


@functools.partial(jax.jit, static_argnums=2)
def decided(state, drivers, config):
    return decide(state, along_the_road(state.x), drivers, config)


def crowded(seed: int, agents: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random scenes `[N, SCENES]` with every irregularity: dense, between lanes, exact ties, crashes, odd headings."""
    rng = np.random.default_rng(seed)
    shape = (N, SCENES)
    x = 300 + rng.uniform(0, 220, shape)
    x[1::4] = np.round(x[1::4] / 5) * 5
    x[5] = x[2]  # exactly level
    x[9] = x[2]
    lane = rng.integers(0, 8, shape)
    y = 4.0 * lane + np.where(rng.random(shape) < 0.4, rng.uniform(-2.2, 2.2, shape), 0)
    speed = np.where(rng.random(shape) < 0.1, 0.0, rng.uniform(5, 32, shape))
    target_lane = np.clip(lane + rng.choice([-1, 0, 0, 0, 1], size=shape), 0, 7)
    kind = rng.integers(1, 4, shape)
    kind[list(agents)] = CONTROLLED
    return {
        "x": x,
        "y": y,
        "heading": np.where(rng.random(shape) < 0.5, rng.normal(0, 0.08, shape), 0),
        "speed": speed,
        "target_speed": np.where(kind == CONTROLLED, 25.0, rng.uniform(21, 24, shape)),
        "target_lane": target_lane,
        "timer": rng.uniform(0, 1.4, shape),
        "exponent": rng.uniform(3, 4.5, shape),
        "kind": kind,
        "crashed": rng.random(shape) < 0.06,
    }


@pytest.fixture(scope="module")
def by_mode():
    """The compiled policy step for each option, made once."""
    compiled = {}

    def step(**options):
        key = tuple(sorted(options.items()))
        if key not in compiled:
            env = HeterogeneousHighway(controlled_vehicles=3, background_vehicles=N - 3, **options)
            compiled[key] = env, jax.jit(env._step_batch)
        return compiled[key]

    return step


@pytest.mark.parametrize(
    "options",
    [
        {"act_order": "sequential"},
        {"act_order": "jacobi", "hetero_longitudinal": "idm"},
    ],
    ids=["sequential, released", "jacobi, idm"],
)
def test_policy_steps_follow_the_rules(x64, scene, oracle, exact_params, by_mode, options):
    env, step = by_mode(**options)
    agents = agent_ids(env.config)
    leaves = crowded(3, agents)
    state = scene(leaves.pop("x"), leaves.pop("y"), agents=3, **leaves)
    state = state.replace(ended=state.crashed[jnp.asarray(agents)])
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*leaf.shape[:-1], SCENES)), exact_params(**options))
    rng = np.random.default_rng(0)
    roads = [_road(oracle, state, i, agents, options) for i in range(SCENES)]
    for _ in range(3):
        actions = rng.integers(0, 5, (3, SCENES))
        state, _ = step(state, jnp.asarray(actions, jnp.int32), params)
        for i, road in enumerate(roads):
            road.step(actions[:, i].tolist())
        for name, attribute in (("x", "x"), ("y", "y"), ("heading", "psi"), ("speed", "v"), ("timer", "timer")):
            expected = np.array([[getattr(car, attribute) for car in road.cars] for road in roads]).T
            np.testing.assert_allclose(getattr(state, name), expected, atol=1e-8, err_msg=name)
        for name in ("target_lane", "crashed"):
            expected = np.array([[getattr(car, name) for car in road.cars] for road in roads]).T
            np.testing.assert_array_equal(getattr(state, name), expected, err_msg=name)
    assert 0.1 < float(state.crashed.mean()) < 0.95
    assert bool((state.target_lane != lane_of(state.y, 8)).any())


def _road(oracle, state, i, agents, options):
    def of(name):
        return np.asarray(getattr(state, name))[:, i].tolist()

    columns = (
        "x", "y", "heading", "speed", "target_speed", "target_lane", "timer", "exponent", "kind", "crashed",
    )  # fmt: skip
    cars = [oracle.Car(*row) for row in zip(*(of(name) for name in columns), strict=True)]
    return oracle.Oracle(
        cars, list(agents), hetero=options.get("hetero_longitudinal", "released"), order=options["act_order"]
    )


def test_neighbours_are_found_as_by_looking_at_everybody(x64, scene, oracle):
    leaves = crowded(11, (0, 7, 14))
    state = scene(leaves.pop("x"), leaves.pop("y"), **leaves)
    lane = lane_of(state.y, 8)
    candidates = jnp.stack([lane, lane - 1, lane + 1, state.target_lane])
    found = jax.jit(lambda x, y, c: neighbours(y, along_the_road(x), c, 8))(state.x, state.y, candidates)
    found = jax.tree.map(np.asarray, found)
    candidates = np.asarray(candidates)
    for i in range(SCENES):
        road = _road(oracle, state, i, (0,), {"act_order": "jacobi"})
        ids = {id(car): number for number, car in enumerate(road.cars)}
        for c in range(4):
            for k, car in enumerate(road.cars):
                where = int(candidates[c, k, i])
                if 0 <= where < 8:
                    expected = tuple(-1 if v is None else ids[id(v)] for v in road.neighbours(car, where))
                    assert (int(found.front[c, k, i]), int(found.rear[c, k, i])) == expected


def test_order_along_the_road_puts_the_later_of_two_level_vehicles_first():
    order = along_the_road(jnp.asarray([3.0, 1.0, 3.0, 2.0, 3.0])[:, None])
    assert order.vehicle[:, 0].tolist() == [1, 3, 4, 2, 0]
    assert order.place[:, 0].tolist() == [4, 0, 3, 1, 2]
    assert order.level[:, 0].tolist() == [2, 0, 2, 1, 2]


def test_a_driver_turns_back_only_for_someone_ahead_who_is_changing_into_the_same_lane(scene, drivers_of):
    for x, lane, target, expected in (
        ([100, 115], [1, 3], [2, 2], [1, 2]),  # both want lane 2: the one behind gives way
        ([100, 95], [1, 3], [2, 2], [2, 3]),  # the other way round
        ([100, 115], [1, 2], [2, 2], [2, 2]),  # it is there already
        ([100, 200], [1, 3], [2, 2], [2, 2]),  # too far ahead to matter
    ):
        with jax.enable_x64(True):
            state = scene(x, 4 * np.asarray(lane), target_lane=target, speed=[22, 22])
            for order in ("jacobi", "sequential"):
                decision = decided(state, drivers_of(state), HighwayConfig(act_order=order))
                assert decision.target_lane[:, 0].tolist() == expected


def test_sequential_order_lets_the_first_of_three_free_the_way_for_the_second(x64, scene, drivers_of):
    """Vehicle 0 gives way to 2, so that 1, behind 0 and heading for the same lane, no longer has to give way to 0."""
    state = scene([150, 120, 180], [4, 12, 12], target_lane=[2, 2, 2], speed=[22, 22, 22])
    targets = {}
    for order in ("jacobi", "sequential"):
        decision = decided(state, drivers_of(state), HighwayConfig(act_order=order))
        targets[order] = decision.target_lane[:, 0].tolist()
    assert targets == {"jacobi": [1, 3, 2], "sequential": [1, 2, 2]}
