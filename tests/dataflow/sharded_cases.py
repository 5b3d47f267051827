"""Run by test_learner_group.py with four devices: what N devices learn from a batch, beside what one learns from it.

`python -m tests.dataflow.sharded_cases CASE...` prints what each case found as JSON.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from marl.agents.a3c.algorithm import A3C
from marl.agents.ppo.algorithm import PPO
from marl.core.collect import collect, init_lanes
from marl.core.errors import RunError
from marl.dataflow.learner import LearnerCore
from marl.dataflow.learner_sharded import ShardedLearner, split_lanes
from marl.dataflow.learning import MESH_AXIS, pack, trajectory_of
from marl.dataflow.local import Local, LocalOptions
from marl.envs.probe.cartpole import CartPole
from marl.envs.probe.credit import Credit

from .tiny_mesh import TinyMesh, batch_of

ENV, LANES, KEY = CartPole(), 8, jax.random.key(3)
SMALL = {"rollout": 6, "hidden_sizes": (8,)}
PPO_SMALL = {**SMALL, "epochs": 2, "minibatches": 1, "value_normalisation": "running"}


def played(algorithm: Any) -> Any:
    """A rollout of a fresh policy."""
    params = {"all": algorithm.publish(algorithm.init(KEY))}

    @jax.jit
    def play(key: Any) -> Any:
        lanes = init_lanes(ENV, {"all": algorithm}, params, jax.random.split(key, LANES))
        rows = algorithm.needs.rollout
        _, rollout = collect(ENV, {"all": algorithm}, params, lanes, rows, record=("all",), keep_state=False)
        return trajectory_of(algorithm, "all", rollout, np.int32(0))

    return jax.device_get(play(KEY))


def maker(algorithm: Any, options: dict[str, Any]) -> Any:
    return lambda axis=None: algorithm(algorithm.Config(**options), ENV.roles, axis)


def apart(one: Any, other: Any) -> float:
    """Largest difference between two trees, as a share of the larger number where that is above 1."""
    worst = 0.0
    for a, b in zip(pack(one), pack(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        worst = max(worst, float((np.abs(a - b) / np.maximum(np.abs(a), 1.0)).max(initial=0)))
    return worst


def side_by_side(make: Any, batch: Any, devices: tuple[int, ...], updates: int = 3) -> dict[str, Any]:
    """By number of devices how far state and metrics are from one device's after some updates."""
    learners = {1: LearnerCore("all", make()), **{n: ShardedLearner("all", make, jax.devices()[:n]) for n in devices}}
    states, metrics = {}, {}
    for count, learner in learners.items():
        learner.start(KEY)
        for number in range(updates):
            got = learner.update(learner.place(batch), 100 * number, jax.random.fold_in(KEY, number))
        metrics[count] = {tag: float(x) for tag, x in got.items()}
        states[count] = learner.snapshot()["state"]
    found = {str(n): [apart(states[1], states[n]), apart(metrics[1], metrics[n])] for n in devices}
    return {**found, "moved": apart(learners[1].algorithm.init(KEY).params, learners[1].state.params)}


def ppo() -> dict[str, Any]:
    make = maker(PPO, PPO_SMALL)
    return side_by_side(make, played(make()), (2, 4))


def a3c() -> dict[str, Any]:
    make = maker(A3C, SMALL)
    return side_by_side(make, played(make()), (2, 4))


def recurrent() -> dict[str, Any]:
    make = maker(PPO, {**PPO_SMALL, "recurrent": True, "gru_size": 8})
    return side_by_side(make, played(make()), (4,))


def minibatches() -> dict[str, float]:
    """Two devices against one that computes both devices' parts side by side, and against one that draws its own."""
    make = maker(PPO, {**PPO_SMALL, "minibatches": 2})
    batch = played(make())
    two, alone = ShardedLearner("all", make, jax.devices()[:2]), LearnerCore("all", make())
    for learner in (two, alone):
        learner.start(KEY)
    fresh = jax.device_get(alone.state)
    for learner in (two, alone):
        learner.update(learner.place(batch), 0, KEY)
    parts = jax.tree.map(lambda *leaves: np.stack(leaves), *split_lanes(batch, 2))
    keys = jax.numpy.stack([jax.random.fold_in(KEY, part) for part in range(2)])
    side = jax.jit(jax.vmap(make(MESH_AXIS).update, (None, 0, 0), axis_name=MESH_AXIS))(fresh, parts, keys)[0]
    params = jax.tree.map(np.asarray, two.state.params)
    return {
        "same split": apart(jax.tree.map(lambda x: x[0], side.params), params),
        "own split": apart(alone.state.params, params),
    }


def tiny() -> dict[str, Any]:
    """What does not depend on the algorithm."""
    make = functools.cache(TinyMesh)  # programs are compiled once for an algorithm object
    found: dict[str, Any] = {"equal": side_by_side(make, batch_of(LANES), (4,))}

    one, two = LearnerCore("all", make()), ShardedLearner("all", make, jax.devices()[:2])
    for learner in (one, two):
        learner.start(KEY)

    def step(learner: Any, seed: int, **options: Any) -> dict[str, float]:
        got = learner.update(learner.place(batch_of(LANES, seed, **options)), seed, jax.random.fold_in(KEY, seed))
        return {tag: float(value) for tag, value in got.items()}

    before = two.snapshot()["state"]
    found["poisoned"] = [step(two, 0, poisoned=5), apart(before, two.snapshot()["state"]), int(two.skipped)]
    two.start(KEY)

    # Two devices, then one, then two again, against one all along.
    straight = LearnerCore("all", make())
    straight.start(KEY)
    for seed in range(6):
        step(straight, seed)
    for seed in (0, 1):
        step(two, seed)
    one.restore(two.snapshot())
    for seed in (2, 3):
        step(one, seed)
    two = ShardedLearner("all", make, jax.devices()[:2])
    two.start(jax.random.key(99))
    two.restore(one.snapshot())
    for seed in (4, 5):
        step(two, seed)
    found["resumed"] = apart(straight.snapshot(), two.snapshot())
    found["published on"] = sorted({d.id for x in jax.tree.leaves(two.published()) for d in x.devices()})

    # Gradients that cross a boundary.
    batch = batch_of(LANES, 7)
    grads = [learner.gradient(straight.published(), learner.place(batch), KEY) for learner in (straight, two)]
    found["gradient"] = apart(*grads)
    for learner in (straight, two):
        learner.apply(*jax.device_get(grads[0]), env_steps=9)
    found["applied"] = apart(straight.snapshot(), two.snapshot())

    four = ShardedLearner("all", lambda axis: TinyMesh(axis, replay=True), jax.devices())
    four.start(KEY)
    priority = four.update(four.place(batch), 0, KEY)["priority"]
    found["priority"] = apart(np.asarray(priority), batch.step.reward["agent"][1:].sum((0, 2)))

    deaf = ShardedLearner("all", lambda axis: TinyMesh(axis, deaf=True), jax.devices()[:2])
    deaf.start(KEY)
    step(deaf, 0)
    found["deaf"] = raised(deaf.snapshot)

    # Were the second device another process's, this is what it would say that it is about to do.
    here = two.snapshot()["state"]
    words = np.array(two._order(4, 5, KEY))
    words[1, 1] = 17
    two._order = lambda *_: two._put(words, jax.sharding.PartitionSpec(MESH_AXIS))  # type: ignore[method-assign]
    two.update(two.place(batch), 5, KEY, 4)
    found["disagreed"] = [raised(two.published), apart(here, pack(jax.device_get(two.state)))]
    return found


def local() -> dict[str, Any]:
    """A local run whose learner has two devices, beside one whose learner has one."""
    policies: Any = {"all": TinyMesh()}

    def two(name: str, algorithm: Any) -> Any:
        del algorithm
        return ShardedLearner(name, TinyMesh, jax.devices()[:2])

    params, steps = [], []
    for make in (None, two):
        run = Local(Credit(), policies, ["all"], {}, LocalOptions(num_envs=8, slots=2, make_learner=make), [0])
        run.init()
        for _ in range(3):
            _, result = run.dispatch(run, [0])
        params.append(run.published(run, 0)["all"])
        steps.append(int(result.updates["all"][0]))
        stored = run.snapshot(run)
        run.close()
    other = Local(Credit(), policies, ["all"], {}, LocalOptions(num_envs=8, slots=2), [0])  # 2 -> 1
    other.init().restore(stored)
    other.dispatch(other, [0])
    return {"apart": apart(*params), "updates": steps, "version": other.runs[0].version}


def raised(action: Any) -> str:
    try:
        action()
    except RunError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
