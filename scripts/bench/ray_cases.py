"""What `scripts/bench/ray` measures: groups of sides whose windows alternate, and what was wanted of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from dataflow_cases import COMMON, GRID, Side
from dataflow_cases import side as peer_side

ACTORS = 2
BATCH = 1024  # env steps an update of ours
WORLDS = {
    "cartpole": "CartPole-v1",
    "spread": "mpe2 simple_spread_v3",
    "waiting": "a world whose step waits 5 ms",
    "cartpole_jax": "cartpole_v0, in JAX",
}
# One pass over each batch, as IMPALA makes.
ONE_PASS = {**COMMON, "epochs": 1, "minibatches": 1}
WAITING_ACTORS = (1, 2, 4, 8)
BOUND_ACTORS = (1, 2, 4)
WANTED = {
    "impala": 3.0,  # ours to RLlib's IMPALA
    "waiting 2": 1.9,  # to one actor
    "waiting 8": 6.0,
    "served": 0.9,  # to inline
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Sides by what they are called in the table; their windows alternate. of: the side that ratios refer to.  alone:
    one side is there at a time, since they are many."""

    name: str
    part: str
    task: str
    sides: dict[str, Side]
    of: str
    alone: bool = False


def ours(task: str, actors: int = ACTORS, worlds: int = 16, **more: Any) -> Side:
    """Our side: `worlds` lanes an actor. kind: `ray` (default) or `fused`."""
    setting: dict[str, Any] = {"task": task, "kind": "ray", "actors": actors, "num_envs": actors * worlds, **ONE_PASS}
    setting |= {"rollout": max(8, BATCH // setting["num_envs"]), "max_staleness": 1, "inference": "inline"}
    setting |= {"updates_per_dispatch": 8 if task == "cartpole" else 4, **more}
    if setting["kind"] == "fused":
        return Side("ours", "ours", "ray_ours.py", setting, f"fused, {setting['num_envs']} worlds")
    label = f"{actors} {'actor' if actors == 1 else 'actors'} × {worlds} {'world' if worlds == 1 else 'worlds'}"
    label += f", {setting['inference']}"
    if setting["inference"] == "served":
        slots = setting.get("slots", 2 * actors) // actors
        label += f" in {slots} slots" if slots > 1 else " in one slot"
    if "hidden" in setting:
        label += f", {setting['hidden']} wide"
    if setting.get("share_core"):
        label += ", server and learner on one core"
    if setting.get("algorithm", "ippo") != "ippo":
        label += f", {setting['algorithm']}"
    return Side("ours", "ours", "ray_ours.py", setting, label)


def grid(name: str, task: str) -> list[Side]:
    """The settings that the fastest is looked for among: `inline`, `served`, or RLlib's IMPALA, whose batches are 500
    env steps, its default, or ours."""
    if name == "impala":
        more = peer_side("rllib_impala", task, ACTORS, max(GRID), matched=True)
        larger = dataclasses.replace(more, label=f"{more.label}, batch {BATCH}")
        return [peer_side("rllib_impala", task, ACTORS, worlds) for worlds in GRID] + [larger]
    found = [ours(task, worlds=worlds, inference=name) for worlds in GRID]
    if name == "inline":
        return found
    # Two requests of 8 worlds an actor, or one of 16. One world a request is never the fastest by far.
    return [*found[1:], ours(task, worlds=max(GRID), inference=name, slots=ACTORS)]


def groups(part: str, best: Any) -> list[Group]:
    """The groups of a part. best: the fastest of some sides, where there is a choice."""
    if part == "impala":
        return [
            Group(
                f"impala {task}",
                part,
                task,
                {n: best(task, grid(n, task)) for n in ("inline", "served", "impala")},
                "impala",
            )
            for task in ("cartpole", "spread")
        ]
    if part == "waiting":
        sides = {f"{n}": ours("waiting", n, 1, rollout=64, updates_per_dispatch=2) for n in WAITING_ACTORS}
        return [Group("waiting", part, "waiting", sides, "1", alone=True)]
    if part == "actors":
        return [
            Group(f"actors {task}", part, task, {f"{n}": ours(task, n) for n in BOUND_ACTORS}, "1", alone=True)
            for task in ("cartpole", "spread")
        ]
    if part == "served":
        wide = {
            n: ours("spread", rollout=16, updates_per_dispatch=1, inference=n, hidden=1024)
            for n in ("inline", "served")
        }
        jax = {"inline": ours("cartpole_jax"), "fused": ours("cartpole_jax", kind="fused")}
        return [
            decoupling(),
            Group("served 1024", part, "spread", wide, "inline"),
            Group("fused", part, "cartpole_jax", jax, "inline"),
        ]
    assert part == "ablation"
    return [decoupling()]


def decoupling() -> Group:
    """Where inference is: in the actors, in a server of its own, in one that has to share the learner's processor."""
    own: dict[str, dict[str, Any]]
    own = {"inline": {}, "served": {"inference": "served"}, "shared": {"inference": "served", "share_core": True}}
    sides = {name: ours("spread", worlds=32, rollout=32, **more) for name, more in own.items()}
    return Group("served 64", "served", "spread", sides, "inline")
