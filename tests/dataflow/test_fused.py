"""The fused placement: dispatch length, seeds, devices and restarts are not science."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.ppo.algorithm import PPO
from marl.core.collect import collect, init_lanes, restrict
from marl.core.errors import ConfigError
from marl.core.prng import stream
from marl.core.types import LearnerState, Trajectory
from marl.dataflow.fused import Fused
from marl.envs.probe.cartpole import CartPole
from marl.envs.probe.credit import Credit
from marl.envs.probe.roles import Roles

from .tiny import Tiny

SMALL = {"rollout": 4, "epochs": 1, "minibatches": 1, "hidden_sizes": (8,)}


def make(
    env: Any = None, *, seeds: tuple[int, ...] = (0,), updates: int = 1, num_envs: int = 4, ppo: Any = None
) -> Fused:
    env = env or Credit()
    policy: Any = Tiny(env.roles) if ppo is None else PPO(PPO.Config(**{**SMALL, **ppo}), env.roles)
    return Fused(env, {"all": policy}, ["all"], {}, num_envs=num_envs, seeds=seeds, updates_per_dispatch=updates)


def run(fused: Fused, dispatches: int) -> tuple[Any, list[int], list[Any]]:
    state, steps, results = fused.init(), [0] * len(fused.seeds), []
    for _ in range(dispatches):
        state, result = fused.dispatch(state, steps)
        results.append(jax.device_get(result))
        steps = [a + int(b) for a, b in zip(steps, results[-1].env_steps, strict=True)]
    return state, steps, results


def leaves(state: Any) -> list[np.ndarray[Any, Any]]:
    found = jax.tree.leaves(state)
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in found]


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_many_updates_in_one_dispatch_equal_many_dispatches() -> None:
    together, steps_together, _ = run(make(updates=6), 1)
    apart, steps_apart, _ = run(make(updates=1), 6)
    assert steps_together == steps_apart
    assert_equal(together, apart)


@pytest.mark.long
@pytest.mark.parametrize("ppo", [None, {"recurrent": True}], ids=["tiny", "recurrent ppo"])
def test_fused_equals_an_actor_and_a_learner_that_exchange_numpy_arrays(ppo: Any) -> None:
    fused = make(ppo=ppo)
    state, _, _ = run(fused, 4)
    policy, env, policies = fused.learners["all"], fused.env, fused.policies
    learner: LearnerState = policy.init(stream(0, "init", "all"))
    params = policy.publish(learner)
    lanes = jax.jit(lambda p, k: init_lanes(env, policies, {"all": p}, k))(
        params, jax.random.split(stream(0, "lanes"), fused.num_envs)
    )
    act = jax.jit(lambda p, s: collect(env, policies, {"all": p}, s, fused.tick, record=("all",)))
    update = jax.jit(policy.update)
    key, steps = stream(0, "update"), 0
    for _ in range(4):
        lanes, rollout = act(policy.publish(learner), lanes)
        batch = Trajectory(
            step=restrict(rollout.step, policy.roles),
            action=rollout.action,
            extras=rollout.extras["all"],
            carry=rollout.carry["all"],
            next_action={},
            version=jnp.broadcast_to(learner.updates, (fused.num_envs,)),
        )
        batch = jax.tree.map(np.asarray, batch)  # what crosses a process boundary
        steps += int((~batch.step.last[:-1]).sum())
        key, update_key = jax.random.split(key)
        learner = learner.replace(env_steps=jnp.float32(steps))  # type: ignore[attr-defined]
        learner, _ = update(learner, batch, jax.random.fold_in(update_key, 0))
    own = jax.tree.map(lambda x: x[0], state.learners["all"])
    for x, y in zip(leaves(own), leaves(learner), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_a_group_of_seeds_repeats_itself_and_each_seed_equals_itself_alone() -> None:
    group, steps, _ = run(make(seeds=(5, 7), updates=3), 2)
    again, _, _ = run(make(seeds=(5, 7), updates=3), 2)
    assert_equal(group, again)
    for index, seed in enumerate((5, 7)):
        alone, alone_steps, _ = run(make(seeds=(seed,), updates=3), 2)
        assert alone_steps == [steps[index]]
        for x, y in zip(leaves(group.learners), leaves(alone.learners), strict=True):
            np.testing.assert_allclose(x[index], y[0], rtol=2e-4, atol=2e-6)


def test_seeds_differ_from_each_other() -> None:
    state, _, _ = run(make(seeds=(0, 1)), 1)
    kernel = state.learners["all"].params["agent"]
    assert not np.allclose(kernel[0], kernel[1])


def test_counts_leave_out_reset_rows() -> None:
    """Credit's episodes last two steps and a reset row: two thirds of all rows are env steps."""
    fused = make(Credit(), updates=3)
    _, steps, results = run(fused, 1)
    assert fused.rows_per_dispatch() == 3 * 4 * 4
    assert steps == [32]
    assert int(results[0].episodes[0]) == 16
    assert int(results[0].length[0]) == 32
    assert int(results[0].agent_steps[0]) == 32


class TwoLengths:
    """Roles: leader and follower learn by themselves, with rollouts of their own."""

    def __init__(self, leader: int, follower: int) -> None:
        env = Roles()
        self.lengths: dict[str, list[int]] = {"leader": [], "follower": []}
        policies = {}
        for spec, rollout in zip(env.roles, (leader, follower), strict=True):
            policies[spec.name] = self._watched(Tiny((spec,), rollout), spec.name)
        self.fused = Fused(env, policies, list(policies), {}, num_envs=4, seeds=(0,), updates_per_dispatch=1)

    def _watched(self, policy: Tiny, name: str) -> Tiny:
        plain = policy.update

        def update(state: Any, batch: Trajectory, key: Any) -> Any:
            self.lengths[name].append(batch.step.last.shape[0] - 1)
            assert batch.action[name].shape[0] == batch.step.last.shape[0] - 1
            return plain(state, batch, key)

        policy.update = update  # type: ignore[method-assign]
        return policy


@pytest.mark.long
def test_learners_with_different_rollouts_share_ticks_and_each_sees_its_own_length() -> None:
    two = TwoLengths(4, 12)
    assert two.fused.tick == 4
    _, _, results = run(two.fused, 2)
    assert set(two.lengths["leader"]) == {4}
    assert set(two.lengths["follower"]) == {12}
    assert int(results[0].updates["leader"][0]) == 3
    assert int(results[0].updates["follower"][0]) == 1


@pytest.mark.long
def test_a_rollout_over_several_ticks_equals_the_same_rollout_in_one() -> None:
    """A follower's batch of three ticks, against one whose partner does not learn (one tick of twelve rows)."""
    env = Roles()
    follower, leader = Tiny((env.roles[1],), 12), Tiny((env.roles[0],), learning_rate=0.0)
    policies: Any = {"leader": leader, "follower": follower}
    ticked = Fused(env, policies, ["leader", "follower"], {}, num_envs=4, seeds=(0,), updates_per_dispatch=1)
    state, _, _ = run(ticked, 2)
    frozen = leader.publish(leader.init(stream(0, "init", "leader")))
    whole = Fused(env, policies, ["follower"], {"leader": frozen}, num_envs=4, seeds=(0,), updates_per_dispatch=1)
    other, _, _ = run(whole, 2)
    ours, theirs = state.learners["follower"], other.learners["follower"]
    np.testing.assert_array_equal(ours.aux["seen"], theirs.aux["seen"])  # every row's carry, the stacked ones too
    np.testing.assert_allclose(ours.params["follower"], theirs.params["follower"], rtol=1e-2)  # but for the key's noise


def test_rollouts_that_share_only_tiny_ticks_are_refused() -> None:
    with pytest.raises(ConfigError, match="ticks of 1 rows"):
        TwoLengths(4, 7)


def test_a_frozen_role_never_changes() -> None:
    env = Roles()
    policies: Any = {spec.name: Tiny((spec,)) for spec in env.roles}
    frozen = policies["leader"].publish(policies["leader"].init(jax.random.key(9)))
    before = jax.tree.map(np.array, frozen)
    fused = Fused(env, policies, ["follower"], {"leader": frozen}, num_envs=4, seeds=(0,), updates_per_dispatch=2)
    state, _, _ = run(fused, 2)
    assert list(state.learners) == ["follower"]
    assert_equal(fused.published(state, 0)["leader"], before)


def test_lanes_that_cannot_be_split_evenly_are_refused() -> None:
    env = Credit()
    policy: Any = Tiny(env.roles)
    with pytest.raises(ConfigError, match=r"num_envs: 3 lanes .* 2 devices"):
        Fused(
            env, {"all": policy}, ["all"], {}, num_envs=3, seeds=(0,), updates_per_dispatch=1, devices=jax.devices() * 2
        )


def test_an_update_that_is_not_finite_is_thrown_away_and_counted() -> None:
    env = Credit()
    policy: Any = Tiny(env.roles)
    plain = policy.update

    def poisoned(state: Any, batch: Trajectory, key: Any) -> Any:
        new, metrics = plain(state, batch, key)
        bad = jnp.where(state.env_steps > 20, jnp.nan, 1.0)
        return new.replace(params=jax.tree.map(lambda x: x * bad, new.params)), metrics

    policy.update = poisoned
    fused = Fused(env, {"all": policy}, ["all"], {}, num_envs=4, seeds=(0,), updates_per_dispatch=1)
    state, steps, results = fused.init(), [0], []
    kept: Any = None
    for _ in range(5):
        state, result = fused.dispatch(state, steps)
        results.append(jax.device_get(result))
        steps = [steps[0] + int(results[-1].env_steps[0])]
        if steps[0] <= 20:
            kept = jax.tree.map(np.array, state.learners["all"].params)
    assert [int(r.skipped["all"][0]) for r in results] == [0, 1, 2, 3, 4]
    assert_equal(state.learners["all"].params, kept)
    assert all(np.isfinite(leaf).all() for r in results for leaf in jax.tree.leaves(r.metrics))


@pytest.mark.long
def test_nothing_is_compiled_after_the_first_dispatch_and_memory_stays() -> None:
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    fused = make(CartPole(), updates=2, ppo={})
    state, steps = fused.init(), [0]
    state, result = fused.dispatch(state, steps)
    jax.device_get(result)
    compiled.clear()
    alive = None
    for number in range(200):
        state, result = fused.dispatch(state, steps)
        steps = [steps[0] + int(jax.device_get(result.env_steps)[0])]
        if number == 20:
            alive = len(jax.live_arrays())
    assert compiled == []
    assert len(jax.live_arrays()) == alive


DATA_PARALLEL = """
import json, sys
import jax, numpy as np
from marl.agents.ppo.algorithm import PPO
from marl.dataflow.fused import MESH_AXIS, Fused
from marl.envs.probe.cartpole import CartPole

assert len(jax.devices()) == 4
def final(devices, seeds):
    env = CartPole()
    axis = MESH_AXIS if devices > 1 else None
    config = PPO.Config(rollout=8, epochs=2, minibatches=1, hidden_sizes=(8,), value_normalisation="running")
    fused = Fused(env, {"all": PPO(config, env.roles, axis)}, ["all"], {}, num_envs=8, seeds=seeds,
                  updates_per_dispatch=2, devices=jax.devices()[:devices])
    state, steps = fused.init(), [0] * len(seeds)
    for _ in range(3):
        state, result = fused.dispatch(state, steps)
        steps = [a + int(b) for a, b in zip(steps, jax.device_get(result.env_steps))]
    assert len(state.lanes.key.sharding.device_set) == devices
    return steps, [np.asarray(x) for x in jax.tree.leaves(state.learners["all"].params)], jax.device_get(result.metrics)
worst = 0.0
for seeds in ((0,), (0, 1)):
    (s1, one, m1), (s4, four, m4) = final(1, seeds), final(4, seeds)
    assert s1 == s4, (s1, s4)
    worst = max([worst] + [float(np.abs(a - b).max()) for a, b in zip(one, four)])
print(json.dumps({"worst": worst}))
"""


@pytest.mark.long
def test_lanes_over_four_devices_train_as_on_one() -> None:
    """Emulated host devices; gradients and statistics are averaged over the mesh, so only rounding may differ."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DATA_PARALLEL], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["worst"] < 2e-4
