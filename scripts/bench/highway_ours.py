"""Our side of `highway`: for every number of seconds on stdin, env steps for that long and the CPU seconds they
took.
"""

from __future__ import annotations

import json
import os
import sys
import time

import jax
import jax.numpy as jnp

from marl.agents.scripted.policies import Random
from marl.core.collect import collect, init_lanes
from marl.core.config import AgentConfig
from marl.envs.heterogeneous_highway.env import HeterogeneousHighway

LANES, STEPS = 128, 32  # copies of the road, policy steps of each a dispatch

env = HeterogeneousHighway(politeness_normal=0.2)
params = env.default_params.replace(aggressive=jnp.float32(0), defensive=jnp.float32(0))  # everybody drives normally
env_params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (LANES, *leaf.shape)), params)
policies = {"random": Random(AgentConfig(), env.roles)}


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def advance(lanes):
    lanes, rollout = collect(env, policies, {"random": ()}, lanes, STEPS, record=("random",))
    # The observations are used, so that nobody can say that they were never computed.
    seen = sum(leaf.mean() for leaf in jax.tree.leaves(rollout.step.obs))
    return lanes, (~rollout.step.last[:-1]).sum(), seen


program = jax.jit(advance, donate_argnums=0)
start = jax.jit(lambda keys: init_lanes(env, policies, {"random": ()}, keys, env_params=env_params))
lanes = start(jax.random.split(jax.random.key(0), LANES))
for _ in range(4):  # compile, and leave the first seconds of the first episodes behind
    lanes, steps, seen = jax.block_until_ready(program(lanes))
print(json.dumps({"jax": jax.__version__, "lanes": LANES, "steps_a_dispatch": STEPS}), flush=True)

for line in sys.stdin:
    seconds, done = float(line), 0
    began, cpu_began = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - began < seconds:
        lanes, steps, seen = program(lanes)
        done += int(steps)
    print(json.dumps({"env_steps": done, "cpu_s": cpu_seconds() - cpu_began}), flush=True)
