"""Our own figures of `dataflow`: what the glue costs, what slots are for, how old the data are. One answer a case."""

from __future__ import annotations

import collections
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import dataflow_free_world
import serving
from dataflow_ours import experiment

import marl.dataflow.server as server_module
from marl.agents.ppo.algorithm import PPO
from marl.core.host import HostFactory
from marl.core.host_rows import HostWorlds, RowBlock
from marl.dataflow.local import Local, LocalOptions
from marl.runner.build import build_dataflow, resolved
from marl.runner.load import config_from
from marl.runner.plan import make_plan

ROLLOUT = 32
GLUE = {  # slots, lanes of each, whether the policy server answers them in one call
    "32 slots x 1 lane": (32, 1, False),
    "32 slots x 1 lane, one call": (32, 1, True),
    "32 slots x 8 lanes": (32, 8, False),
    "32 slots x 8 lanes, one call": (32, 8, True),
    "1 slot x 32 lanes": (1, 32, False),
}
SLOT_LANES, SLOT_WORKERS, WORLD_STEP_S = 32, 2, 0.0005
SLOTS, LATENCIES_MS = (2, 4, 8), (0, 2, 5)
STALENESS = (0, 1, 2, 4)


def free_run(slots: int, lanes: int, *, workers: int = 0, staleness: int = 0, sleep_s: float = 0.0) -> Local:
    """A started run on the free world: PPO with one epoch of one minibatch."""
    worlds, _ = HostWorlds.of(HostFactory("dataflow_free_world:make", {"sleep_s": sleep_s}))
    config = PPO.Config(
        rollout=ROLLOUT,
        epochs=1,
        minibatches=1,
        last_action=False,
        agent_id=False,
        correction="vtrace" if staleness else "none",
    )
    options = LocalOptions(
        num_envs=slots * lanes,
        slots=slots,
        workers=workers,
        max_staleness=staleness,
        random_phase=staleness > 0,
    )
    return Local(worlds, {"all": PPO(config, worlds.roles)}, ["all"], {}, options, [0]).init()


def window(run: Local, seconds: float) -> tuple[int, float, list[dict[str, Any]]]:
    """Env steps, seconds and flow tags of whole dispatches after two that are not counted."""
    for _ in range(2):
        run.dispatch(run, [0])
    steps, flows, began = 0, [], time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        _, result = run.dispatch(run, [0])
        steps += int(result.env_steps.sum())
        flows.append({tag: float(value[0]) for tag, value in result.flow.items()})
    return steps, elapsed, flows


# ---- glue ----------------------------------------------------------------------------------------------------------


def glue(name: str, seconds: float) -> dict[str, Any]:
    """Microseconds an env step, and of them what is no world, no forward pass and no update.

    A forward pass is the compiled program on arrays that lie ready; an update is timed from its call to its end. All
    else is glue: moving rows and actions between the parts and to JAX, counting, chunks, buffer, tickets, metrics.
    """
    slots, lanes, together = GLUE[name]
    run = free_run(slots, lanes)
    run.runs[0].server.together = together  # as with processes and stale data, which this process alone does not have
    learner = run.runs[0].stages["all"].learner
    forward: dict[str, Any] = {"calls": 0}
    update = {"s": 0.0}
    original, original_update = server_module.act_together, learner.update

    def act_together(*arguments: Any) -> Any:
        forward["calls"] += 1
        forward["arguments"] = arguments
        return original(*arguments)

    def timed_update(*arguments: Any) -> Any:
        began = time.perf_counter()
        metrics = jax.block_until_ready((original_update(*arguments), learner.state))[0]
        update["s"] += time.perf_counter() - began
        return metrics

    server_module.act_together = act_together
    learner.update = timed_update
    try:
        for _ in range(2):
            run.dispatch(run, [0])
        forward["calls"], update["s"], steps = 0, 0.0, 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            steps += int(run.dispatch(run, [0])[1].env_steps.sum())
    finally:
        server_module.act_together = original
        run.close()
    static, ready = forward["arguments"][:2], jax.device_put(forward["arguments"][2:])
    calls = 1 if together else slots  # those of a row run while the next ones are made
    row_s = _typical(lambda: jax.block_until_ready([original(*static, *ready) for _ in range(calls)]))
    forward_s = forward["calls"] / calls * row_s
    world_s = steps * _world_step_s()
    parts = {"world": world_s, "forward": forward_s, "update": update["s"]}
    parts["glue"] = elapsed - sum(parts.values())
    each = {part: round(1e6 * spent / steps, 2) for part, spent in parts.items()}
    text = f"{each['glue']:.1f} µs of glue an env step (forward {each['forward']:.1f}, update {each['update']:.1f})"
    return {"env_steps": steps, "seconds": elapsed, "us_per_step": each, "text": text}


def _typical(call: Callable[[], Any], times: int = 300) -> float:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def _world_step_s() -> float:
    world = dataflow_free_world.make()
    worlds, _ = HostWorlds.of(HostFactory("dataflow_free_world:make", {}))
    block = RowBlock(worlds.spec, 1)
    row, actions = block.host_row(0), block.lane_actions(0)
    return _typical(lambda: world.step(actions, row), 2000)


# ---- slots ---------------------------------------------------------------------------------------------------------


def slots(name: str, seconds: float) -> dict[str, Any]:
    """Env steps a second of 32 lanes in two processes whose steps take 0.5 ms, when every call of the policy server
    takes some milliseconds longer."""
    count, latency_ms = (int(text.split()[0]) for text in name.split(", "))
    run = free_run(count, SLOT_LANES // count, workers=SLOT_WORKERS, staleness=1, sleep_s=WORLD_STEP_S)
    server = run.runs[0].server
    act = server.act

    def slow_act(requests: Any) -> Any:
        if latency_ms:
            time.sleep(latency_ms / 1000.0)
        return act(requests)

    server.act = slow_act
    try:
        steps, elapsed, _ = window(run, seconds)
    finally:
        run.close()
    return {"env_steps": steps, "seconds": elapsed, "text": f"{steps / elapsed:,.0f} env steps/s"}


# ---- staleness -----------------------------------------------------------------------------------------------------


def staleness(name: str, seconds: float) -> dict[str, Any]:
    """How many versions old the chunks were that CartPole's learner trained on."""
    setting = {"task": "cartpole", "num_envs": 16, "workers": 2, "rollout": 64, "epochs": 4, "minibatches": 4}
    if name.startswith("a3c"):
        config = config_from(
            {
                "name": "bench",
                "env": {"id": "gymnasium:CartPole-v1"},
                "agents": {"all": {"algorithm": "a3c"}},
                "dataflow": {"kind": "local", "num_envs": 16, "slots": 4, "workers": 2},
                "stop": {"env_steps": 10**12},
            }
        )
    else:
        config = experiment({**setting, "updates_per_dispatch": 4, "max_staleness": int(name.split()[-1])})
    plan = make_plan(config)
    run = build_dataflow(resolved(plan), plan)
    assert isinstance(run, Local)
    run.init()
    lags: collections.Counter[int] = collections.Counter()
    flow = run.runs[0].flow
    add_lag = flow.add_lag

    def count_lag(lag: int, count: int = 1) -> None:
        lags[lag] += count
        add_lag(lag, count)

    flow.add_lag = count_lag
    try:
        steps, elapsed, _ = window(run, seconds)
    finally:
        run.close()
    total = sum(lags.values())
    shares = {str(lag): round(count / total, 4) for lag, count in sorted(lags.items())}
    words = ", ".join(f"{lag}: {share:.0%}" for lag, share in shares.items())
    text = f"chunks by versions of lag {words}; {steps / elapsed:,.0f} env steps/s"
    return {"env_steps": steps, "seconds": elapsed, "lags": shares, "text": text}


CASES: dict[str, tuple[list[str], Callable[[str, float], dict[str, Any]]]] = {
    "glue": (list(GLUE), glue),
    "slots": ([f"{n} slots, {ms} ms" for ms in LATENCIES_MS for n in SLOTS], slots),
    "staleness": ([*(f"max_staleness {n}" for n in STALENESS), "a3c, asynchronous gradients, 4 slots"], staleness),
}


def main() -> None:
    names, measure = CASES[serving.setting()["what"]]
    serving.say({"cases": len(names), "jax": jax.__version__})
    for name, request in zip(names, serving.requests(), strict=False):
        serving.say({"case": name, **measure(name, request["seconds"])})


if __name__ == "__main__":
    main()
