"""The Ray placement: the numbers of the local one at staleness 0, the same counters, resume, devices of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.errors import UserError
from marl.core.host_group import FaultPolicy
from marl.dataflow.local import Local, LocalOptions
from marl.dataflow.ray_crew import ProcessOptions
from marl.dataflow.ray_placement import RayPlacement
from marl.dataflow.ray_run import RayOptions
from marl.dataflow.ray_session import Session, SessionOptions

from . import tiny_parts

pytestmark = [pytest.mark.ray, pytest.mark.long]
FAULTS = (1.0, 1000, 60.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    session = Session(SessionOptions(cpus=16, object_store_bytes=200 * 2**20))
    yield session
    session.close()


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def on_ray(cluster: Session, parts: dict[str, Any], **options: Any) -> RayPlacement:
    """Four lanes; what the session of a placement joins is the module's cluster."""
    options = {"num_envs": 4, "slots": 2, "actors": 2, "faults": FAULTS, **options}
    placement = RayPlacement(
        tiny_parts.blueprint(**parts), ["all"], {}, RayOptions(**options), SessionOptions(), 0, rollout=4
    )
    placement.run.servers.folder = cluster.folder
    return placement


def in_one_process(parts: dict[str, Any], **options: Any) -> Local:
    made = tiny_parts.make(**parts)
    chosen = LocalOptions(num_envs=4, slots=2, faults=FaultPolicy(*FAULTS), **options)
    return Local(made.worlds, made.policies, made.learners, {}, chosen, [0])


def params(placement: Any) -> list[Any]:
    return [np.asarray(x) for x in jax.tree.leaves(placement.published(placement, 0))]


def counters(result: Any) -> list[int]:
    return [int(getattr(result, name)[0]) for name in ("env_steps", "agent_steps", "episodes", "length")]


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ({"world": {}}, {}),
        ({"world": {}}, {"servers": 1}),
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param({"world": {}, "policy": "replay"}, {}, marks=pytest.mark.slow),
    ],
    ids=["inline", "served", "a world in JAX", "replay"],
)
def test_at_staleness_zero_the_numbers_are_those_of_one_process(
    cluster: Session, parts: dict[str, Any], options: dict[str, Any]
) -> None:
    remote, local = on_ray(cluster, parts, **options), in_one_process(parts)
    try:
        remote.init()
        local.init()
        for number in range(1, 11):
            _, one = remote.dispatch(remote, [0])
            _, other = local.dispatch(local, [0])
            assert counters(one) == counters(other)
            for a, b in zip(params(remote), params(local), strict=True):
                np.testing.assert_allclose(a, b, rtol=0 if number == 1 else 1e-4, atol=1e-6)
        assert one.flow["flow/policy_lag_max"] == 0
        if options:  # a policy server is one of the processes, and actions came from nowhere else
            server = remote.run.servers.servers[0]
            assert server.remote.ask("counters")["answered"] >= 10 * 2 * 4
            assert server.about["env"]["JAX_PLATFORMS"] == "cpu"
    finally:
        remote.close()


def test_a_run_that_was_saved_goes_on_as_if_it_had_not_stopped(cluster: Session) -> None:
    """Bit for bit, although one actor now has the slots of two."""
    first, other = on_ray(cluster, {"world": {}}), on_ray(cluster, {"world": {}}, actors=1)
    try:
        first.init()
        first.dispatch(first, [0])
        stored = first.snapshot(first)
        _, straight = first.dispatch(first, [0])
        other.init().restore(stored)
        _, resumed = other.dispatch(other, [0])
        assert counters(resumed) == counters(straight)
        for a, b in zip(params(other), params(first), strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        first.close()
        other.close()


def test_stale_rollouts_and_gradients_keep_their_bounds_and_every_process_its_device(cluster: Session) -> None:
    stale = on_ray(cluster, {"world": {}}, max_staleness=2, updates_per_dispatch=8)
    workers = on_ray(cluster, {"world": {}, "policy": "gradient"}, asynchronous=True, updates_per_dispatch=12)
    try:
        for placement in (stale, workers):
            placement.init()
            _, result = placement.dispatch(placement, [0])
            assert int(result.updates["all"][0]) == placement.options.updates_per_dispatch
            assert int(result.env_steps[0]) > 0
        _, result = stale.dispatch(stale, [0])
        assert result.flow["flow/policy_lag_max"] <= 2
        assert result.flow["flow/chunks_dropped"] == 0
        # A worker may be overtaken as often as the other is faster; how often is logged, and each counts once.
        _, result = workers.dispatch(workers, [0])
        assert int(result.updates["all"][0]) == 12
        assert 0 <= result.flow["flow/policy_lag"] <= result.flow["flow/policy_lag_max"]
        for placement in (stale, workers):
            abouts = [placement.run.about["learner"], *(hand.about for hand in placement.run.actors.hands)]
            assert len({about["pid"] for about in abouts}) == 3
            for about in abouts:
                assert about["env"]["JAX_PLATFORMS"] == "cpu"
                assert about["env"]["OMP_NUM_THREADS"] == "1"
    finally:
        stale.close()
        workers.close()


def test_a_process_with_a_gpu_takes_its_share_of_the_memory_and_others_see_none() -> None:
    assert ProcessOptions().environment()["JAX_PLATFORMS"] == "cpu"
    half = ProcessOptions(gpus=0.5, memory_fraction=0.8).environment()
    assert half["JAX_PLATFORMS"] == "cuda,cpu"
    assert half["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.400"
    assert "--xla_force_host_platform_device_count=2" in ProcessOptions(host_devices=2).environment()["XLA_FLAGS"]


def test_a_cluster_that_is_not_there_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        Session(SessionOptions(address="127.0.0.1:1"))
    with pytest.raises(UserError, match="expected host:port"):
        Session(SessionOptions(address="nowhere"))
