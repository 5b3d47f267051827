"""highway-env's side of `highway`: for every number of seconds on stdin, env steps for that long and their CPU
seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version

import gymnasium
import highway_env
import numpy as np
from highway_env.vehicle.behavior import IDMVehicle

gymnasium.register_envs(highway_env)
IDMVehicle.POLITENESS = 0.2
env = gymnasium.make(
    "highway-v0",
    config={
        "controlled_vehicles": 5,
        "vehicles_count": 50,
        "lanes_count": 8,
        "simulation_frequency": 5,
        "policy_frequency": 1,
        "duration": 90,
        "action": {"type": "MultiAgentAction", "action_config": {"type": "DiscreteMetaAction"}},
        "observation": {
            "type": "MultiAgentObservation",
            "observation_config": {"type": "Kinematics", "vehicles_count": 15},
        },
    },
)
road = env.unwrapped


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def step() -> None:
    """One step; an episode ends, as on our side, when all five agents have crashed or after 90 steps."""
    *_, truncated, _ = road.step(tuple(int(a) for a in rng.integers(5, size=5)))
    if truncated or all(vehicle.crashed for vehicle in road.controlled_vehicles):
        env.reset()


rng = np.random.default_rng(0)
env.reset(seed=0)
step()
print(json.dumps({"highway-env": version("highway-env"), "gymnasium": version("gymnasium")}), flush=True)

for line in sys.stdin:
    seconds, done = float(line), 0
    began, cpu_began = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - began < seconds:
        step()
        done += 1
    print(json.dumps({"env_steps": done, "cpu_s": cpu_seconds() - cpu_began}), flush=True)
