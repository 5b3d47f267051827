"""The measurements of the dataflow on Ray: everything but the runs themselves."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest

SCRIPT = "scripts/bench/ray"


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def module(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the script by its name."""
    monkeypatch.syspath_prepend(str(repository / "scripts" / "bench"))

    def find(name: str) -> ModuleType:
        return importlib.import_module(name)

    return find


def side(rates: list[float], label: str = "so", **more: Any) -> dict[str, Any]:
    count = len(rates)
    shares = [{"world": 0.5, "inference": 0.1, "waiting": 0.9}] * count
    kinds = [{"actor": 1.25, "learner": 0.5}] * count
    windows = {"cores": [1.75] * count, "others": [0.1] * count, "shares": shares, "by_kind": kinds}
    return {"label": label, "setting": {}, "versions": {"jax": "1.0"}, "rate": rates, **windows, **more}


def group(name: str, part: str, task: str, of: str, **sides: dict[str, Any]) -> dict[str, Any]:
    record = {"when": "2026-01-01T00:00:00+00:00", "commit": "abc", "load": 1.0}
    return {name: record | {"part": part, "group": name, "task": task, "of": of, "sides": sides}}


@pytest.fixture
def results() -> dict[str, Any]:
    peer = side([100.0, 100.0, 110.0], "2 × 16 worlds") | {"shares": [{}] * 3, "by_kind": [{}] * 3}
    three = {"inline": side([200.0, 210.0]), "served": side([190.0, 180.0]), "shared": side([100.0, 100.0])}
    ours = {"inline": side([400.0, 420.0, 440.0]), "served": side([], error="it ended"), "impala": peer}
    waiting = {"1": side([180.0]), "2": side([360.0]), "4": side([700.0]), "8": side([990.0])}
    return {
        "machine": "a machine",
        "groups": {
            **group("impala cartpole", "impala", "cartpole", "impala", **ours),
            **group("waiting", "waiting", "waiting", "1", **waiting),
            **group("served 64", "served", "spread", "inline", **three),
        },
        "scan": {"one": {"part": "impala", "task": "cartpole", "side": "inline", "label": "2 × 8 worlds", "rate": 9.0}},
        "costs": {
            "startup": {
                "when": "2026-01-02T00:00:00+00:00", "commit": "abd", "load": 2.0, "text": "20.0 s to the first metrics"
            },
        },
    }  # fmt: skip


PAGE = """# By hand

Words above.

<!-- begin impala: written by scripts/bench/ray --table -->
old
<!-- end impala -->

Words between.

<!-- begin costs: written by scripts/bench/ray --table -->
<!-- end costs -->

Words below.
"""


def test_tables_go_between_the_markers_of_a_page_and_nothing_else_changes(
    repository: Path, tmp_path: Path, results: dict[str, Any]
) -> None:
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    out.write_text(json.dumps(results))
    page.write_text(PAGE)
    for _ in range(2):  # a second time changes nothing
        done = run(repository, "--out", str(out), "--table", str(page))
        assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "old" not in text
    assert [line for line in text.splitlines() if line.startswith(("#", "Words", "<!--"))] == [
        line for line in PAGE.splitlines() if line.startswith(("#", "Words", "<!--"))
    ]
    assert text.count("| startup | 20.0 s to the first metrics |") == 1
    row = next(line for line in text.splitlines() if line.startswith("| inline | so"))
    assert row.split(" | ")[2:] == [
        "420 (400 to 440)",
        "4.00 (4.00 to 4.20)",
        "≥ 3",
        "yes",
        "world",
        "actors 1.25, learner 0.50",
        "10% |",
    ]
    assert "failed: it ended" in text


def test_a_page_without_markers_is_left_alone(repository: Path, tmp_path: Path, results: dict[str, Any]) -> None:
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    out.write_text(json.dumps(results))
    for words in ("# Nothing\n", PAGE.replace("<!-- end costs -->", "")):
        page.write_text(words)
        done = run(repository, "--out", str(out), "--table", str(page))
        assert done.returncode == 1
        assert str(page) in done.stderr
        assert page.read_text() == words


def test_the_summary_is_the_smallest_share_of_what_was_wanted(module: Any, results: dict[str, Any]) -> None:
    found = module("ray_table").summary(results)
    assert found["ratios"]["waiting"] == {"2": 2.0, "4": 3.889, "8": 5.5}
    assert found["ratio"] == pytest.approx(5.5 / 6, abs=1e-3)
    del results["groups"]["waiting"]
    assert module("ray_table").summary(results)["ratio"] == pytest.approx(0.904 / 0.9, abs=1e-3)
    assert module("ray_table").summary({})["ratio"] is None


def test_designs_are_shown_beside_the_one_that_shares_a_core(module: Any, results: dict[str, Any]) -> None:
    lines = module("ray_table").tables(results)["ablation"].splitlines()
    assert [line.split(" | ")[2].removesuffix(" |") for line in lines[2:]] == [
        "1",
        "2.05 (2.00 to 2.10)",
        "1.85 (1.80 to 1.90)",
    ]


def test_what_was_not_measured_says_so(module: Any) -> None:
    found = module("ray_table").tables({})
    assert found["conditions"] == "Nothing measured yet."
    assert found["waiting"] == "Not measured yet."


def test_the_page_of_the_repository_has_a_place_for_every_table(module: Any, repository: Path) -> None:
    text = (repository / "docs" / "results" / "ray.md").read_text()
    for marker in module("ray_table").tables({}):
        assert module("ray_table").begin(marker) in text
        assert module("ray_table").end(marker) in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--windows", "0"], "--windows"),
        (["--seconds", "0"], "--seconds"),
        (["--only", "chess"], "impala"),
        (["--out", "/nowhere/at/all.json", "--table", "-"], "measure first"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(repository: Path, arguments: list[str], words: str) -> None:
    done = run(repository, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_sides_that_are_compared_differ_in_their_names_and_settings_only_where_they_should(module: Any) -> None:
    cases = module("ray_cases")
    for part in ("impala", "waiting", "actors", "served", "ablation"):
        for found in cases.groups(part, lambda task, sides: sides[-1]):
            labels = [contender.label for contender in found.sides.values()]
            assert len(labels) == len(set(labels))
            assert found.of in found.sides
            for contender in found.sides.values():
                setting = contender.setting
                if contender.name == "ours":
                    assert (setting["epochs"], setting["minibatches"]) == (1, 1)
                else:
                    assert setting["runners"] == cases.ACTORS
    waiting = cases.groups("waiting", None)[0]
    assert [s.setting["num_envs"] for s in waiting.sides.values()] == [1, 2, 4, 8]


EXPERIMENTS = """
import ray_cases, ray_ours, serving

found = []
for part in ("impala", "waiting", "actors", "served"):
    for group in ray_cases.groups(part, lambda task, sides: sides[0]):
        for side in group.sides.values():
            if side.name == "ours":
                config = ray_ours.experiment(side.setting)
                found.append(config.dataflow.kind == side.setting["kind"])
                found.append(config.dataflow.num_envs == side.setting["num_envs"])
serving.say({"same": all(found), "compared": len(found)})
"""


@pytest.mark.long
def test_every_side_of_ours_is_an_experiment_that_can_be_written(repository: Path) -> None:
    # In a process of its own: a side takes over the standard output.
    folder = repository / "scripts" / "bench"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(repository), str(folder / "peers")))}
    command = [sys.executable, "-c", EXPERIMENTS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"same": True, "compared": 42}


def test_the_waiting_world_is_one_that_gymnasium_takes(module: Any) -> None:
    world = module("ray_waiting_world").WaitingWorld(wait_s=0.0)
    assert isinstance(world, gymnasium.Env)
    row, _ = world.reset(seed=0)
    assert world.observation_space.contains(row)
    ends = [world.step(world.action_space.sample())[3] for _ in range(100)]
    assert ends == [False] * 99 + [True]


def test_processes_are_found_with_their_time_and_memory(module: Any) -> None:
    processes = module("ray_processes")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in processes.below(os.getpid())
        resident, own = processes.memory_mib(os.getpid())
        assert resident >= own > 1.0
        assert processes.seconds(os.getpid()) > 0.0
    finally:
        child.communicate(b"\n")
    assert processes.seconds(child.pid) == 0.0
    assert processes.memory_mib(child.pid) == (0.0, 0.0)
    meter = processes.Meter(object())  # of a run that is all in one process
    assert set(meter.take()) == {"driver"}
