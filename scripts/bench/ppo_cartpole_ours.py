"""Our side of `ppo_cartpole`: one training run of 512 (or the given number of) updates for every line on stdin."""

from __future__ import annotations

import json
import sys
import time

import jax

from marl.agents.ppo.algorithm import PPO
from marl.dataflow.fused import Fused
from marl.envs.probe.cartpole import CartPole

UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 512
PER_DISPATCH = min(UPDATES, 64)

env = CartPole()
config = PPO.Config(
    rollout=128,
    epochs=4,
    minibatches=4,
    learning_rate=2.5e-4,
    max_grad_norm=0.5,
    activation="tanh",
    layer_norm=False,
    recurrent=False,
    last_action=False,
    agent_id=False,
    value_normalisation="none",
)
program = Fused(
    env,
    {"agent": PPO(config, env.roles)},
    ["agent"],
    {},
    num_envs=8,
    seeds=[0],
    updates_per_dispatch=PER_DISPATCH,
)
began = time.perf_counter()
program.compile(program.init())
about = {"compile_s": time.perf_counter() - began, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
print(json.dumps(about), flush=True)

for _ in sys.stdin:
    state = jax.block_until_ready(program.init())
    began, began_cpu = time.perf_counter(), time.process_time()
    env_steps = 0
    for _ in range(UPDATES // PER_DISPATCH):
        state, result = program.dispatch(state, [env_steps])
        env_steps += int(result.env_steps[0])  # rows that start an episode are not counted
    jax.block_until_ready(state)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    mean_length = float(result.length[0]) / max(int(result.episodes[0]), 1)
    print(json.dumps({"env_steps": env_steps, "seconds": seconds, "cpu_s": cpu_s, "length": mean_length}), flush=True)
