"""Env steps per second of the highway alone and of training, over numbers of lanes. Compile time is said apart."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from marl import envs
from marl.runner.bench import collector, random_policies, spread, windows
from marl.runner.build import build_fused, resolved
from marl.runner.gpu_checks import WORLD, Part, memory
from marl.runner.load import config_from
from marl.runner.plan import make_plan
from marl.runner.train import set_up_jax

REPEATS = 3
ROWS = 32  # policy steps a dispatch of the world alone
LANES = {False: (64, 256, 1024, 4096, 16384), True: (16, 64)}  # by --cpu
TRAIN_LANES: dict[bool, dict[str, tuple[int, ...]]] = {
    False: {WORLD: (64, 512, 2048), "cartpole_v0": (64, 1024, 8192)},
    True: {WORLD: (16,), "cartpole_v0": (16,)},
}


def parts(*, cpu: bool) -> dict[str, Part]:
    """The measurements by name, the most wanted first."""
    worlds: dict[str, Part] = {
        f"highway_{lanes}_lanes": functools.partial(_world, lanes) for lanes in sorted(LANES[cpu])
    }
    training: dict[str, Part] = {}
    for name, sizes in TRAIN_LANES[cpu].items():
        for lanes in sizes:
            training[f"ppo_{name.removesuffix('_v0')}_{lanes}_lanes"] = functools.partial(_training, name, lanes)
    return {**worlds, **training}


def _rates(step: Callable[[], int]) -> dict[str, Any]:
    started = time.perf_counter()
    step()
    first_s = time.perf_counter() - started
    rates = windows(step, REPEATS)
    return {"env_steps_per_s": spread(rates), "windows": REPEATS, "first_call_s": round(first_s, 1)}


def _world(lanes: int) -> dict[str, Any]:
    """Uniform random actions, resets included."""
    env = envs.REGISTRY.resolve(WORLD)()
    agents = sum(spec.size for spec in env.roles)
    return {
        "lanes": lanes,
        "agents": agents,
        **_rates(collector(env, random_policies(env), {"random": ()}, lanes, ROWS)),
    }


def _training(world: str, lanes: int) -> dict[str, Any]:
    """IPPO with its defaults: collecting, updates, and reading the figures of a dispatch, without files."""
    config = config_from(
        {
            "name": "throughput",
            "env": {"id": world},
            "agents": {"all": {"algorithm": "ippo"}},
            "dataflow": {"kind": "fused", "num_envs": lanes},
            "stop": {"env_steps": 10**9},
        }
    )
    set_up_jax(config)
    plan = make_plan(config)
    fused = build_fused(resolved(plan), plan)
    state, done = fused.init(), 0

    def step() -> int:
        nonlocal state, done
        state, result = fused.dispatch(state, [done])
        made = int(jax.device_get(result).env_steps[0])
        done += made
        return made

    rates = _rates(step)
    return {"lanes": lanes, "rows_per_dispatch": fused.rows_per_dispatch(), **rates, "bytes": memory(fused, state)}
