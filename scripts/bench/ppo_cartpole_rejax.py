"""rejax's side of `ppo_cartpole`: one training run for every line on stdin. Runs in an environment of its own."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import jax
from rejax import get_algo

TOTAL = 524_288

algo = get_algo("ppo").create(
    env="CartPole-v1",
    num_envs=8,
    num_steps=128,
    num_epochs=4,
    num_minibatches=4,
    total_timesteps=TOTAL,
    eval_freq=TOTAL,
    skip_initial_evaluation=True,
    learning_rate=2.5e-4,
    max_grad_norm=0.5,
    agent_kwargs={"activation": "tanh"},
)
algo = algo.replace(eval_callback=lambda *_: ())
began = time.perf_counter()
train = jax.jit(algo.train).lower(jax.random.PRNGKey(0)).compile()
about = {"compile_s": time.perf_counter() - began, "rejax": version("rejax"), "gymnax": version("gymnax")}
print(json.dumps({**about, "jax": jax.__version__, "device": jax.devices()[0].device_kind}), flush=True)

for seed, _ in enumerate(sys.stdin):
    began, began_cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(train(jax.random.PRNGKey(seed)))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    print(json.dumps({"env_steps": TOTAL, "seconds": seconds, "cpu_s": cpu_s}), flush=True)
