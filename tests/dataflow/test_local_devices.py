"""Each part of a local run is where `dataflow.devices` puts it, and parts on different devices fit together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from marl.runner.build import build_dataflow, resolved
from marl.runner.load import config_from
from marl.runner.plan import make_plan

env, algorithm, devices = {env!r}, {algorithm!r}, {devices!r}
agents = {{"all": {{"algorithm": algorithm, "rollout": 4, "hidden_sizes": [4]}}}}
dataflow = {{"kind": "local", "num_envs": 4, "updates_per_dispatch": 2, "devices": devices}}
data = {{"name": "x", "env": {{"id": env}}, "agents": agents, "stop": {{"env_steps": 1}}, "dataflow": dataflow}}
plan = make_plan(config_from(data))
local = build_dataflow(resolved(plan), plan)
local.init()
for _ in range(2):
    _, result = local.dispatch(local, [0])
assert int(result.env_steps[0]) > 0
run = local.runs[0]


def number(tree):
    return {{d.id for x in jax.tree.leaves(tree) for d in x.devices()}}


print("learner", number(run.stages["all"].learner.state.params))
print("server", number(run.params()))
lanes = [s.lanes.lanes.step if hasattr(s.lanes, "lanes") else s.memory for s in run.slots]
print("lanes", number(lanes))
local.close()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("env", "algorithm", "devices", "expected"),
    [
        ("gymnasium:CartPole-v1", "ppo", {"inference": "cpu:1"}, {"learner": 0, "server": 1, "lanes": 1}),
        ("gymnasium:CartPole-v1", "a3c", {"learner": "cpu:1"}, {"learner": 1, "server": 0, "lanes": 0}),
        ("probe_credit_v0", "ppo", {"actors": "cpu:1"}, {"learner": 0, "server": 0, "lanes": 1}),
    ],
)
def test_parts_are_where_they_were_put(
    env: str, algorithm: str, devices: dict[str, str], expected: dict[str, int]
) -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    program = PROGRAM.format(env=env, algorithm=algorithm, devices=devices)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{part} {{{number}}}" for part, number in expected.items()]
