"""Which runs belong together, which evaluations count, and what is refused with a clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marl.core.errors import UserError
from marl.evaluate.records import Episodes, write_evaluations
from marl.io.files import dumps


def test_seeds_of_two_runs_with_the_same_settings_are_pooled(make: Any, tmp_path: Path) -> None:
    one, two = (make.run(tmp_path / n, "x", 50.0, seeds) for n, seeds in (("a", (0, 1, 2)), ("b", (3, 4))))
    made = make.report([one, two], tmp_path / "out")
    assert [(row.method.label, row.n_seeds) for row in made.sections[0].rows] == [("x", 5)]


def test_a_repeated_seed_is_no_replicate(make: Any, tmp_path: Path) -> None:
    one, two = (make.run(tmp_path / n, "x", 50.0, (0, 1)) for n in "ab")
    made = make.report([one, two], tmp_path / "out")
    assert sorted((row.method.label, row.n_seeds) for row in made.sections[0].rows) == [("x", 2), ("x (b)", 2)]
    assert "repeats a seed" in made.files["report.html"].read_text()


def test_runs_of_one_name_with_other_settings_stay_apart(make: Any, tmp_path: Path) -> None:
    one, two = (make.run(tmp_path / n, "x", 50.0, (seed,)) for n, seed in (("a", 0), ("b", 1)))
    config = json.loads((two / "config.yaml").read_text())
    (two / "config.yaml").write_text(json.dumps({**config, "agents": {"vehicle": {"algorithm": "ppo", "clip": 0.3}}}))
    made = make.report([one, two], tmp_path / "out")
    assert {row.method.label for row in made.sections[0].rows} == {"x", "x (b)"}


def test_the_same_run_named_twice_counts_once(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "a", "x", 50.0, (0, 1))
    assert make.report([run, run / "../a"], tmp_path / "out").sections[0].rows[0].n_seeds == 2


def test_the_last_checkpoint_and_test_episodes_are_preferred(make: Any, tmp_path: Path) -> None:
    records = [
        make.evaluation("x", 80.0, env_steps=900, kind="validation"),
        make.evaluation("x", 50.0, env_steps=200),
        make.evaluation("x", 20.0, env_steps=100),
        make.evaluation("x", 70.0, seed=1, env_steps=900, kind="validation"),
    ]
    write_evaluations(tmp_path / "e.json", records)
    made = make.report([tmp_path / "e.json"], tmp_path / "out")
    (row,) = made.sections[0].rows
    assert row.env_steps == (200, 200)
    assert row.method.episodes_kind == "test"
    page = made.files["report.html"].read_text()
    assert "seeds 1 have no test episodes" in page
    assert "of test episodes at several checkpoints" in page


def test_validation_episodes_are_called_so(make: Any, tmp_path: Path) -> None:
    write_evaluations(tmp_path / "e.json", [make.evaluation("x", 50.0, kind="validation")])
    assert "validation episodes" in make.report([tmp_path / "e.json"], tmp_path / "out").files["table.md"].read_text()


def test_sampled_and_greedy_actions_are_two_rows(make: Any, tmp_path: Path) -> None:
    write_evaluations(tmp_path / "e.json", [make.evaluation("x", 50.0), make.evaluation("x", 55.0, greedy=True)])
    rows = make.report([tmp_path / "e.json"], tmp_path / "out").sections[0].rows
    assert [row.method.actions for row in rows] == ["greedy", "sampled"]


def test_scenarios_get_a_section_each_and_an_observation_option_does_not(make: Any, tmp_path: Path) -> None:
    chaotic = {**make.ENV, "scenario": "chaotic"}
    seen = {**make.ENV, "observation": "unsaturated"}
    records = [
        make.evaluation("a", 50.0),
        make.evaluation("b", 40.0, env=chaotic),
        make.evaluation("c", 60.0, env=seen),
    ]
    write_evaluations(tmp_path / "e.json", records)
    made = make.report([tmp_path / "e.json"], tmp_path / "out")
    assert [[row.method.label for row in s.rows] for s in made.sections] == [["c", "a"], ["b"]]


def test_methods_judged_on_other_episodes_are_compared_unpaired(make: Any, tmp_path: Path) -> None:
    other = make.evaluation("c", 30.0, algorithm="scripted/constant", env_steps=0)
    moved = other.episodes.model_copy(update={"seed_index": tuple(range(1000, 1032))})
    write_evaluations(tmp_path / "e.json", [make.evaluation("x", 60.0), other.model_copy(update={"episodes": moved})])
    (section,) = make.report([tmp_path / "e.json"], tmp_path / "out").sections
    assert section.comparisons[0, 1, "return/vehicle"].episodes == 0
    assert section.comparisons[0, 1, "return/vehicle"].difference.low > 20.0


def test_a_run_without_evaluations_still_shows_its_curves(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "a", "x", 50.0, (0,))
    (run / "evaluations.json").unlink()
    page = make.report([run], tmp_path / "out").files["report.html"].read_text()
    assert "No evaluations yet" in page
    assert "<polyline" in page


def test_a_run_without_metrics_still_shows_its_table(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "a", "x", 50.0, (0,))
    (run / "metrics.jsonl").unlink()
    assert "<polyline" not in make.report([run], tmp_path / "out").files["report.html"].read_text()


def damaged(make: Any, tmp_path: Path, name: str, text: str) -> Path:
    run = make.run(tmp_path / "a", "x", 50.0, (0,))
    (run / name).write_text(text)
    return run


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evaluations.json", '{"format": "marl-', r"evaluations\.json is not valid JSON"),
        ("evaluations.json", "", r"evaluations\.json is not valid JSON"),
        ("metrics.jsonl", '{"kind": "train", "seed"\n{}\n', r"metrics\.jsonl:1 is not valid JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl:1 is not a JSON object"),
        ("metrics.jsonl", '{"kind": "eval", "seed": "0", "env_steps": 1}\n', r"metrics\.jsonl:1: `seed`"),
        (
            "metrics.jsonl",
            '{"kind": "eval", "seed": 0, "env_steps": 1, "eval/success": "many"}\n',
            r"eval/success is 'many', expected a number",
        ),
        ("config.yaml", "", r"config\.yaml: the file is empty"),
        ("config.yaml", "name: x\n", r"config\.yaml is not the config of a run"),
        ("config.yaml", "name: [", r"config\.yaml"),
        ("config.yaml", "a: &a [*a]\n", r"config\.yaml"),
    ],
)
def test_a_damaged_run_is_refused_with_its_file(make: Any, tmp_path: Path, name: str, text: str, message: str) -> None:
    run = damaged(make, tmp_path, name, text)
    with pytest.raises(UserError, match=message):
        make.report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_torn_last_line_of_a_live_run_is_passed_over(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "a", "x", 50.0, (0,))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "se')
    assert make.report([run], tmp_path / "out").sections[0].rows


def test_a_figure_that_is_not_finite_leaves_a_gap_in_its_curve(make: Any, tmp_path: Path) -> None:
    run = make.run(tmp_path / "a", "x", 50.0, (0,))
    with (run / "metrics.jsonl").open("a") as file:
        row = {"kind": "eval", "seed": 0, "env_steps": 600_000, "eval/return/vehicle": float("nan")}
        file.write(dumps(row) + "\n")
    assert "nan" not in make.report([run], tmp_path / "out").files["curves.csv"].read_text().lower()


def test_what_cannot_be_reported_is_refused(make: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text(json.dumps({"name": "x", "env": make.ENV}))
    for paths, message in (
        ([], "nothing to report: name at least one"),
        ([tmp_path / "none"], "none does not exist"),
        ([empty], "neither a run folder nor an evaluation file"),
        ([bare], "no evaluations and no metrics"),
    ):
        with pytest.raises(UserError, match=message):
            make.report(paths, tmp_path / "out")


def test_runs_on_different_worlds_are_refused(make: Any, tmp_path: Path) -> None:
    one = make.run(tmp_path / "a", "x", 50.0, (0,))
    two = make.run(tmp_path / "b", "y", 50.0, (0,), env={"id": "cartpole_v0"})
    with pytest.raises(UserError, match="one world; these are on cartpole_v0, heterogeneous_highway_v0"):
        make.report([one, two], tmp_path / "out")


def test_files_that_contradict_each_other_are_refused(make: Any, tmp_path: Path) -> None:
    write_evaluations(tmp_path / "a.json", [make.evaluation("x", 50.0)])
    write_evaluations(tmp_path / "b.json", [make.evaluation("x", 60.0, config_hash="0" * 12)])
    with pytest.raises(UserError, match=r"disagree about x, seed 0"):
        make.report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "out")


def test_seeds_of_one_label_must_agree_in_algorithm_roles_and_episodes(make: Any, tmp_path: Path) -> None:
    far = make.evaluation("x", 1.0, seed=1)
    far = far.model_copy(update={"episodes": far.episodes.model_copy(update={"seed_index": tuple(range(500, 532))})})
    two = make.evaluation("x", 1.0, seed=1)
    smaller = Episodes.from_arrays({"vehicle": [[1.0]]}, [1], [1])
    for other, message in (
        (make.evaluation("x", 1.0, seed=1, algorithm="a3c"), "names several algorithms"),
        (far, "different episodes"),
        (two.model_copy(update={"episodes": smaller}), "different roles or numbers of agents"),
    ):
        write_evaluations(tmp_path / "e.json", [make.evaluation("x", 1.0), other])
        with pytest.raises(UserError, match=message):
            make.report([tmp_path / "e.json"], tmp_path / "out")


def test_a_file_where_the_folder_should_be_is_a_user_error(make: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*out"):
        make.report([make.baselines(tmp_path / "b.json")], tmp_path / "out")
