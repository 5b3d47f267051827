"""The comparison of the local dataflow with its peers: everything but the peers themselves."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = "scripts/bench/dataflow"


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


def side(rates: list[float], label: str) -> dict[str, Any]:
    windows = {"rate": rates, "cores": [1.0] * len(rates), "others": [0.1] * len(rates)}
    return {"label": label, "setting": {}, "versions": {"package": "1.0"}, **windows}


def record(**more: Any) -> dict[str, Any]:
    return {"when": "2026-01-01T00:00:00+00:00", "commit": "abc", "load": 1.0, **more}


def pair(task: str, peer: str, column: str, ours: list[float], theirs: list[float], **more: Any) -> dict[str, Any]:
    sides = {"ours": side(ours, "ours so"), "theirs": side(theirs, "theirs so")}
    return {f"{task}/{peer}/{column}": record(task=task, peer=peer, column=column, **sides, **more)}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "machine": "a machine",
        "pairs": {
            **pair("cartpole", "sb3", "best", [300.0, 330.0, 310.0], [100.0, 100.0, 100.0]),
            **pair("cartpole", "sb3", "matched", [200.0, 220.0, 240.0], [100.0, 100.0, 100.0]),
            **pair("spread", "raw", "raw", [80.0], [100.0]),
            **pair("spread", "rllib_ppo", "matched", [50.0], [], error="it ended"),
        },
        "scan": {"one": record(task="cartpole", name="sb3", label="8 worlds", rate=90.0)},
        "returns": {
            f"cartpole/ours/{seed}": record(
                task="cartpole", name="ours", seed=seed, label="8 worlds", limit_s=300.0, seconds=10.0 + seed,
                env_steps=1000, start_s=3.0, **{"return": 480.0}, **({"reached": True} if seed else {}),
            )
            for seed in range(3)
        },
        "own": {"glue/32 slots": record(text="21.0 us an env step")},
    }  # fmt: skip


def test_the_table_has_medians_spreads_and_what_was_wanted(
    repository: Path, tmp_path: Path, results: dict[str, Any]
) -> None:
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    out.write_text(json.dumps(results))
    done = run(repository, "--out", str(out), "--table", str(page))
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in page.read_text().splitlines() if "Stable-Baselines3 PPO |" in line]
    matched, best, scan = rows
    assert matched[1:9] == [
        "matched",
        "theirs so",
        "100 (100 to 100)",
        "ours so",
        "220 (200 to 240)",
        "2.20 (2.00 to 2.40)",
        "≥ 3",
        "no",
    ]
    assert best[1] == "best"
    assert best[8] == "yes"
    assert scan[1:] == ["8 worlds", "90 |"]
    text = page.read_text()
    assert "failed: it ended" in text
    assert "| glue: 32 slots | 21.0 us an env step |" in text
    assert "| ours | 8 worlds | 2 of 3 | 12 (11 to 12) | 1,000 (1,000 to 1,000) | 3 (3 to 3) |" in text


def test_the_summary_says_how_much_of_the_wanted_ratio_was_reached(
    module: Any, results: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    found = module("dataflow_table").summary(results)
    assert found["ratios"]["cartpole"]["sb3"] == {"matched": 2.2, "best": 3.1}
    assert found["ratio"] == pytest.approx(2.2 / 3, abs=1e-3)
    out = tmp_path / "results.json"
    out.write_text(json.dumps(results))
    printed = run(repository, "--out", str(out), "--table", "-", "--json")
    assert json.loads(printed.stdout) == found


def test_an_empty_file_gives_a_page_that_says_so(module: Any) -> None:
    assert "nothing measured yet" in module("dataflow_table").markdown({})
    assert module("dataflow_table").summary({})["ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--windows", "0"], "--windows"),
        (["--seconds", "0"], "--seconds"),
        (["--only", "chess"], "cartpole"),
        (["--peers", "nobody"], "rllib_ppo"),
        (["--time-to-return", "--only", "glue"], "--time-to-return"),
        (["--out", "/nowhere/at/all.json", "--table", "-"], "measure first"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(repository: Path, arguments: list[str], words: str) -> None:
    done = run(repository, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_matched_settings_are_equal_in_all_that_is_compared(module: Any) -> None:
    cases = module("dataflow_cases")
    for task, peers in cases.PEERS.items():
        for name in ("ours", *peers):
            for contender in cases.matched(name, task):
                setting = contender.setting
                worlds = setting.get("worlds") or setting.get("num_envs")
                worlds = worlds or setting["runners"] * setting["worlds_per_runner"]
                assert (worlds, setting["rollout"], setting["epochs"], setting["minibatches"]) == (8, 128, 4, 4)


def test_every_setting_of_the_grid_has_a_label_of_its_own(module: Any) -> None:
    cases = module("dataflow_cases")
    for task, peers in cases.PEERS.items():
        for name in ("ours", *peers):
            labels = [contender.label for contender in cases.grid(name, task)]
            assert len(labels) == len(set(labels)) >= len(cases.GRID)


ANSWERS = """
import json, sys
print("a library's banner")
print(json.dumps({"package": "1.0"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["seconds"] > 50:
        sys.exit(3)
    print(json.dumps({"env_steps": 10, "seconds": 2.0}), flush=True)
"""


@pytest.fixture
def process(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    sides = module("dataflow_sides")
    monkeypatch.setattr(sides, "python_of", lambda environment, task: sys.executable)
    program = tmp_path / "side.py"
    program.write_text(ANSWERS)
    made = sides.Process(module("dataflow_cases").Side("peer", "sb3", str(program), {}, "so"), tmp_path / "log")
    yield made
    made.close()


def test_a_side_answers_a_window_with_its_rate(process: Any) -> None:
    assert process.about == {"package": "1.0"}
    answer = process.ask({"seconds": 1.0})
    assert answer["rate"] == 5.0
    assert answer["cores"] >= 0.0
    assert not process.broken


def test_a_side_that_ends_is_an_error_that_names_it(module: Any, process: Any) -> None:
    with pytest.raises(module("dataflow_sides").SideError, match="peer ended with 3"):
        process.ask({"seconds": 100.0})
    assert process.broken


def test_a_mean_return_is_that_of_the_last_hundred_episodes(repository: Path) -> None:
    code = (
        "import serving; r = serving.Returns(); r.add(990.0, 99); a = r.mean(); r.add(0.0, 1); b = r.mean();"
        "[r.add(1.0) for _ in range(100)]; serving.say({'early': a, 'full': b, 'last': r.mean()})"
    )
    command = [sys.executable, "-c", code]
    folder = repository / "scripts" / "bench" / "peers"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"early": None, "full": 9.9, "last": 1.0}


def test_a_page_of_tables_keeps_what_was_written_by_hand(module: Any) -> None:
    table = module("dataflow_table")
    page = "<!-- -->\n# Title\n\nconditions\n\n## CartPole-v1\n\nnew\n"
    before = f"<!-- -->\n# Title\n\nold conditions\n\n{table.FINDINGS}\n\nwords\n\n## CartPole-v1\n\nold\n"
    kept = table.with_findings(page, before)
    assert kept == f"<!-- -->\n# Title\n\nconditions\n\n{table.FINDINGS}\n\nwords\n\n## CartPole-v1\n\nnew\n"
    assert table.with_findings(page, "") == page
