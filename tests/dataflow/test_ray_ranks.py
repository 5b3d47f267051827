"""A learner of two processes on Ray: one batch between them, and the end of one is the end of both."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.core.errors import LostError
from marl.dataflow.arena import pack, unpack
from marl.dataflow.chunks import Chunk, chunk_id
from marl.dataflow.local import Local, LocalOptions
from marl.dataflow.ray_actors import RayOptions
from marl.dataflow.ray_crew import ProcessOptions, Remote
from marl.dataflow.ray_placement import RayPlacement
from marl.dataflow.ray_ranks import start_learner
from marl.dataflow.ray_session import Session, SessionOptions
from marl.dataflow.shells import LearnerJob, LearnerShell, own_memory, unpack_weights

from .tiny_mesh import batch_of, blueprint, parts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.fault]
OPTIONS = ProcessOptions(cpus=0.5)


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    joined = Session(SessionOptions(cpus=2, object_store_bytes=100_000_000))
    yield joined
    joined.close()


JOB = LearnerJob(seed=0, batch=2, ordered=True, capacity=8, identity=blueprint().identity())


def start(processes: int) -> Remote:
    return start_learner(blueprint(), JOB, OPTIONS, processes)


def chunks(batch: int) -> Any:
    """The two chunks of a batch, packed."""
    numbers = [2 * batch, 2 * batch + 1]
    made = [
        Chunk(chunk_id("0", "all", n % 2, 0, batch), "all", n % 2, 0, batch, n + 1, batch, batch_of(4, n), 16, 16)
        for n in numbers
    ]
    return pack([chunk.snapshot() for chunk in made], "chunks")


def learn(ask: Any, batches: range) -> Any:
    """Every batch an update; the weights after the last."""
    for batch in batches:
        report, weights = ask("offer", batch + 1, chunks(batch))
        assert report["version"] == batch + 1
        assert len(report["accepted"]) == 2
    return unpack_weights(weights)


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_two_processes_learn_as_one_and_go_on_from_each_other(session: Any) -> None:
    alone = LearnerShell(blueprint(), JOB)
    alone.start(0, None)

    def here(method: str, *arguments: Any) -> Any:
        return getattr(alone, method)(*arguments)

    two = start(2)
    about, weights = two.ask("start", 0, None)
    assert about["devices"] == ["cpu:0"]
    assert open_ports(about["pid"]) == 1  # Ray's own
    assert_same(unpack_weights(weights), jax.device_get({"all": alone.trainer.published()["all"]}))
    assert_same(learn(two.ask, range(2)), learn(here, range(2)))
    taken, own = two.ask("take")["updates"], alone.take()["updates"]
    assert taken["metrics"]["all"] == pytest.approx(own["metrics"]["all"], rel=1e-5, abs=1e-6)
    assert taken["updates"]["all"] == 2
    assert taken["skipped"]["all"] == 0
    stored = two.ask("snapshot")

    # The other rank is killed: the learner's process ends as well, which is what the driver looks out for.
    (other,) = others_of(about["pid"])
    os.kill(other, signal.SIGKILL)
    with pytest.raises(LostError):
        learn(two.ask, range(2, 3))
    two.kill()
    second = start(2)
    second.ask("start", 2, stored)
    expected = learn(here, range(2, 4))
    assert_same(learn(second.ask, range(2, 4)), expected)

    # Two learners' snapshot goes on as one.
    one = start(1)
    one.ask("start", 4, second.ask("snapshot"))
    assert_same(learn(one.ask, range(4, 5)), learn(here, range(4, 5)))
    assert_same(own_memory(unpack(one.ask("snapshot"))), own_memory(unpack(pack(alone.trainer.snapshot(), "x"))))

    # And when the learner's process goes, so does the one that it started.
    (follower,) = others_of(second.ask("start", 4, None)[0]["pid"])
    second.kill()
    one.kill()
    wait_until_gone(follower)


def test_a_run_goes_on_when_one_of_its_learners_is_killed(session: Any) -> None:
    """F8: one rank of two is lost. All of them go on from the last checkpoint, in less than a minute."""
    made = parts()
    alone = Local(made.worlds, made.policies, ["all"], {}, LocalOptions(num_envs=8, slots=2), [0]).init()
    options = RayOptions(num_envs=8, slots=2, actors=1, learners=2, learner_processes=2, actor=OPTIONS, learner=OPTIONS)
    run = RayPlacement(blueprint(), ["all"], {}, options, SessionOptions(cpus=2), 0, 4)
    with contextlib.closing(run):
        run.init()
        for _ in range(2):
            _, expected = alone.dispatch(alone, [0])
            _, result = run.dispatch(run, [0])
            assert result.env_steps == expected.env_steps
        assert_same(run.published(run, 0), alone.published(alone, 0))
        run.snapshot(run)
        (other,) = others_of(run.run.about["learner"]["pid"])
        os.kill(other, signal.SIGKILL)
        began = time.monotonic()
        updates = sum(int(run.dispatch(run, [0])[1].updates["all"][0]) for _ in range(3))
        assert time.monotonic() - began < 60
        assert updates >= 2  # one that was under way is lost
        assert [name for _, name, _ in run.take_events()].count("learner restarted") == 1
    alone.close()


def others_of(pid: int) -> list[int]:
    """Processes that hold a rank, and are not `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read()
        except (OSError, NotADirectoryError):
            continue
        if entry.isdigit() and int(entry) != pid and b"ray::RankShell" in command:
            found.append(int(entry))
    return found


def open_ports(pid: int) -> int:
    """On how many ports a process listens for other machines."""
    own, found = set(), 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            own.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            listens = fields[3] == "0A" and f"socket:[{fields[9]}]" in own
            found += listens and not fields[1].split(":")[0].endswith("0100007F")
    return found


def wait_until_gone(pid: int) -> None:
    """Raises: TimeoutError if a process is still there after half a minute."""
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} is still there")
        time.sleep(0.05)
