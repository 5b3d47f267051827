"""Learners that share the lanes of a batch take the step of one: on the devices of a process, and across processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.errors import ConfigError, LostError, RunError, ShapeError
from marl.dataflow.chunks import map_lanes
from marl.dataflow.learner import LearnerCore
from marl.dataflow.learner_group import LearnerGroup
from marl.dataflow.learner_rank import free_address, key_of, key_words
from marl.dataflow.learner_sharded import ShardedLearner, split_lanes

from .rank_process import ROOT, ProcessRank
from .tiny_mesh import TinyMesh, batch_of, parts

KEY = jax.random.key(3)


def cases(*names: str) -> dict[str, Any]:
    """What `sharded_cases` finds with four emulated devices."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.dataflow.sharded_cases", *names]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_same(one: Any, other: Any, within: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=within, atol=within)


# ---- lanes -----------------------------------------------------------------------------------------------------------


def test_lanes_that_cannot_be_split_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataflow\.learners: a batch of 6 lanes .* over 4 learners"):
        split_lanes(batch_of(6), 4)


def test_split_lanes_side_by_side_are_the_batch() -> None:
    batch = batch_of(6)
    split = split_lanes(batch, 3)
    assert [part.version.shape for part in split] == [(2,)] * 3
    whole = map_lanes(lambda axis, *leaves: np.concatenate(leaves, axis), *split)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_key_travels_as_json() -> None:
    sent = json.loads(json.dumps(key_words(KEY)))
    np.testing.assert_array_equal(jax.random.key_data(key_of(sent)), jax.random.key_data(KEY))


# ---- devices of one process ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_devices_share_an_update_and_nothing_else_changes() -> None:
    found = cases("tiny")["tiny"]
    state, metrics = found["equal"]["4"]
    assert state < 1e-5
    assert metrics < 1e-5
    assert found["equal"]["moved"] > 1e-2
    # One lane of one device without a finite gradient: no device takes the step.
    metrics, moved, skipped = found["poisoned"]
    assert metrics == {"loss/policy": 0.0}
    assert moved == 0
    assert skipped == 1
    assert found["resumed"] < 1e-5  # 2 -> 1 -> 2 devices
    assert found["gradient"] < 1e-5
    assert found["applied"] < 1e-5
    assert found["published on"] == [0]
    assert found["priority"] < 1e-6
    assert "drifted apart" in found["deaf"]
    message, moved = found["disagreed"]
    assert "not at the same update" in message
    assert moved == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo", "a3c", "recurrent"])
def test_two_and_four_devices_learn_from_a_whole_batch_what_one_does(case: str) -> None:
    found = cases(case)[case]
    assert found.pop("moved") > 1e-2
    assert found
    for state, metrics in found.values():
        assert state < 1e-5
        assert metrics < 1e-5


@pytest.mark.long
@pytest.mark.slow
def test_a_local_run_learns_on_two_devices_what_it_does_on_one() -> None:
    found = cases("local")["local"]
    assert found["apart"] < 1e-5
    assert found["updates"] == [1, 1]
    assert found["version"] == 4


@pytest.mark.long
@pytest.mark.slow
def test_minibatches_are_made_of_what_each_device_draws_from_its_own_lanes() -> None:
    found = cases("minibatches")["minibatches"]
    assert found["same split"] < 1e-5
    assert found["own split"] > 1e-5  # another draw, so another step


# ---- the driver's side, with ranks that do what a test says ----------------------------------------------------------


class Told:
    """An answer and a rank in one: `answers` by method; an error is raised, None never comes."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.calls, self.killed = answers, [], 0

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, *arguments))
        answer = self.answers.get(method, {})

        class Answer:
            def ready(self) -> bool:
                return answer is not None

            def result(self) -> Any:
                if isinstance(answer, Exception):
                    raise answer
                return answer

        return Answer()

    def kill(self) -> None:
        self.killed += 1


DONE = {"metrics": {"loss": 2.5}, "skipped": 1}


def test_all_ranks_are_told_the_same_and_get_their_own_lanes() -> None:
    ranks = [Told({"update": DONE}), Told({"update": {"metrics": {}, "skipped": 7}})]
    group = LearnerGroup("all", TinyMesh(), ranks)
    batch = batch_of(6)
    metrics = group.update(group.place(batch), 30, KEY)
    assert dict(metrics) == {"loss": 2.5}
    assert int(group.skipped) == 1
    for rank, lanes in zip(ranks, split_lanes(batch, 2), strict=True):
        (place, number, sent), (update, *arguments) = rank.calls
        assert (place, update, arguments) == ("place", "update", [number, 30, key_words(KEY)])
        assert_same(sent, lanes)


def test_a_failed_rank_ends_the_group_although_the_others_never_answer() -> None:
    ranks = [Told({"update": None}), Told({"update": RunError("out of memory")})]
    group = LearnerGroup("all", TinyMesh(), ranks)
    metrics = group.update(group.place(batch_of(4)), 0, KEY)
    assert group.pending.is_ready()
    with pytest.raises(LostError, match="out of memory"):
        dict(metrics)
    assert [rank.killed for rank in ranks] == [1, 1]


def test_what_a_rank_finds_wrong_with_the_settings_is_said_as_it_is() -> None:
    ranks = [Told({"update": ShapeError("minibatches: 3 does not divide")}), Told({"update": None})]
    group = LearnerGroup("all", TinyMesh(), ranks)
    metrics = group.update(group.place(batch_of(4)), 0, KEY)
    with pytest.raises(ShapeError, match="minibatches"):
        dict(metrics)
    assert [rank.killed for rank in ranks] == [1, 1]


def test_a_batch_that_a_rank_could_not_take_is_noticed_with_its_update() -> None:
    ranks = [Told({"update": DONE}), Told({"update": None, "place": RunError("no room")})]
    group = LearnerGroup("all", TinyMesh(), ranks)
    metrics = group.update(group.place(batch_of(4)), 0, KEY)
    with pytest.raises(LostError, match="no room"):
        dict(metrics)


def test_a_silent_rank_ends_the_group_in_time() -> None:
    ranks = [Told({}), Told({"snapshot": None})]
    group = LearnerGroup("all", TinyMesh(), ranks, timeout=0.05)
    with pytest.raises(LostError, match=r"not answered for 0\.05 s"):
        group.snapshot()
    assert [rank.killed for rank in ranks] == [1, 1]


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Makes groups of two processes and ends them."""
    groups: list[LearnerGroup] = []

    def start(**options: Any) -> LearnerGroup:
        address = free_address()
        ranks = [ProcessRank(address, 2, rank, tmp_path, options) for rank in range(2)]
        groups.append(LearnerGroup("all", parts(**options).algorithms["all"], ranks))
        groups[-1].start(KEY)
        return groups[-1]

    yield start
    for group in groups:
        group.close()


def learn(learner: Any, seeds: range, **options: Any) -> list[dict[str, float]]:
    """An update a seed; metrics of each."""
    found = []
    for seed in seeds:
        metrics = learner.update(learner.place(batch_of(8, seed, **options)), seed, jax.random.fold_in(KEY, seed))
        found.append({tag: float(value) for tag, value in metrics.items()})
    return found


@pytest.mark.long
@pytest.mark.fault
def test_two_processes_learn_as_one_and_a_lost_one_ends_both(started: Any) -> None:
    group, one = started(), LearnerCore("all", TinyMesh())
    one.start(KEY)
    assert_same(learn(group, range(2)), learn(one, range(2)))
    assert_same(group.published(), one.published())
    assert learn(group, range(2, 3), poisoned=6) == [{"loss/policy": 0.0}]  # a lane of the second process
    assert int(group.skipped) == int(np.int32(group.skipped)) == 1
    learn(one, range(2, 3), poisoned=6)
    assert_same(group.snapshot(), one.snapshot())

    os.kill(group.ranks[1].process.pid, signal.SIGKILL)
    with pytest.raises(LostError):
        learn(group, range(3, 4))
    assert [rank.process.poll() for rank in group.ranks] == [-signal.SIGKILL] * 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.fault
def test_two_processes_go_on_from_one_and_one_from_two(started: Any) -> None:
    straight, one = LearnerCore("all", TinyMesh()), LearnerCore("all", TinyMesh())
    for learner in (straight, one):
        learner.start(KEY)
    learn(straight, range(6))
    learn(one, range(2))
    first = started()
    first.restore(one.snapshot())
    learn(first, range(2, 4))
    stored = first.snapshot()
    os.kill(first.ranks[0].process.pid, signal.SIGKILL)  # the rank that keeps the group together
    with pytest.raises(LostError):
        learn(first, range(4, 5))
    second = started()
    second.restore(stored)
    learn(second, range(4, 6))
    assert_same(second.snapshot(), straight.snapshot())
    one.restore(stored)
    learn(one, range(4, 6))
    assert_same(one.snapshot(), straight.snapshot())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.fault
def test_a_rank_that_hangs_or_is_elsewhere_ends_the_group(started: Any) -> None:
    group = started()
    learn(group, range(1))
    group.timeout = 2.0
    os.kill(group.ranks[1].process.pid, signal.SIGSTOP)
    with pytest.raises(LostError, match="not answered"):
        learn(group, range(1, 2))

    group = started()
    for number, rank in enumerate(group.ranks):
        rank.call("place", 10 + number, split_lanes(batch_of(8), 2)[number])
    answers = [rank.call("update", 10 + n, 0, key_words(KEY)) for n, rank in enumerate(group.ranks)]
    with pytest.raises(LostError, match="not at the same update"):
        group._await(answers)


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_learn_by_ppo_as_one(started: Any) -> None:
    group, one = started(ppo=True), LearnerCore("all", parts(ppo=True).algorithms["all"])
    one.start(KEY)
    batch = batch_of(8, ppo=True)
    for number in range(3):
        for learner in (group, one):
            metrics = learner.update(learner.place(batch), number, jax.random.fold_in(KEY, number))
    assert dict(group.pending) == pytest.approx({tag: float(x) for tag, x in metrics.items()}, rel=1e-4, abs=1e-6)
    assert_same(group.snapshot(), one.snapshot(), within=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_a_gradient_may_come_from_elsewhere(started: Any) -> None:
    group, one = started(), LearnerCore("all", TinyMesh())
    one.start(KEY)
    batch = batch_of(8)
    grads, metrics = group.gradient(one.published(), group.place(batch), KEY)
    own, own_metrics = one.gradient(one.published(), one.place(batch), KEY)
    assert_same((grads, dict(metrics)), (own, own_metrics))
    done = group.apply(grads, metrics, 5)
    one.apply(own, own_metrics, 5)
    assert dict(done) == pytest.approx({tag: float(value) for tag, value in own_metrics.items()})
    assert_same(group.snapshot(), one.snapshot())


@pytest.mark.long
@pytest.mark.slow
def test_priorities_come_back_in_the_order_of_the_lanes(started: Any) -> None:
    group, batch = started(replay=True), batch_of(8)
    priority = group.update(group.place(batch), 0, KEY)["priority"]
    np.testing.assert_allclose(priority, batch.step.reward["agent"][1:].sum((0, 2)), rtol=1e-6)


def test_a_learner_on_one_device_of_a_mesh_is_used_as_any_other() -> None:
    learner = ShardedLearner("all", TinyMesh, jax.devices()[:1])
    learner.start(KEY)
    assert learner.drift() == 0
    jax.block_until_ready(learner.pending)
