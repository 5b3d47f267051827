from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from marl.core.errors import UserError
from marl.runner.runs import create_run_folder, list_runs, resolve_run

OLD, NEW = "20260101-000000-aaaaaa", "20260102-000000-bbbbbb"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, run in (("alpha", OLD), ("alpha", NEW), ("beta", "20260103-000000-cccccc")):
        (tmp_path / name / run).mkdir(parents=True)
    (tmp_path / "alpha" / "notes").mkdir()
    return tmp_path


def test_new_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {create_run_folder(tmp_path / "runs", "x") for _ in range(20)}
    assert len(folders) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", folder.name) and folder.is_dir() for folder in folders)
    assert {folder.parent for folder in folders} == {tmp_path / "runs" / "x"}


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "", "latest"])
def test_run_cannot_leave_the_runs_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 1 to 64"):
        create_run_folder(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", "beta/20260103-000000-cccccc"),
        ("alpha", f"alpha/{NEW}"),
        (OLD, f"alpha/{OLD}"),
        (f"alpha/{OLD}", f"alpha/{OLD}"),
        ("aaaaaa", f"alpha/{OLD}"),
        ("20260102", f"alpha/{NEW}"),
    ],
)
def test_run_is_found_by_what_a_person_types(text: str, expected: str, runs: Path) -> None:
    assert resolve_run(text, runs) == runs / expected


def test_run_is_found_by_its_path_wherever_it_is(runs: Path, tmp_path: Path) -> None:
    (runs / "alpha" / OLD / "config.yaml").write_text("")
    assert resolve_run(str(runs / "alpha" / OLD), tmp_path / "elsewhere") == runs / "alpha" / OLD


def test_misspelt_run_names_the_nearest(runs: Path) -> None:
    with pytest.raises(UserError, match=r"one of alpha, beta; did you mean 'alpha'\?"):
        resolve_run("alhpa", runs)


def test_part_of_an_id_that_fits_two_runs_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match=f"'2026' fits {OLD}, {NEW}"):
        resolve_run("2026", runs)


def test_no_runs_at_all_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="marl train quickstart"):
        resolve_run("latest", tmp_path / "runs")


def test_damaged_meta_file_hides_no_run(runs: Path) -> None:
    (runs / "alpha" / OLD / "meta.json").write_text("{not json")
    (runs / "alpha" / NEW / "meta.json").write_text(json.dumps({"status": "done"}))
    assert [run.status for run in list_runs(runs)] == ["unknown", "done", "unknown"]


def test_run_whose_process_is_gone_is_not_called_running(runs: Path) -> None:
    (runs / "alpha" / OLD / "meta.json").write_text(json.dumps({"status": "running"}))
    assert list_runs(runs)[0].status == "killed"
