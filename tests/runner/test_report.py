"""The report on small made-up runs: what it says, what it refuses, and that no name becomes markup or code."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.errors import UserError
from marl.evaluate.records import Episodes, Evaluation, write_evaluations
from marl.io.files import dumps
from marl.runner import report as module
from marl.runner.report import Report, build_report
from marl.runner.report_curves import on_one_grid
from marl.runner.report_data import Curve, method_kind, world_name, world_titles
from marl.runner.report_svg import ticks
from marl.runner.report_text import csv_text, interval_text, markdown_text, number

ENV = {"id": "heterogeneous_highway_v0", "scenario": "mild"}


def evaluation(label: str, mean: float, *, seed: int = 0, episodes: int = 32, **changes: Any) -> Evaluation:
    """Made-up episodes around `mean`; how hard an episode is depends on its index alone."""
    hard = np.random.default_rng(99).normal(size=512)[:episodes, None]
    noise = np.random.default_rng([seed, *label.encode()]).normal(size=(episodes, 5))
    returns = np.clip(mean + 6.0 * hard + 3.0 * noise, 0.0, 90.0)
    survival = np.clip(returns.mean(axis=1) * 1.2, 0.0, 90.0)
    info = {
        "survival_s": survival,
        "success": (survival > 75.0).astype(float),
        "speed_mps": 21.0 + 0.05 * survival,
        "reward/vehicle/speed": 0.7 * returns.mean(axis=1),
        "reward/vehicle/crash": 0.3 * returns.mean(axis=1),
    }
    data: dict[str, Any] = {
        "label": label,
        "algorithm": "ppo",
        "env": ENV,
        "seed": seed,
        "env_steps": 500_000,
        "kind": "test",
        "greedy": False,
        "episodes": Episodes.from_arrays({"vehicle": returns}, [90] * episodes, [400] * episodes, info),
        "commit": "1a2b3c4",
        "config_hash": "f" * 12,
        "time": 1.0,
    }
    return Evaluation.model_validate({**data, **changes})


def fake_run(
    folder: Path, label: str, mean: float, seeds: Iterable[int], *, env: dict[str, Any] = ENV, **changes: Any
) -> Path:
    """A run folder as the runner leaves it: config.yaml, metrics.jsonl, evaluations.json by seed."""
    seeds = list(seeds)
    folder.mkdir(parents=True)
    config = {"name": label, "seeds": seeds, "env": env, "agents": {"vehicle": {"algorithm": "ppo"}}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 5])
        for update in range(1, 31):
            now = mean * (1.0 - 0.6 * np.exp(-update / 8.0))
            row = {"seed": seed, "env_steps": update * 16_384, "updates": update, "time": 1.0}
            score = float(now + rng.normal())
            lines.append({"kind": "train", **row, "episode/return/vehicle": score, "loss/vehicle/policy": 0.1})
            if update % 5 == 0:
                extra = {"eval/survival_s": score * 1.2, "eval/success": 0.4, "eval/speed_mps": 24.0}
                lines.append({"kind": "eval", **row, "eval/return/vehicle": score, **extra})
        place = folder if len(seeds) == 1 else folder / f"seed_{seed}"
        place.mkdir(exist_ok=True)
        scored = mean + np.random.default_rng(seed).normal()
        write_evaluations(place / "evaluations.json", [evaluation(label, scored, seed=seed, env=env, **changes)])
    lines.append({"kind": "event", "seed": 0, "env_steps": 1, "updates": 1, "time": 1.0, "event": "x", "message": "y"})
    (folder / "metrics.jsonl").write_text("".join(dumps(line) + "\n" for line in lines))
    return folder


def baselines(path: Path, env: dict[str, Any] = ENV) -> Path:
    """A committed evaluation file of policies that learned nothing."""
    names = {"always-idle": 38.0, "always-slower": 44.0, "always-faster": 20.0}
    records = [
        evaluation(label, mean, algorithm="scripted/constant", env_steps=0, episodes=128, env=env)
        for label, mean in names.items()
    ]
    records.append(evaluation("random", 30.0, algorithm="random", env_steps=0, episodes=128, env=env))
    records.append(
        evaluation("defensive", 66.0, algorithm="scripted/highway_defensive", env_steps=0, episodes=128, env=env)
    )
    write_evaluations(path, records)
    return path


def quick(paths: Iterable[Path], out: Path) -> Report:
    return build_report(list(paths), out, resamples=500)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def whole(tmp_path: Path) -> Report:
    """A learned method of five seeds, a preliminary one of three, and the baselines."""
    five = fake_run(tmp_path / "runs/good/1", "good", 58.0, range(5))
    three = fake_run(tmp_path / "runs/poor/1", "poor", 43.0, range(3))
    return quick([five, three, baselines(tmp_path / "baselines.json")], tmp_path / "out")


def test_rows_are_ordered_and_say_how_they_were_made(whole: Report) -> None:
    (section,) = whole.sections
    assert [row.method.label for row in section.rows] == [
        "good",
        "poor",
        "defensive",
        "random",
        "always-slower",
        "always-idle",
        "always-faster",
    ]
    assert [row.method.actions for row in section.rows][:4] == ["sampled", "sampled", "scripted", "sampled"]
    assert [row.preliminary for row in section.rows] == [False, True, *[False] * 5]
    assert [(row.n_seeds, row.n_episodes) for row in section.rows][:3] == [(5, 32), (3, 32), (1, 128)]


def test_verdicts_compare_with_the_best_reference_on_paired_episodes(whole: Report) -> None:
    (section,) = whole.sections
    good, poor = (section.verdict(i, "constant", "return/vehicle") for i in (0, 1))
    assert good is not None
    assert poor is not None
    assert good.answer == "yes"
    assert good.against.b.label == "always-slower"
    assert good.against.episodes == 32
    assert poor.answer == "no"
    against_rules = section.verdict(0, "scripted", "return/vehicle")
    assert against_rules is not None
    assert against_rules.answer == "worse"
    assert section.verdict(4, "constant", "return/vehicle") is None


def test_the_page_is_whole_and_loads_nothing(whole: Report) -> None:
    page = whole.files["report.html"].read_text()
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=\s*['\"](?!#)", page)
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("<svg") == page.count("</svg>") == 6  # one of intervals, five of curves
    for text in (
        "preliminary",
        "good (sampled) beats the best constant action",
        "Probability of improvement",
        "1a2b3c4",
    ):
        assert text in page
    _Balanced().feed(page)


class _Balanced(html.parser.HTMLParser):
    """Fails on an element closed out of order: the sign of text that became markup."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe", "object", "a2")
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe", "object")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tables_hold_the_numbers_of_the_records(whole: Report) -> None:
    rows = rows_of(whole.files["aggregate.csv"])
    row = next(r for r in rows if r["method"] == "good" and r["metric"] == "return/vehicle")
    episodes = [r for r in rows_of(whole.files["episodes.csv"]) if r["method"] == "good"]
    assert len(episodes) == 5 * 32
    assert float(row["mean"]) == pytest.approx(np.mean([float(r["return/vehicle"]) for r in episodes]), rel=1e-4)
    assert float(row["mean_low"]) < float(row["mean"]) < float(row["mean_high"])
    assert (row["n_seeds"], row["n_episodes"], row["preliminary"], row["kind"]) == ("5", "32", "False", "learned")
    curves = [
        r for r in rows_of(whole.files["curves.csv"]) if r["method"] == "good" and r["tag"] == "eval/return/vehicle"
    ]
    assert {r["seed"] for r in curves} == {"0", "1", "2", "3", "4", "mean"}
    assert [int(r["env_steps"]) for r in curves if r["seed"] == "mean"] == [16_384 * n for n in range(5, 31, 5)]


def test_markdown_has_a_row_for_every_method(whole: Report) -> None:
    text = whole.files["table.md"].read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "poor *(preliminary)*" in text
    assert "5 × 32" in text


def test_the_same_input_gives_the_same_numbers(tmp_path: Path) -> None:
    path = baselines(tmp_path / "b.json")
    one, two = (quick([path], tmp_path / name).files["aggregate.csv"].read_bytes() for name in ("one", "two"))
    assert one == two


EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>]]>&#x3c;b|`*_[x](javascript:1)\n=1+1"


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    env = {"id": EVIL, EVIL: EVIL}
    run = fake_run(tmp_path / "run", EVIL, 50.0, range(2), env=env, algorithm=EVIL, commit=EVIL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "eval":
            row[f"eval/return/{EVIL}"] = 1.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evil_name = {"returns": {EVIL: [[1.0], [2.0]]}, "info": {EVIL: [0.0, 1.0], f"reward/{EVIL}": [0.0, 1.0]}}
    columns = {"seed_index": [0, 1], "length": [1, 1], "agent_steps": [1, 1], **evil_name}
    other = evaluation("other", 1.0).model_copy(update={"env": env, "episodes": Episodes.model_validate(columns)})
    constant = other.model_copy(update={"label": f"c{EVIL}", "algorithm": "scripted/constant"})
    write_evaluations(tmp_path / "other.json", [other, constant])
    made = build_report([run, tmp_path / "other.json"], tmp_path / "out", resamples=50, command=f"marl report {EVIL}")
    page = made.files["report.html"].read_text()
    assert "alert(1)" in page  # shown, as text
    assert "<script" not in page
    assert "<img" not in page
    checker = _Balanced()
    checker.feed(page)
    assert checker.open == []
    markdown = made.files["table.md"].read_text()
    assert "<script" not in markdown.replace(f"`marl report {EVIL}`", "")
    assert markdown.count("-->") == 1
    assert not re.search(r"(?<!\\)\]\(", markdown.split("-->", 1)[1])


def test_cells_that_a_spreadsheet_would_run_get_a_quote() -> None:
    text = csv_text([["=1+1", "+1", "-1", "@x", "\tx", "plain", -1.5, -2, None, True, 'a "b", c']])
    assert text == '\'=1+1,\'+1,\'-1,\'@x,\'\tx,plain,-1.5,-2,,True,"a ""b"", c"\n'


def test_markdown_text_cannot_open_a_link_a_tag_or_a_cell() -> None:
    assert markdown_text("heterogeneous_highway_v0 (a=b)") == "heterogeneous_highway_v0 (a=b)"
    assert markdown_text("a|b <i>[x](y)\n_z_") == "a\\|b &lt;i&gt;\\[x\\](y) \\_z\\_"


def test_seeds_of_two_runs_with_the_same_settings_are_pooled(tmp_path: Path) -> None:
    one, two = (fake_run(tmp_path / n, "x", 50.0, seeds) for n, seeds in (("a", (0, 1, 2)), ("b", (3, 4))))
    made = quick([one, two], tmp_path / "out")
    assert [(row.method.label, row.n_seeds) for row in made.sections[0].rows] == [("x", 5)]


def test_a_repeated_seed_is_no_replicate(tmp_path: Path) -> None:
    one, two = (fake_run(tmp_path / n, "x", 50.0, (0, 1)) for n in "ab")
    made = quick([one, two], tmp_path / "out")
    assert sorted((row.method.label, row.n_seeds) for row in made.sections[0].rows) == [("x", 2), ("x (b)", 2)]
    assert "repeats a seed" in made.files["report.html"].read_text()


def test_runs_of_one_name_with_other_settings_stay_apart(tmp_path: Path) -> None:
    one, two = (fake_run(tmp_path / n, "x", 50.0, (seed,)) for n, seed in (("a", 0), ("b", 1)))
    config = json.loads((two / "config.yaml").read_text())
    (two / "config.yaml").write_text(json.dumps({**config, "agents": {"vehicle": {"algorithm": "ppo", "clip": 0.3}}}))
    made = quick([one, two], tmp_path / "out")
    assert {row.method.label for row in made.sections[0].rows} == {"x", "x (b)"}


def test_the_same_run_named_twice_counts_once(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", "x", 50.0, (0, 1))
    assert quick([run, run / "../a"], tmp_path / "out").sections[0].rows[0].n_seeds == 2


def test_the_last_checkpoint_and_test_episodes_are_preferred(tmp_path: Path) -> None:
    records = [
        evaluation("x", 80.0, env_steps=900, kind="validation"),
        evaluation("x", 50.0, env_steps=200),
        evaluation("x", 20.0, env_steps=100),
        evaluation("x", 70.0, seed=1, env_steps=900, kind="validation"),
    ]
    write_evaluations(tmp_path / "e.json", records)
    made = quick([tmp_path / "e.json"], tmp_path / "out")
    (row,) = made.sections[0].rows
    assert row.env_steps == (200, 200)
    assert row.method.episodes_kind == "test"
    page = made.files["report.html"].read_text()
    assert "seeds 1 have no test episodes" in page
    assert "of test episodes at several checkpoints" in page


def test_validation_episodes_are_called_so(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "e.json", [evaluation("x", 50.0, kind="validation")])
    assert "validation episodes" in quick([tmp_path / "e.json"], tmp_path / "out").files["table.md"].read_text()


def test_sampled_and_greedy_actions_are_two_rows(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "e.json", [evaluation("x", 50.0), evaluation("x", 55.0, greedy=True)])
    rows = quick([tmp_path / "e.json"], tmp_path / "out").sections[0].rows
    assert [row.method.actions for row in rows] == ["greedy", "sampled"]


def test_scenarios_get_a_section_each_and_an_observation_option_does_not(tmp_path: Path) -> None:
    chaotic = {**ENV, "scenario": "chaotic"}
    seen = {**ENV, "observation": "unsaturated"}
    records = [evaluation("a", 50.0), evaluation("b", 40.0, env=chaotic), evaluation("c", 60.0, env=seen)]
    write_evaluations(tmp_path / "e.json", records)
    made = quick([tmp_path / "e.json"], tmp_path / "out")
    assert [[row.method.label for row in s.rows] for s in made.sections] == [["c", "a"], ["b"]]


def test_methods_judged_on_other_episodes_are_compared_unpaired(tmp_path: Path) -> None:
    other = evaluation("c", 30.0, algorithm="scripted/constant", env_steps=0)
    moved = other.episodes.model_copy(update={"seed_index": tuple(range(1000, 1032))})
    write_evaluations(tmp_path / "e.json", [evaluation("x", 60.0), other.model_copy(update={"episodes": moved})])
    (section,) = quick([tmp_path / "e.json"], tmp_path / "out").sections
    assert section.comparisons[0, 1, "return/vehicle"].episodes == 0
    assert section.comparisons[0, 1, "return/vehicle"].difference.low > 20.0


def test_a_run_without_evaluations_still_shows_its_curves(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", "x", 50.0, (0,))
    (run / "evaluations.json").unlink()
    page = quick([run], tmp_path / "out").files["report.html"].read_text()
    assert "No evaluations yet" in page
    assert "<polyline" in page


def test_a_run_without_metrics_still_shows_its_table(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", "x", 50.0, (0,))
    (run / "metrics.jsonl").unlink()
    assert "<polyline" not in quick([run], tmp_path / "out").files["report.html"].read_text()


def test_roles_have_columns_of_their_own(tmp_path: Path) -> None:
    records = []
    for label, algorithm, shift in (("x", "ppo", 5.0), ("c", "scripted/constant", 0.0)):
        returns = {"hider": [[shift], [shift + 1]], "seeker": [[-shift, 0.0], [-shift, 1.0]]}
        found = Episodes.from_arrays(returns, [5, 5], [15, 15])
        records.append(evaluation(label, 1.0, algorithm=algorithm).model_copy(update={"episodes": found}))
    write_evaluations(tmp_path / "e.json", records)
    made = quick([tmp_path / "e.json"], tmp_path / "out")
    head = next(line for line in made.files["table.md"].read_text().splitlines() if line.startswith("| method"))
    assert "return hider" in head
    assert "beats best constant action? (return seeker)" in head
    answers = [made.sections[0].verdict(0, "constant", f"return/{role}") for role in ("hider", "seeker")]
    assert [a.answer for a in answers if a is not None] == ["yes", "worse"]


def damaged(tmp_path: Path, name: str, text: str) -> Path:
    run = fake_run(tmp_path / "a", "x", 50.0, (0,))
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
def test_a_damaged_run_is_refused_with_its_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    run = damaged(tmp_path, name, text)
    with pytest.raises(UserError, match=message):
        quick([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_torn_last_line_of_a_live_run_is_passed_over(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", "x", 50.0, (0,))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "se')
    assert quick([run], tmp_path / "out").sections[0].rows


def test_a_figure_that_is_not_finite_leaves_a_gap_in_its_curve(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", "x", 50.0, (0,))
    with (run / "metrics.jsonl").open("a") as file:
        row = {"kind": "eval", "seed": 0, "env_steps": 600_000, "eval/return/vehicle": float("nan")}
        file.write(dumps(row) + "\n")
    assert "nan" not in quick([run], tmp_path / "out").files["curves.csv"].read_text().lower()


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text(json.dumps({"name": "x", "env": ENV}))
    for paths, message in (
        ([], "nothing to report: name at least one"),
        ([tmp_path / "none"], "none does not exist"),
        ([empty], "neither a run folder nor an evaluation file"),
        ([bare], "no evaluations and no metrics"),
    ):
        with pytest.raises(UserError, match=message):
            quick(paths, tmp_path / "out")


def test_runs_on_different_worlds_are_refused(tmp_path: Path) -> None:
    one = fake_run(tmp_path / "a", "x", 50.0, (0,))
    two = fake_run(tmp_path / "b", "y", 50.0, (0,), env={"id": "cartpole_v0"})
    with pytest.raises(UserError, match="one world; these are on cartpole_v0, heterogeneous_highway_v0"):
        quick([one, two], tmp_path / "out")


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "a.json", [evaluation("x", 50.0)])
    write_evaluations(tmp_path / "b.json", [evaluation("x", 60.0, config_hash="0" * 12)])
    with pytest.raises(UserError, match=r"disagree about x, seed 0"):
        quick([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "out")


def test_seeds_of_one_label_must_agree_in_algorithm_roles_and_episodes(tmp_path: Path) -> None:
    far = evaluation("x", 1.0, seed=1)
    far = far.model_copy(update={"episodes": far.episodes.model_copy(update={"seed_index": tuple(range(500, 532))})})
    two = evaluation("x", 1.0, seed=1)
    smaller = Episodes.from_arrays({"vehicle": [[1.0]]}, [1], [1])
    for other, message in (
        (evaluation("x", 1.0, seed=1, algorithm="a3c"), "names several algorithms"),
        (far, "different episodes"),
        (two.model_copy(update={"episodes": smaller}), "different roles or numbers of agents"),
    ):
        write_evaluations(tmp_path / "e.json", [evaluation("x", 1.0), other])
        with pytest.raises(UserError, match=message):
            quick([tmp_path / "e.json"], tmp_path / "out")


def test_a_file_where_the_folder_should_be_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*out"):
        quick([baselines(tmp_path / "b.json")], tmp_path / "out")


def test_the_command_prints_the_table_and_where_things_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.statistics, "RESAMPLES", 200)
    run = fake_run(tmp_path / "runs/x/20260101-000000-abcdef", "x", 50.0, (0, 1))
    assert module.report([str(run)]) == 0
    shown = capsys.readouterr().out
    assert (run / "plots/report.html").is_file()
    assert str(run / "plots/report.html") in shown
    assert "x (preliminary)" in shown
    assert module.report(["x"], str(tmp_path / "there"), runs_dir=str(tmp_path / "runs")) == 0
    assert (tmp_path / "there/aggregate.csv").is_file()
    capsys.readouterr()
    assert module.report(["x"], runs_dir=str(tmp_path / "runs"), as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["worlds"][0]["methods"][0]["seeds"] == 2
    with pytest.raises(UserError):
        module.report(["nothing_like_it"], runs_dir=str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("ppo", "learned"),
        ("package.module:Mine", "learned"),
        ("random", "random"),
        ("scripted/random", "random"),
        ("scripted/constant", "constant"),
        ("scripted/always_idle", "constant"),
        ("scripted/highway_defensive", "scripted"),
    ],
)
def test_kinds_of_methods_follow_from_the_algorithms_name(algorithm: str, kind: str) -> None:
    assert method_kind(algorithm) == kind


def test_world_names_list_options_in_order() -> None:
    assert world_name({"id": "w", "b": 2, "a": "x", "observation": "y"}) == "w (a=x, b=2)"
    assert world_name({"id": "w", "time_limit": "terminated"}) == "w"


def test_world_titles_show_what_differs() -> None:
    assert world_titles(["w (a=x, b=2)"]) == {"w (a=x, b=2)": "w"}
    found = world_titles(["w (a=x, b=2)", "w (a=y, b=2)", "w (a=y, b=2, c=1)", "w"])
    assert list(found.values()) == ["w, a=x, b=2", "w, a=y, b=2", "w, a=y, b=2, c=1", "w"]
    assert list(world_titles(["w (a=x, b=2)", "w (a=y, b=2)"]).values()) == ["w, a=x", "w, a=y"]


def test_numbers_show_two_digits_of_their_uncertainty() -> None:
    assert interval_text((48.234, 46.1, 50.3)) == "48.2 [46.1, 50.3]"  # type: ignore[arg-type]
    assert interval_text((0.5, 0.4, 0.6), "success") == "50 [40, 60]"  # type: ignore[arg-type]
    assert interval_text((312.4, 250.0, 380.0), sign=True) == "+312 [250, 380]"  # type: ignore[arg-type]
    assert number(-0.0001, 0.1) == "0.00"


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0.0, 500_000.0) == [0, 100_000, 200_000, 300_000, 400_000, 500_000]
    assert ticks(-0.3, 1.1) == pytest.approx([-0.5, 0.0, 0.5, 1.0, 1.5])
    low, *_, high = ticks(7.0, 7.0)
    assert low < 7.0 < high


def curve(seed: int, steps: list[float], values: list[float]) -> Curve:
    return Curve("x", seed, "t", np.asarray(steps), np.asarray(values))


def test_curves_meet_on_the_steps_that_all_seeds_reached() -> None:
    grid, values = on_one_grid([curve(0, [10, 20, 30], [1, 2, 3]), curve(1, [10, 30, 50], [1, 3, 5])])
    assert grid.tolist() == [10, 20, 30]
    assert values.tolist() == [[1, 2, 3], [1, 2, 3]]
    grid, values = on_one_grid([curve(0, [1, 2], [0, 0]), curve(1, [5, 6], [0, 0])])
    assert grid.size == 0


def test_long_curves_are_averaged_in_bins() -> None:
    steps = [float(s) for s in range(1, 1001)]
    grid, values = on_one_grid([curve(0, steps, steps)])
    assert len(grid) == 100
    np.testing.assert_allclose(values[0], grid)
    assert grid[0] == pytest.approx(5.5)
