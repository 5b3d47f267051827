"""Does the accelerator compute what the CPU computes? Without an accelerator: does the CPU compute it twice?"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marl import agents, envs
from marl.core.host import HostFactory, HostRow
from marl.core.host_rows import HostWorlds
from marl.core.prng import stream
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Discrete
from marl.core.types import Tree
from marl.dataflow.fused import Fused
from marl.dataflow.local import Local, LocalOptions
from marl.runner.load import config_from
from marl.runner.plan import make_plan

WORLD = "heterogeneous_highway_v0"
ROWS = 12  # policy steps of the world that are compared
WORLD_SHARE = 0.99  # of the lanes; in the others rounding has tipped a lane-change decision
WORLD_ATOL, WORLD_RTOL = 1e-3, 1e-4  # [m], [m/s], ...: five substeps in f32
PPO_DISTANCE = 0.02  # between the parameters, relative to how far training has moved them
DISPATCHES = 3
LOCAL_LANES, LOCAL_DISPATCHES = 32, 20
SAME_ROWS = 0.99  # of the first rollout's actions; rounding may tip a draw

Part = Callable[[], dict[str, Any]]


def parts(*, cpu: bool) -> dict[str, Part]:
    """The checks by name; each returns its figures with `ok`. cpu: small, and the CPU against itself."""
    trainer = functools.cache(_trainer)
    return {
        "device": _device,
        "highway_step": lambda: _highway(16 if cpu else 256),
        "ppo_update": lambda: _ppo(trainer),
        "compilations": lambda: _compilations(trainer),
        "memory": lambda: _memory(trainer),
        "local": lambda: _local(DISPATCHES if cpu else LOCAL_DISPATCHES, 64 if cpu else 1024),
    }


def _device() -> dict[str, Any]:
    device = jax.devices()[0]
    x = jnp.arange(1024, dtype=jnp.float32)
    return {
        "ok": float((2 * x).sum()) == 1023.0 * 1024.0,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": len(jax.devices()),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }


def _reference() -> jax.Device:
    return jax.devices("cpu")[0]


# ---- the world -------------------------------------------------------------------------------------------------------


def _host(leaf: Any) -> np.ndarray[Any, Any]:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)


def _lane_errors(a: Tree, b: Tree, axis: int, lanes: int) -> tuple[np.ndarray[Any, Any], float]:
    """By lane, whether two trees agree; and the largest difference of floats in the lanes that do."""
    agree, worst = np.ones(lanes, bool), np.zeros(lanes)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x = np.moveaxis(_host(left), axis, 0).reshape(lanes, -1)
        y = np.moveaxis(_host(right), axis, 0).reshape(lanes, -1)
        if np.issubdtype(x.dtype, np.floating):
            agree &= np.isclose(x, y, rtol=WORLD_RTOL, atol=WORLD_ATOL).all(1)
            worst = np.maximum(worst, np.abs(x - y).max(1, initial=0.0))
        else:
            agree &= (x == y).all(1)
    return agree, float(worst[agree].max(initial=0.0))


def _highway(lanes: int) -> dict[str, Any]:
    """One reset and ROWS single steps, each from the reference's own state, with random actions."""
    env = envs.REGISTRY.resolve(WORLD)()
    axis, (role, *_) = env.lane_axis, env.roles
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None), out_axes=(axis, 0)))
    step = jax.jit(jax.vmap(env.step, in_axes=(0, axis, 0, None), out_axes=(axis, 0)))
    devices = (_reference(), jax.devices()[0])
    keys = jax.random.split(stream(0, "gpu", "highway"), lanes)
    draw = np.random.default_rng(0)

    def compare(function: Any, arguments: Tree) -> tuple[Tree, np.ndarray[Any, Any], float]:
        here, there = (function(*jax.device_put(arguments, device)) for device in devices)
        same_state, worst_state = _lane_errors(here[0], there[0], axis, lanes)
        same_row, worst_row = _lane_errors(here[1], there[1], 0, lanes)
        return here[0], same_state & same_row, max(worst_state, worst_row)

    state, agree, worst = compare(reset, (keys, env.default_params))
    shares, worsts = [float(agree.mean())], [worst]
    for _ in range(ROWS):
        chosen = draw.integers(0, role.action_space.n, (lanes, role.size)).astype(np.int32)
        state, agree, worst = compare(step, (keys, state, {role.name: chosen}, env.default_params))
        shares.append(float(agree.mean()))
        worsts.append(worst)
    return {
        "ok": bool(np.mean(shares) >= WORLD_SHARE),
        "agreeing_share": float(np.mean(shares)),
        "wanted_share": WORLD_SHARE,
        "largest_difference": max(worsts),
        "lane_steps": lanes * len(shares),
    }


# ---- training --------------------------------------------------------------------------------------------------------


def _trainer(device: jax.Device) -> Fused:
    """PPO on the cart and pole, compiled for one device with full-precision products."""
    options = {"algorithm": "ippo", "rollout": 32, "epochs": 2, "minibatches": 2, "hidden_sizes": [32, 32]}
    config = config_from(
        {"name": "check", "env": {"id": "cartpole_v0"}, "agents": {"all": options}, "stop": {"env_steps": 1}}
    )
    plan = make_plan(config)
    made = Fused(
        plan.jax_env, plan.policies, plan.learners, {}, num_envs=8, seeds=(0,), updates_per_dispatch=2, devices=[device]
    )
    return made


def _flat(tree: Tree) -> np.ndarray[Any, Any]:
    return np.concatenate([_host(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def _ppo(trainer: Callable[[jax.Device], Fused]) -> dict[str, Any]:
    """A few dispatches from the same state on both devices: counters equal, parameters close."""
    accelerator, reference = trainer(jax.devices()[0]), trainer(_reference())
    initial = accelerator.init()
    start = _flat(initial.learners["all"].params)
    found = []
    with jax.default_matmul_precision("highest"):  # an accelerator may otherwise round the factors to fewer bits
        for fused in (accelerator, reference):
            state = fused.place(jax.tree.map(jnp.copy, initial))
            state, result = fused.dispatch(state, [0])
            counts = [int(result.env_steps[0]), int(result.episodes[0])]
            found.append((_flat(state.learners["all"].params), counts))
    (here, counts), (there, reference_counts) = found
    moved = float(np.linalg.norm(there - start))
    distance = float(np.linalg.norm(here - there)) / max(moved, 1e-12)
    return {
        "ok": bool(distance <= PPO_DISTANCE and moved > 0 and counts == reference_counts),
        "relative_distance": distance,
        "tolerance": PPO_DISTANCE,
        "moved": moved,
        "env_steps_and_episodes": [counts, reference_counts],
    }


def _compilations(trainer: Callable[[jax.Device], Fused]) -> dict[str, Any]:
    """How many programs JAX compiles after the first dispatch: none. Before it there are some, so counting works."""
    compiled: list[str] = []

    def count(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    fused = trainer(jax.devices()[0])
    state, steps, before = fused.init(), 0, 0
    for number in range(1 + DISPATCHES):
        state, result = fused.dispatch(state, [steps])
        steps += int(jax.device_get(result).env_steps[0])
        before = len(compiled) if number == 0 else before
    after = len(compiled) - before
    return {"ok": before > 0 and after == 0, "before": before, "after": after, "dispatches": DISPATCHES}


def _memory(trainer: Callable[[jax.Device], Fused]) -> dict[str, Any]:
    """Bytes of the compiled dispatch, and that it writes the new state over the old one."""
    fused = trainer(jax.devices()[0])
    found = memory(fused, fused.init())
    donated = found["alias"] > found["arguments"] / 2  # nearly all of the state; a counter and padding are not
    return {"ok": donated, "bytes": found}


def memory(fused: Fused, state: Any) -> dict[str, int]:
    """Bytes of the compiled dispatch: arguments, results, scratch, code; of which the results reuse `alias`."""
    found = fused.compile(state).memory_analysis()
    if found is None:
        return dict.fromkeys(("arguments", "results", "scratch", "code", "alias"), 0)
    return {
        "arguments": int(found.argument_size_in_bytes),
        "results": int(found.output_size_in_bytes),
        "scratch": int(found.temp_size_in_bytes),
        "code": int(found.generated_code_size_in_bytes),
        "alias": int(found.alias_size_in_bytes),
    }


# ---- worlds on the CPU, inference and learner on the accelerator -----------------------------------------------------


class Chase:
    """A world in Python: agents see where a target is on a circle, and move left, right or not. 1 for whoever is there.

    It needs nothing but NumPy. One role of `agents`, episodes of 32 steps.
    """

    name = "chase"
    max_steps: int | None = 32
    masked: frozenset[str] = frozenset()
    turn_based = False

    def __init__(self, agents: int = 4, cells: int = 8, render: bool = False) -> None:
        self.roles = (RoleSpec("agent", agents, Box((2 * cells,), 0.0, 1.0), Discrete(3)),)
        self.agents, self.cells = agents, cells

    def reset(self, seed: int, row: HostRow) -> None:
        self.random = np.random.default_rng(seed)
        self.place = self.random.integers(0, self.cells, self.agents)
        self.target, self.t = int(self.random.integers(self.cells)), 0
        for part in (row.reward, row.terminated, row.truncated):
            part["agent"][:] = 0
        row.alive["agent"][:] = True
        self._see(row)

    def step(self, actions: dict[str, Any], row: HostRow) -> bool:
        self.place = (self.place + actions["agent"] - 1) % self.cells
        self.t += 1
        row.reward["agent"][:] = self.place == self.target
        last = self.t == self.max_steps
        row.truncated["agent"][:] = last
        if self.random.random() < 0.2:
            self.target = (self.target + 1) % self.cells
        self._see(row)
        return last

    def _see(self, row: HostRow) -> None:
        seen = row.obs["agent"]
        seen[:] = 0.0
        seen[np.arange(self.agents), self.place] = 1.0
        seen[:, self.cells + self.target] = 1.0

    def render(self) -> np.ndarray[Any, Any]:
        picture = np.zeros((8, 8 * self.cells, 3), np.uint8)
        picture[:, 8 * self.target : 8 * self.target + 8] = 255
        return picture

    def close(self) -> None:
        pass


def _players(width: int) -> tuple[HostWorlds, Any]:
    """That world and PPO for it. width: of the networks' layers."""
    worlds, _ = HostWorlds.of(HostFactory("marl.runner.gpu_checks:Chase", {}))
    make = agents.REGISTRY.resolve("ppo")
    options = {"rollout": 32, "epochs": 4, "minibatches": 4, "hidden_sizes": [width, width], "learning_rate": 1e-3}
    return worlds, make(make.Config(**options), worlds.roles)


def _local(dispatches: int, width: int) -> dict[str, Any]:
    """Both devices from one seed: the first rollouts agree, the parts are where they should be; and how fast."""
    found: dict[str, dict[str, Any]] = {}
    firsts = []
    worlds, policy = _players(width)
    for name, device in (("accelerator", jax.devices()[0]), ("cpu", _reference())):
        placement = LocalOptions(num_envs=LOCAL_LANES, inference=device, learner=device)
        local = Local(worlds, {"all": policy}, ["all"], {}, placement, [0])
        with contextlib.closing(local), jax.default_matmul_precision("highest"):
            local.init()
            stage = local.runs[0].stages["all"]
            offered = stage.offer

            def keep(chunk: Any, version: int, offered: Any = offered) -> Any:
                firsts.append(np.array(chunk.trajectory.action["agent"]))
                return offered(chunk, version)

            stage.offer = keep  # type: ignore[method-assign]
            local.dispatch(local, [0])
            stage.offer = offered  # type: ignore[method-assign]
            learner: Any = stage.learner
            placed = [next(iter(x.devices())) for x in jax.tree.leaves((learner.state, local.published(local, 0)))]
            local.dispatch(local, [0])
            started, steps, busy = time.perf_counter(), 0, []
            for _ in range(dispatches):
                _, result = local.dispatch(local, [0])
                steps += int(result.env_steps[0])
                busy.append(
                    {
                        tag.removeprefix("flow/bottleneck/"): float(v[0])
                        for tag, v in result.flow.items()
                        if tag.startswith("flow/bottleneck/")
                    }
                )
            elapsed = time.perf_counter() - started
        found[name] = {
            "env_steps_per_s": round(steps / elapsed, 1),
            "placed": set(placed) == {device},
            "shares": {part: round(float(np.mean([b.get(part, 0.0) for b in busy])), 3) for part in busy[0]},
        }
    same = float((firsts[0] == firsts[1]).mean())
    here, there = found["accelerator"], found["cpu"]
    return {
        "ok": bool(same >= SAME_ROWS and here["placed"] and there["placed"]),
        "same_actions": same,
        "wanted_share": SAME_ROWS,
        "learner_busy_share": here["shares"]["learner"],
        "ratio_to_cpu": round(here["env_steps_per_s"] / there["env_steps_per_s"], 2),
        "learner_ratio_to_cpu": _ratio(there, here),
        "lanes": LOCAL_LANES,
        "width": width,
        "accelerator": here,
        "cpu": there,
    }


def _ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float:
    """How many times less time an env step's learning takes."""
    seconds = [found["shares"]["learner"] / found["env_steps_per_s"] for found in (slow, fast)]
    return round(float(seconds[0] / max(seconds[1], 1e-12)), 2)
