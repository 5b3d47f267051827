"""The local placement: the same science as `fused`, bit-equal repeats, resume from any moment, worlds that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.agents.ppo.algorithm import PPO
from marl.core.errors import ConfigError, WorldError
from marl.core.host import HostFactory
from marl.core.host_group import FaultPolicy
from marl.core.host_rows import HostWorlds
from marl.dataflow.fused import Fused
from marl.dataflow.local import Local, LocalOptions
from marl.dataflow.trainer import Trainer
from marl.envs.probe.credit import Credit
from marl.io import checkpoint

from .tiny import Tiny, TinyGradient, TinyReplay
from .tiny_host import TinyHost

# One policy object, so that its programs are compiled once for all tests.
ROLES = TinyHost().roles
CREDIT = Credit()
TINY, GRADIENT = Tiny(ROLES), TinyGradient(ROLES)
PATIENT = FaultPolicy(share=1.0, grace=1000)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny world can be found by name, here and in the processes that step worlds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def host(policy: Any = None, *, seed: int = 0, world: dict[str, Any] | None = None, **options: Any) -> Local:
    """A local run of Tiny learners on the tiny world, four lanes."""
    worlds, _ = HostWorlds.of(HostFactory("tiny_host:TinyHost", world or {}))
    policy = policy or TINY
    options = {"num_envs": 4, "slots": 2, "faults": PATIENT, **options}
    return Local(worlds, {"all": policy}, ["all"], {}, LocalOptions(**options), [seed])


def jax_local(policy: Any, **options: Any) -> Local:
    return Local(CREDIT, {"all": policy}, ["all"], {}, LocalOptions(num_envs=4, **options), [0])


def drive(local: Local, dispatches: int) -> list[Any]:
    local.init()
    return [local.dispatch(local, [0])[1] for _ in range(dispatches)]


def params(local: Local) -> list[Any]:
    return [np.asarray(x) for x in jax.tree.leaves(local.published(local, 0))]


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [Tiny, lambda roles: PPO(PPO.Config(rollout=4, epochs=1, hidden_sizes=(8,)), roles)])
def test_local_and_fused_are_the_same_science(make: Any) -> None:
    env = Credit()
    local = jax_local(make(env.roles))
    fused = Fused(env, {"all": make(env.roles)}, ["all"], {}, num_envs=4, seeds=(0,), updates_per_dispatch=1)
    local.init()
    state, steps = fused.init(), 0
    seen: dict[str, Any] = {}
    learner = local.runs[0].stages["all"].learner
    update = learner.update
    learner.update = lambda batch, *rest: (seen.setdefault("first", batch), update(batch, *rest))[1]  # type: ignore[method-assign]
    for number in range(1, 11):
        local.dispatch(local, [0])
        before = state
        if number == 1:
            before = jax.tree.map(lambda x: x.copy(), state)
        state, result = fused.dispatch(state, [steps])
        steps += int(result.env_steps[0])
        if number in (1, 10):
            for a, b in zip(params(local), jax.tree.leaves(fused.published(state, 0)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0 if number == 1 else 1e-4, atol=1e-6)
        if number == 1:
            first = _rollout(fused, before)
            for role in ("agent",):
                np.testing.assert_array_equal(seen["first"].action[role], first.action[role])
                np.testing.assert_array_equal(seen["first"].step.reward[role], first.step.reward[role])


def _rollout(fused: Fused, state: Any) -> Any:
    from marl.core.collect import collect

    one = jax.tree.map(lambda x: x[0], state)
    run = jax.jit(
        lambda s: collect(fused.env, fused.policies, fused._params(s.learners), s.lanes, 4, record=("all",))[1]
    )
    return run(one)


@pytest.mark.parametrize(("workers", "staleness"), [(0, 0), (0, 1), (1, 0)])
def test_two_runs_of_one_seed_are_bit_equal(workers: int, staleness: int) -> None:
    runs = []
    for _ in range(2):
        local = host(workers=workers, max_staleness=staleness, random_phase=staleness > 0)
        drive(local, 4)
        runs.append(params(local))
        local.close()
    assert_same(*runs)


def test_processes_change_nothing_at_staleness_zero() -> None:
    inline, remote = host(), host(workers=2)
    one, other = drive(inline, 3), drive(remote, 3)
    assert_same(params(inline), params(remote))
    assert [int(r.episodes[0]) for r in one] == [int(r.episodes[0]) for r in other]
    for result in (one[-1], other[-1]):  # worlds are timed wherever they are stepped
        assert float(result.flow["flow/bottleneck/world"][0]) > 0
    remote.close()


def test_slots_change_nothing_but_the_order_of_lanes_in_a_batch() -> None:
    one, two = host(slots=1), host(slots=2)
    drive(one, 3), drive(two, 3)
    for a, b in zip(params(one), params(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("updates", [1, 3])
def test_the_length_of_a_dispatch_is_not_science(updates: int) -> None:
    one = host(max_staleness=1, updates_per_dispatch=updates)
    other = host(max_staleness=1, updates_per_dispatch=6)
    drive(one, 6 // updates), drive(other, 1)
    assert_same(params(one), params(other))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_staleness": 1, "random_phase": True},
        {"workers": 1},
        {"asynchronous": True, "max_staleness": None},
    ],
)
def test_saved_in_the_middle_and_resumed_equals_straight_through(options: dict[str, Any], tmp_path: Path) -> None:
    policy = GRADIENT if options.get("asynchronous") else TINY
    straight, begun, resumed = (host(policy, **options) for _ in range(3))
    drive(straight, 6)
    drive(begun, 3)
    checkpoint.save(tmp_path, 1, begun.snapshot(begun), {})
    resumed.init()
    resumed.load(checkpoint.path_of(tmp_path, 1), resumed)
    after = [resumed.dispatch(resumed, [0])[1] for _ in range(3)]
    assert_same(params(straight), params(resumed))
    assert not resumed.take_events()
    assert sum(int(r.env_steps[0]) for r in after) > 0
    for local in (straight, begun, resumed):
        local.close()


def test_a_resumed_run_on_a_jax_world_equals_one_straight_through(tmp_path: Path) -> None:
    policy = Tiny(Credit().roles)
    straight, begun, resumed = (jax_local(policy) for _ in range(3))
    drive(straight, 4)
    drive(begun, 2)
    checkpoint.save(tmp_path, 1, begun.snapshot(begun), {})
    resumed.init()
    resumed.load(checkpoint.path_of(tmp_path, 1), resumed)
    for _ in range(2):
        resumed.dispatch(resumed, [0])
    assert_same(params(straight), params(resumed))


def test_an_episode_that_does_not_play_again_is_begun_anew_and_reported(tmp_path: Path) -> None:
    begun, resumed = (host(world={"restless": True}) for _ in range(2))
    drive(begun, 2)
    checkpoint.save(tmp_path, 1, begun.snapshot(begun), {})
    resumed.init()
    resumed.load(checkpoint.path_of(tmp_path, 1), resumed)
    names = [name for _, name, _ in resumed.take_events()]
    assert names
    assert set(names) == {"episode restarted"}
    resumed.dispatch(resumed, [0])


def test_asynchronous_gradients_arrive_in_order_and_one_worker_less_than_there_are_late() -> None:
    local = host(GRADIENT, slots=4, asynchronous=True, max_staleness=None, updates_per_dispatch=12)
    lags: list[int] = []
    run = local.runs[0]
    add = run.flow.add_lag
    run.flow.add_lag = lambda lag, *rest: (lags.append(lag), add(lag, *rest))[1]  # type: ignore[method-assign]
    drive(local, 1)
    assert lags[:12] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]


def test_one_asynchronous_worker_is_the_synchronous_algorithm() -> None:
    runs = [
        host(GRADIENT, slots=1, asynchronous=asynchronous, max_staleness=None if asynchronous else 0)
        for asynchronous in (True, False)
    ]
    for local in runs:
        drive(local, 5)
    for a, b in zip(params(runs[0]), params(runs[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("slots", "staleness"), [(1, 0), (2, 2), (4, 3)])
def test_no_batch_is_older_than_the_bound_and_every_chunk_is_trained_on_once(slots: int, staleness: int) -> None:
    local = host(slots=slots, max_staleness=staleness)
    results = drive(local, 8)
    assert max(float(r.flow["flow/policy_lag_max"][0]) for r in results) <= staleness
    counted = local.runs[0].stages["all"].buffer.counters()
    assert counted["offered"] == counted["trained"] + counted["dropped"] + counted["held"]
    assert counted["trained"] == 8 * slots
    assert counted["dropped"] == 0


@pytest.mark.parametrize(
    ("policy", "options"),
    [(GRADIENT, {"asynchronous": True, "max_staleness": None}), (TINY, {"max_staleness": 4})],
)
def test_processes_may_deliver_what_older_parameters_did(policy: Any, options: dict[str, Any]) -> None:
    local = host(policy, slots=4, workers=2, updates_per_dispatch=12, **options)
    results = drive(local, 3)
    assert sum(int(r.updates["all"][0]) for r in results) >= 36
    local.close()


def test_an_update_may_find_its_rollouts_played_and_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    local = host(workers=1, max_staleness=1)
    looks = iter(range(200))  # the first update takes until all slots have filled their next rollout
    monkeypatch.setattr(Trainer, "done", property(lambda trainer: next(looks, None) is None))
    steps = [int(result.env_steps[0]) for result in drive(local, 3)]
    assert steps[0] > 0
    assert 0 in steps[1:]
    local.close()


def test_what_is_counted_is_what_the_worlds_played() -> None:
    local = host(slots=1)
    results = drive(local, 40)
    steps, episodes = (sum(int(getattr(r, name)[0]) for r in results) for name in ("env_steps", "episodes"))
    lengths = sum(int(r.length[0]) for r in results)
    open_steps = int(local.runs[0].slots[0].lanes.steps[0].sum())  # type: ignore[union-attr]
    assert steps == lengths + open_steps
    assert 4 <= lengths / episodes <= 9
    agents = sum(int(r.agent_steps[0]) for r in results)
    assert agents == 3 * steps
    returns = sum(float(r.returns["two"][0]) for r in results)
    assert 0 < returns <= lengths


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["raise", "nan", "hang"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_world_that_fails_is_replaced_and_reported_in_words(fault: str, workers: int) -> None:
    policy = FaultPolicy(share=1.0, grace=1000, timeout_s=0.3)
    local = host(world={"fault": fault}, workers=workers, faults=policy)
    drive(local, 4)
    events = local.take_events()
    local.close()
    assert events
    words = {
        "raise": "raised ValueError: the tiny world broke",
        "nan": "holds nan",
        "hang": "did not answer within 0.3 s",
    }
    assert all(words[fault] in text and "world tiny" in text and "step 2" in text for _, _, text in events)
    assert all(np.isfinite(x).all() for x in params(local))


@pytest.mark.fault
def test_a_process_that_dies_is_started_again() -> None:
    local = host(world={"fault": "die", "every": 7}, workers=1)
    drive(local, 3)
    events = local.take_events()
    local.close()
    assert any("a process that steps worlds died (exit code 7)" in text for _, _, text in events)


@pytest.mark.fault
def test_a_world_that_keeps_failing_ends_the_run_with_one_message() -> None:
    local = host(world={"fault": "raise", "every": 1}, faults=FaultPolicy(share=0.5, grace=2))
    with pytest.raises(WorldError, match=r"the tiny world broke .*so the run stops"):
        drive(local, 20)


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_replay_begins_when_it_is_full_enough_and_goes_on_after_a_restart(alpha: float | None, tmp_path: Path) -> None:
    policy = TinyReplay(ROLES, alpha)
    straight, begun, resumed = (host(policy) for _ in range(3))
    results = drive(straight, 5)
    assert [int(r.updates["all"][0]) for r in results] == [0, 2, 2, 2, 2]  # 4 lanes a round, 8 trajectories at least
    drive(begun, 3)
    checkpoint.save(tmp_path, 1, begun.snapshot(begun), {})
    resumed.init()
    resumed.load(checkpoint.path_of(tmp_path, 1), resumed)
    for _ in range(2):
        resumed.dispatch(resumed, [0])
    assert_same(params(straight), params(resumed))
    replay = straight.runs[0].stages["all"].replay
    assert replay is not None
    counted = replay.counters()
    assert counted["offered"] == 20
    assert counted["held"] == 16
    assert counted["evicted"] == 4


def test_lanes_and_slots_must_fit() -> None:
    with pytest.raises(ConfigError, match="4 lanes cannot be split evenly over 3 slots"):
        host(slots=3)
    with pytest.raises(ConfigError, match="2 slots cannot be split evenly over 4 processes"):
        host(workers=4)


def test_different_rollouts_are_refused() -> None:
    worlds, _ = HostWorlds.of(HostFactory("tiny_host:TinyHost", {}))
    policies = {"a": Tiny(worlds.roles[:1], rollout=4), "b": Tiny(worlds.roles[1:], rollout=8)}
    with pytest.raises(ConfigError, match="one length for all learners"):
        Local(worlds, policies, ["a", "b"], {}, LocalOptions(num_envs=2), [0])
