"""What the drivers decide: neighbours, lane changes, acceleration. Arrays are `[n, lanes]`, candidates `[c, n,
lanes]`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marl.envs.common.car_following import Driver, desired_gap, free_acceleration, interaction
from marl.envs.common.lane_layout import computed_once

from .dynamics import speed_control
from .ordering import UNROLL, Order
from .params import CONTROLLED, LANE_WIDTH, NORMAL, HighwayConfig
from .state import HighwayState, lane_of

ON_LANE = 3.0  # a vehicle counts on every lane whose centre is this near [m]


class Neighbours(NamedTuple):
    """List positions of the vehicle in front and behind, -1 where there is none."""

    front: jax.Array
    rear: jax.Array


def neighbours(y: jax.Array, order: Order, lane: jax.Array, lanes: int) -> Neighbours:
    """Nearest vehicles on each candidate `lane` `[c, n, lanes]`, seen from every vehicle; lanes off the road give any
    answer.

    One that is exactly level counts as in front; of several at one place the later in the list is the front one, the
    earlier the rear one. Two sweeps along the road remember, lane by lane, the vehicle met last.
    """
    n, batch = y.shape
    centre = LANE_WIDTH * jnp.arange(lanes, dtype=y.dtype)[:, None]
    on_lane = jnp.abs(order.arranged(y)[:, None] - centre) <= ON_LANE  # [n places, lanes of the road, lanes]

    def meet(met: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        now = jnp.where(place[0], place[1], met)
        return now, (met, now)

    nobody = jnp.full((lanes, batch), -1, jnp.int32)
    sweep = (on_lane, order.vehicle)
    _, (_, at_or_ahead) = jax.lax.scan(meet, nobody, sweep, reverse=True)
    _, (behind, _) = jax.lax.scan(meet, nobody, sweep)
    at_or_ahead = jnp.concatenate([at_or_ahead, nobody[None]]).reshape(-1, batch)
    behind = behind.reshape(-1, batch)

    def look(table: jax.Array, place: jax.Array, lane: jax.Array) -> jax.Array:
        row = place * lanes + jnp.clip(lane, 0, lanes - 1)
        return jnp.take_along_axis(table, row.reshape(-1, batch), axis=0).reshape(row.shape)

    front = look(at_or_ahead, order.level, lane)
    front = jnp.where(front == jnp.arange(n)[:, None], look(at_or_ahead, order.place + 1, lane), front)
    return Neighbours(front, look(behind, order.level, lane))


class View(NamedTuple):
    """What the laws use of a vehicle: position along the road, speed, direction, target speed."""

    x: jax.Array
    speed: jax.Array
    cos: jax.Array
    sin: jax.Array
    target_speed: jax.Array

    def at(self, index: jax.Array) -> View:
        """The vehicles at list positions `index` `[c, n, lanes]`; position -1 gives some vehicle, to be masked out."""
        flat = jnp.maximum(index, 0).reshape(-1, index.shape[-1])
        return View(*(jnp.take_along_axis(leaf, flat, axis=0).reshape(index.shape) for leaf in self))


def closing_speed(ego: View, front: View) -> jax.Array:
    """Relative velocity along the direction of `ego`; positive when the gap shrinks [m/s]."""
    return ego.speed - front.speed * (front.cos * ego.cos + front.sin * ego.sin)


def braking_for(driver: Driver, ego: View, front: View) -> jax.Array:
    """What `front` takes from the acceleration of `ego`, by the laws of `driver` (who may be a third vehicle)
    [m/s2].
    """
    return interaction(driver, front.x - ego.x, ego.speed, closing_speed(ego, front))


class Decision(NamedTuple):
    """target_lane: i32.  timer: [s].  acceleration: [m/s2]. All `[n, lanes]`."""

    target_lane: jax.Array
    timer: jax.Array
    acceleration: jax.Array


def lane_change_wanted(
    driver: Driver, exponent: jax.Array, me: View, front: View, rear: View, nearby: Neighbours
) -> jax.Array:
    """MOBIL for the candidates 1 and 2 (left, right) against candidate 0, the current lane: bool `[2, n, lanes]`.

    A change is wanted if it does not force the new follower to brake harder than `safe_braking` and if the driver's
    own gain plus politeness times the gain of both followers reaches `min_gain`. Every acceleration is computed with
    the deciding driver's constants; free-road parts cancel in the gain.
    """
    old_front, new_front = View(*(leaf[:1] for leaf in front)), View(*(leaf[1:3] for leaf in front))
    old_rear, new_rear = View(*(leaf[:1] for leaf in rear)), View(*(leaf[1:3] for leaf in rear))
    has_front, has_rear = nearby.front >= 0, nearby.rear >= 0

    def where(present: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(present, value, 0)

    behind_me = braking_for(driver, new_rear, me)
    follower_accel = free_acceleration(driver, new_rear.speed, new_rear.target_speed, exponent) - behind_me
    safe = ~has_rear[1:3] | (follower_accel >= -driver.safe_braking)

    mine = where(has_front[:1], braking_for(driver, me, old_front)) - where(
        has_front[1:3], braking_for(driver, me, new_front)
    )
    new_follower = where(has_front[1:3], braking_for(driver, new_rear, new_front)) - behind_me
    old_follower = braking_for(driver, old_rear, me) - where(has_front[:1], braking_for(driver, old_rear, old_front))
    others = where(has_rear[1:3], new_follower) + where(has_rear[:1], old_follower)
    return safe & (mine + driver.politeness * others >= driver.min_gain)


def gives_way(
    driver: Driver, me: View, them: View, my_target: jax.Array, their_target: jax.Array, they_move: jax.Array
) -> jax.Array:
    """Whether I give up my change because they, close in front and not there yet, are changing to the same lane."""
    distance = driver.abort_scale * (them.x - me.x)
    near = (distance > 0) & (distance < desired_gap(driver, me.speed, closing_speed(me, them)))
    return near & they_move & (their_target == my_target)


def settle(
    driver: Driver,
    view: View,
    lane: jax.Array,
    target: jax.Array,
    chosen: jax.Array,
    deciding: jax.Array,
    act_order: str,
) -> jax.Array:
    """Target lanes at the end of the round: `chosen`, but `lane` for those who turn back on their way to another lane.

    target: at the start of the round; what the others are seen to aim at (in sequential order: what those earlier in
    the list have settled on).
    """
    mover = deciding & (lane != target)
    if act_order == "jacobi":

        def look(k: jax.Array, found: jax.Array) -> jax.Array:
            them = jax.tree.map(lambda leaf: leaf[k], view)
            return found | gives_way(driver, view, them, target, target[k], (lane != target)[k])

        found = jax.lax.fori_loop(0, lane.shape[0], look, jnp.zeros(lane.shape, bool), unroll=UNROLL)
        return jnp.where(mover & found, lane, chosen)

    def decide_one(i: jax.Array, target: jax.Array) -> jax.Array:
        def row(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, i, 1, axis=0)

        mine = row(target)
        found = gives_way(jax.tree.map(row, driver), jax.tree.map(row, view), view, mine, target, lane != target).any(
            0, keepdims=True
        )
        return jax.lax.dynamic_update_slice_in_dim(
            target, jnp.where(row(mover) & found, row(lane), row(chosen)), i, axis=0
        )

    settled: jax.Array = jax.lax.fori_loop(0, lane.shape[0], decide_one, target)
    return settled


def decide(state: HighwayState, order: Order, driver: Driver, config: HighwayConfig) -> Decision:
    """Target lane, timer and acceleration of every vehicle; agents keep the targets that their last action set.

    driver: temperaments by vehicle, leaves `[n, lanes]`.
    """
    lane = lane_of(state.y, config.lanes)
    candidates = jnp.stack([lane, lane - 1, lane + 1, state.target_lane])
    nearby = neighbours(state.y, order, candidates, config.lanes)
    cos, sin = computed_once((jnp.cos(state.heading), jnp.sin(state.heading)))
    me = View(state.x, state.speed, cos, sin, state.target_speed)
    nearby = computed_once(Neighbours(nearby.front, nearby.rear[:3]))
    front, rear = computed_once((me.at(nearby.front), me.at(nearby.rear)))

    deciding = ~state.crashed & (state.kind != CONTROLLED)
    moving = lane != state.target_lane
    due = deciding & ~moving & (state.timer > driver.delay)
    possible = (candidates[1:3] >= 0) & (candidates[1:3] < config.lanes)
    possible &= jnp.abs(state.y - LANE_WIDTH * candidates[1:3]) <= 2 * LANE_WIDTH
    possible &= due & (jnp.abs(state.speed) >= driver.min_speed)
    change = possible & lane_change_wanted(driver, state.exponent, me, front, rear, nearby)
    chosen = jnp.where(change[1], lane + 1, jnp.where(change[0], lane - 1, state.target_lane))
    target = settle(driver, me, lane, state.target_lane, chosen, deciding, config.act_order)

    slowed = jnp.where(nearby.front >= 0, braking_for(driver, me, front), 0)  # [4, n, lanes]
    on_target = jnp.where(target == lane - 1, slowed[1], jnp.where(target == lane + 1, slowed[2], slowed[3]))
    slowed = jnp.maximum(slowed[0], jnp.where(target == lane, slowed[0], on_target))
    following = free_acceleration(driver, state.speed, state.target_speed, state.exponent) - slowed
    following = jnp.clip(following, -driver.max_accel, driver.max_accel)
    follows = state.kind == NORMAL if config.hetero_longitudinal == "released" else state.kind != CONTROLLED
    acceleration = jnp.where(follows, following, speed_control(state.speed, state.target_speed))
    return Decision(target, jnp.where(due, 0, state.timer), acceleration)
