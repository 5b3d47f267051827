"""The rules of the road once more, in plain Python and float64: one vehicle after another, every pair, no shortcuts.

Written from the rules, not from the JAX code: no shared function, no sorting, no vectors.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

LEFT, IDLE, RIGHT, FASTER, SLOWER = range(5)
CONTROLLED, NORMAL, AGGRESSIVE, DEFENSIVE = range(4)


@dataclasses.dataclass(frozen=True)
class Temper:
    acc_max: float
    a: float
    b: float
    d0: float
    tau: float
    politeness: float
    min_gain: float
    max_braking: float
    delay: float
    min_speed: float
    abort_scale: float


TEMPERS = {
    NORMAL: Temper(6, 3, 5, 10, 1.5, 0.2, 0.2, 2, 1.0, 1.0, 1.0),
    AGGRESSIVE: Temper(9, 6, 9, 5.5, 1.2, 0.0, 0.1, 9, 0.5, 0.0, 0.5),
    DEFENSIVE: Temper(5, 2, 4, 18, 1.8, 0.5, 0.3, 2, 1.0, 0.0, 1.0),
}


@dataclasses.dataclass
class Car:
    x: float
    y: float
    psi: float
    v: float
    target_speed: float
    target_lane: int
    timer: float
    delta: float
    kind: int
    crashed: bool
    impact: tuple[float, float] | None = None

    def velocity(self) -> tuple[float, float]:
        return self.v * math.cos(self.psi), self.v * math.sin(self.psi)


def nz(x: float) -> float:
    return x if abs(x) > 0.01 else (0.01 if x >= 0 else -0.01)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


class Oracle:
    """A road with its cars in list order."""

    def __init__(
        self,
        cars: list[Car],
        agents: list[int],
        lanes: int = 8,
        frequency: int = 5,
        hetero: str = "released",
        order: str = "sequential",
    ) -> None:
        self.cars, self.agents, self.lanes, self.dt = cars, agents, lanes, 1 / frequency
        self.substeps, self.hetero, self.order = frequency, hetero, order

    def lane(self, car: Car) -> int:
        return int(np.argmin([abs(car.y - 4 * lane) for lane in range(self.lanes)]))

    def neighbours(self, me: Car, lane: int) -> tuple[Car | None, Car | None]:
        front = rear = None
        for car in self.cars:
            if car is me or abs(car.y - 4 * lane) > 3:
                continue
            if car.x >= me.x and (front is None or car.x <= front.x):
                front = car
            if car.x < me.x and (rear is None or car.x > rear.x):
                rear = car
        return front, rear

    def desired_gap(self, t: Temper, ego: Car, front: Car) -> float:
        (ex, ey), (fx, fy) = ego.velocity(), front.velocity()
        dv = (ex - fx) * math.cos(ego.psi) + (ey - fy) * math.sin(ego.psi)
        return t.d0 + ego.v * t.tau + ego.v * dv / (2 * math.sqrt(t.a * t.b))

    def idm(self, decider: Car, ego: Car | None, front: Car | None) -> float:
        if ego is None:
            return 0.0
        t = TEMPERS[decider.kind]
        acceleration = t.a * (1 - (max(ego.v, 0) / abs(nz(ego.target_speed))) ** decider.delta)
        if front is not None:
            acceleration -= t.a * (self.desired_gap(t, ego, front) / nz(front.x - ego.x)) ** 2
        return acceleration

    def mobil(self, me: Car, lane: int) -> bool:
        t = TEMPERS[me.kind]
        new_front, new_rear = self.neighbours(me, lane)
        old_front, old_rear = self.neighbours(me, self.lane(me))
        follower = self.idm(me, new_rear, me)
        if follower < -t.max_braking:
            return False
        gain = self.idm(me, me, new_front) - self.idm(me, me, old_front)
        gain += t.politeness * (
            follower
            - self.idm(me, new_rear, new_front)
            + self.idm(me, old_rear, old_front)
            - self.idm(me, old_rear, me)
        )
        return gain >= t.min_gain

    def choose_lane(self, me: Car, targets: list[int]) -> None:
        """targets: what the others aim at, as `me` sees it."""
        t, lane = TEMPERS[me.kind], self.lane(me)
        if lane != me.target_lane:
            for other, target in zip(self.cars, targets, strict=True):
                if other is me or target != me.target_lane or self.lane(other) == me.target_lane:
                    continue
                if 0 < t.abort_scale * (other.x - me.x) < self.desired_gap(t, me, other):
                    me.target_lane = lane
                    return
            return
        if me.timer <= t.delay:
            return
        me.timer = 0.0
        for candidate in (lane - 1, lane + 1):
            if not 0 <= candidate < self.lanes or abs(me.y - 4 * candidate) > 8 or abs(me.v) < t.min_speed:
                continue
            if self.mobil(me, candidate):
                me.target_lane = candidate

    def steering(self, me: Car) -> float:
        heading = clip(-(me.y - 4 * me.target_lane) / 0.6 / nz(me.v), -1, 1)
        heading = clip(math.asin(heading), -math.pi / 4, math.pi / 4)
        turn = (heading - me.psi + math.pi) % (2 * math.pi) - math.pi
        slip = math.asin(clip(2.5 / nz(me.v) * 5 * turn, -1, 1))
        return clip(math.atan(2 * math.tan(slip)), -math.pi / 3, math.pi / 3)

    def acceleration(self, me: Car) -> float:
        follows = me.kind == NORMAL or (self.hetero == "idm" and me.kind != CONTROLLED)
        if not follows:
            return (me.target_speed - me.v) / 0.6
        lane = self.lane(me)
        value = self.idm(me, me, self.neighbours(me, lane)[0])
        if lane != me.target_lane:
            value = min(value, self.idm(me, me, self.neighbours(me, me.target_lane)[0]))
        limit = TEMPERS[me.kind].acc_max
        return clip(value, -limit, limit)

    def act(self) -> list[tuple[float, float]]:
        before = [car.target_lane for car in self.cars]
        for car in self.cars:
            if car.kind != CONTROLLED and not car.crashed:
                self.choose_lane(car, before if self.order == "jacobi" else [c.target_lane for c in self.cars])
        return [(self.steering(car), self.acceleration(car)) for car in self.cars]

    def move(self, car: Car, steering: float, acceleration: float) -> None:
        if car.crashed:
            steering, acceleration = 0.0, -car.v
        if car.v > 40:
            acceleration = min(acceleration, 40 - car.v)
        elif car.v < -40:
            acceleration = max(acceleration, -40 - car.v)
        beta = math.atan(math.tan(steering) / 2)
        car.x += car.v * math.cos(car.psi + beta) * self.dt
        car.y += car.v * math.sin(car.psi + beta) * self.dt
        if car.impact is not None:
            car.x, car.y = car.x + car.impact[0], car.y + car.impact[1]
            car.crashed, car.impact = True, None
        car.psi += car.v * math.sin(beta) / 2.5 * self.dt
        car.v += acceleration * self.dt
        car.timer += self.dt

    def corners(self, car: Car) -> np.ndarray:
        c, s = math.cos(car.psi), math.sin(car.psi)
        body = np.array([[-2.5, -1.0], [-2.5, 1.0], [2.5, 1.0], [2.5, -1.0]])
        return body @ np.array([[c, s], [-s, c]]) + [car.x, car.y]

    def contact(self, first: Car, second: Car) -> tuple[bool, bool, np.ndarray]:
        """(touching, about to touch, push on the first)."""
        a, b = self.corners(first), self.corners(second)
        motion = (np.array(first.velocity()) - second.velocity()) * self.dt
        touching = about = True
        least, push = math.inf, np.zeros(2)
        axes = []  # the reference's outline starts at the left rear, so that its first normal points backwards
        for c, s in ((math.cos(car.psi), math.sin(car.psi)) for car in (first, second)):
            axes += [np.array([-c, -s]), np.array([-s, c])]
        for axis in axes:
            (a0, a1), (b0, b1) = ((min(s @ axis), max(s @ axis)) for s in (a, b))
            gap = max(a0 - b1, b0 - a1)
            moved = motion @ axis
            swept = max(a0 + min(moved, 0) - b1, b0 - a1 - max(moved, 0))
            touching, about = touching and gap <= 0, about and swept <= 0
            if abs(swept) < least - 1e-12:
                least = abs(swept)
                side = np.array([first.x - second.x, first.y - second.y]) @ axis
                push = axis * least * (1 if side > 0 else -1)
        return touching, about, push

    def collide(self) -> None:
        for i, first in enumerate(self.cars):
            for second in self.cars[i + 1 :]:
                if math.hypot(second.x - first.x, second.y - first.y) > math.sqrt(29) + first.v * self.dt:
                    continue
                touching, about, push = self.contact(first, second)
                if about:
                    first.impact, second.impact = tuple(push / 2), tuple(-push / 2)
                if touching:
                    first.crashed = second.crashed = True

    def meta(self, car: Car, action: int) -> None:
        if action in (FASTER, SLOWER):
            index = int(np.clip(np.round((car.v - 20) / 10 * 2), 0, 2)) + (1 if action == FASTER else -1)
            car.target_speed = (20.0, 25.0, 30.0)[int(np.clip(index, 0, 2))]
        if action in (LEFT, RIGHT):
            lane = int(np.clip(car.target_lane + (1 if action == RIGHT else -1), 0, self.lanes - 1))
            if abs(car.y - 4 * lane) <= 8:
                car.target_lane = lane

    def step(self, actions: list[int]) -> None:
        """One policy step; an agent that has crashed before it does nothing."""
        for index, action in zip(self.agents, actions, strict=True):
            if not self.cars[index].crashed:
                self.meta(self.cars[index], action)
        for _ in range(self.substeps):
            commands = self.act()
            for car, command in zip(self.cars, commands, strict=True):
                self.move(car, *command)
            self.collide()
