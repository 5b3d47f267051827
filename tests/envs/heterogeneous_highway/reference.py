"""The reference simulator, highway-env 1.12.x, set up as our road: roads and vehicles from our states, and back.

`AggressiveVehicle` and `DefensiveVehicle` here are written after the published fork, on the stock classes; the stock
library's own classes of these names are other models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from highway_env.road.road import Road, RoadNetwork
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import ControlledVehicle, MDPVehicle
from highway_env.vehicle.kinematics import Vehicle

CONTROLLED, NORMAL, AGGRESSIVE, DEFENSIVE = range(4)
LANES = 8


class NormalVehicle(IDMVehicle):
    POLITENESS = 0.2


class _HoldsItsSpeed(IDMVehicle):
    """Decides on lanes as MOBIL says, computes an IDM acceleration and drives at its target speed all the same."""

    ABORT_SCALE = 1.0

    def act(self, action: Any = None) -> None:
        if self.crashed:
            return
        self.change_lane_policy()
        steering = self.steering_control(self.target_lane_index)
        Vehicle.act(self, {"steering": steering, "acceleration": self.speed_control(self.target_speed)})

    def change_lane_policy(self) -> None:
        if self.lane_index != self.target_lane_index:
            for v in self.road.vehicles:
                if (
                    v is not self
                    and v.lane_index != self.target_lane_index
                    and isinstance(v, ControlledVehicle)
                    and v.target_lane_index == self.target_lane_index
                    and 0 < self.ABORT_SCALE * self.lane_distance_to(v) < self.desired_gap(self, v)
                ):
                    self.target_lane_index = self.lane_index
                    break
            return
        if self.timer <= self.LANE_CHANGE_DELAY:
            return
        self.timer = 0
        for lane_index in self.road.network.side_lanes(self.lane_index):
            if self.road.network.get_lane(lane_index).is_reachable_from(self.position) and self.mobil(lane_index):
                self.target_lane_index = lane_index


class AggressiveVehicle(_HoldsItsSpeed):
    ACC_MAX, COMFORT_ACC_MAX, COMFORT_ACC_MIN = 9.0, 6.0, -9.0
    DISTANCE_WANTED, TIME_WANTED, POLITENESS = 5.5, 1.2, 0.0
    LANE_CHANGE_MIN_ACC_GAIN, LANE_CHANGE_MAX_BRAKING_IMPOSED, LANE_CHANGE_DELAY = 0.1, 9.0, 0.5
    ABORT_SCALE = 0.5


class DefensiveVehicle(_HoldsItsSpeed):
    ACC_MAX, COMFORT_ACC_MAX, COMFORT_ACC_MIN = 5.0, 2.0, -4.0
    DISTANCE_WANTED, TIME_WANTED, POLITENESS = 18.0, 1.8, 0.5
    LANE_CHANGE_MIN_ACC_GAIN, LANE_CHANGE_MAX_BRAKING_IMPOSED, LANE_CHANGE_DELAY = 0.3, 2.0, 1.0


CLASSES = {CONTROLLED: MDPVehicle, NORMAL: NormalVehicle, AGGRESSIVE: AggressiveVehicle, DEFENSIVE: DefensiveVehicle}


def make_road(leaves: dict[str, Any], lanes: int = LANES) -> Road:
    """A road with the vehicles of one lane of our state. leaves: by name, `[n]`."""
    road = Road(network=RoadNetwork.straight_road_network(lanes, speed_limit=30))
    for i in range(len(leaves["x"])):
        vehicle = CLASSES[int(leaves["kind"][i])](
            road,
            [float(leaves["x"][i]), float(leaves["y"][i])],
            heading=float(leaves["heading"][i]),
            speed=float(leaves["speed"][i]),
        )
        vehicle.target_lane_index = ("0", "1", int(leaves["target_lane"][i]))
        vehicle.target_speed = float(leaves["target_speed"][i])
        vehicle.crashed = bool(leaves["crashed"][i])
        if isinstance(vehicle, IDMVehicle):
            vehicle.DELTA, vehicle.timer = float(leaves["exponent"][i]), float(leaves["timer"][i])
        road.vehicles.append(vehicle)
    return road


def read(road: Road) -> dict[str, np.ndarray]:
    """The state of the vehicles of a road by the names of our leaves."""
    cars = road.vehicles
    return {
        "x": np.array([c.position[0] for c in cars]),
        "y": np.array([c.position[1] for c in cars]),
        "heading": np.array([c.heading for c in cars]),
        "speed": np.array([c.speed for c in cars]),
        "target_lane": np.array([c.target_lane_index[2] for c in cars]),
        "crashed": np.array([c.crashed for c in cars]),
    }
