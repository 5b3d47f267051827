"""Our side of `ppo_cartpole`: one training run for every line on stdin, in the fused placement."""

from __future__ import annotations

import json
import sys
import time

import jax

from marl.agents.ppo.algorithm import PPO
from marl.dataflow.fused import Fused
from marl.envs.probe.cartpole import CartPole

UPDATES, PER_DISPATCH = 512, 64

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
)
(role,) = env.roles
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
    began = time.perf_counter()
    env_steps, returns, episodes = 0, 0.0, 0
    for _ in range(UPDATES // PER_DISPATCH):
        state, result = program.dispatch(state, [env_steps])
        env_steps += int(result.env_steps[0])  # rows that reset a world are not counted
        last = result
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    mean_return = float(last.returns["agent"][0].mean() / max(int(last.episodes[0]), 1)) if False else None
    print(json.dumps({"env_steps": env_steps, "seconds": seconds}), flush=True)
