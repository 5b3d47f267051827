"""evaluations.json: round trip, size, merging, and one clear message for each way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.errors import UserError
from marl.evaluate.records import Episodes, Evaluation, append_evaluation, merge, read_evaluations, write_evaluations


def entry(**changes: Any) -> dict[str, Any]:
    """One valid evaluation of two episodes and two agents, as it stands in the file."""
    whole: dict[str, Any] = {
        "label": "quickstart",
        "algorithm": "ppo",
        "env": {"id": "heterogeneous_highway_v0", "scenario": "mild"},
        "seed": 0,
        "env_steps": 1000,
        "kind": "test",
        "greedy": False,
        "commit": "1a2b3c4",
        "config_hash": "ff",
        "time": 1.5,
        "episodes": {
            "seed_index": [0, 1],
            "returns": {"vehicle": [[1.0, 2.0], [3.0, 5.0]]},
            "length": [90, 60],
            "agent_steps": [180, 100],
            "info": {"success": [1.0, 0.5]},
        },
    }
    return {**whole, **changes}


def episodes(**changes: Any) -> dict[str, Any]:
    return entry(episodes={**entry()["episodes"], **changes})


def write(path: Path, entries: list[Any], **header: Any) -> Path:
    path.write_text(json.dumps({"format": "marl-evaluations", "version": 1, "evaluations": entries, **header}))
    return path


def test_a_written_file_reads_back_equal(tmp_path: Path) -> None:
    evaluations = [Evaluation.model_validate(entry()), Evaluation.model_validate(entry(seed=1, greedy=True))]
    write_evaluations(tmp_path / "e.json", evaluations)
    assert read_evaluations(tmp_path / "e.json") == evaluations


def test_an_empty_file_of_records_is_valid(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "e.json", [])
    assert read_evaluations(tmp_path / "e.json") == []


def test_columns_are_means_over_agents_and_the_worlds_own_figures() -> None:
    found = Evaluation.model_validate(entry()).episodes
    assert found.metrics == ("return/vehicle", "length", "agent_steps", "success")
    assert found.column("return/vehicle").tolist() == [1.5, 4.0]
    assert found.column("length").tolist() == [90.0, 60.0]
    assert found.column("success").tolist() == [1.0, 0.5]


def test_a_list_of_episode_objects_reads_like_columns(tmp_path: Path) -> None:
    rows = [
        {
            "seed_index": 0,
            "returns": {"vehicle": [1.0, 2.0]},
            "length": 90,
            "agent_steps": 180,
            "info": {"success": 1.0},
        },
        {
            "seed_index": 1,
            "returns": {"vehicle": [3.0, 5.0]},
            "length": 60,
            "agent_steps": 100,
            "info": {"success": 0.5},
        },
    ]
    path = write(tmp_path / "e.json", [entry(episodes=rows)])
    assert read_evaluations(path) == [Evaluation.model_validate(entry())]


def _batch(n: int, rng: np.random.Generator) -> Episodes:
    info = {f"reward/vehicle/term_{i}": rng.normal(size=n).astype(np.float32) for i in range(8)}
    return Episodes.from_arrays(
        {"vehicle": rng.uniform(0, 90, (n, 5)).astype(np.float32)},
        rng.integers(1, 91, n).astype(np.int32),
        rng.integers(1, 451, n).astype(np.int32),
        info,
        first=10,
    )


def test_64_episodes_of_five_agents_take_under_40_kb(tmp_path: Path) -> None:
    batch = _batch(64, np.random.default_rng(0))
    write_evaluations(tmp_path / "e.json", [Evaluation.model_validate(entry() | {"episodes": batch.model_dump()})])
    assert (tmp_path / "e.json").stat().st_size < 40_000
    assert batch.seed_index[0] == 10


def test_numbers_keep_six_digits() -> None:
    found = Episodes.from_arrays({"a": [[1.23456789]]}, [1], [1])
    assert found.returns["a"] == ((1.23457,),)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match=r"returns\.a.*finite"):
        Episodes.from_arrays({"a": [[float("nan")]]}, [1], [1])


def test_merge_keeps_the_last_of_two_records_that_say_the_same() -> None:
    old, new = Evaluation.model_validate(entry(time=1.0)), Evaluation.model_validate(entry(time=2.0))
    other = Evaluation.model_validate(entry(seed=1))
    assert merge([old, other], [new]) == [new, other]


def test_appending_twice_leaves_one_record(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    for env_steps in (1000, 2000, 1000):
        append_evaluation(path, Evaluation.model_validate(entry(env_steps=env_steps)))
    assert [e.env_steps for e in read_evaluations(path)] == [1000, 2000]


def test_the_folder_of_a_seed_is_made(tmp_path: Path) -> None:
    path = tmp_path / "seed_1" / "evaluations.json"
    append_evaluation(path, Evaluation.model_validate(entry()))
    assert len(read_evaluations(path)) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.json"
    write_evaluations(path, [Evaluation.model_validate(entry())])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("marl.io.files.os.replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*e\.json"):
        write_evaluations(path, [])
    assert len(read_evaluations(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": "marl-eval', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not an evaluation file"),
        ('{"format": "other"}', "not an evaluation file"),
        ('{"format": "marl-evaluations", "version": 2, "evaluations": []}', "version 2, this program reads version 1"),
        ('{"format": "marl-evaluations", "version": 1}', '"evaluations" must be a list'),
    ],
)
def test_a_file_that_is_no_evaluation_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_evaluations(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json.*No such file"):
        read_evaluations(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(seed="0"), r"evaluations\[0\]\.seed: .*integer.*given: '0'"),
        (entry(env_steps=-1), r"env_steps: .*greater than or equal to 0"),
        (entry(kind="train"), r"kind: .*'validation' or 'test'"),
        (entry(greedy="no"), r"greedy: .*boolean"),
        (entry(label=""), r"label: .*at least 1"),
        (entry(env={}), r"env: .*must hold the world's `id`"),
        (entry(colour="red"), r"colour: .*not permitted"),
        ({k: v for k, v in entry().items() if k != "seed"}, r"seed: Field required"),
        (7, r"evaluations\[0\]"),
        (episodes(length=[90]), r"length has 1 entries for 2 episodes"),
        (episodes(seed_index=[3, 3]), r"names an episode twice"),
        (episodes(seed_index=[]), r"seed_index: .*at least 1"),
        (episodes(returns={}), r"returns: .*at least 1"),
        (episodes(returns={"vehicle": [[1.0], [1.0, 2.0]]}), r"same number of agents"),
        (episodes(returns={"vehicle": [[], []]}), r"at least one"),
        (episodes(info={"success": ["x", 1.0]}), r"info\.success\.0: .*number"),
        (episodes(info={"success": ["NaN", 1.0]}), r"info\.success\.0: .*finite"),
        (entry(episodes=[{"seed_index": 0}, {"length": 0}]), r"same entries"),
        (entry(episodes=[1]), r"each episode must be an object"),
        (entry(episodes=[]), r"seed_index: Field required"),
    ],
)
def test_a_wrong_record_is_refused_with_its_place(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_evaluations(write(tmp_path / "e.json", [bad]))
