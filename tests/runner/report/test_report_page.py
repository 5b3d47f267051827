"""What the report says of small made-up runs, and that no name in them can become markup or code."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.errors import UserError
from marl.evaluate.records import Episodes, write_evaluations
from marl.runner import report as module
from marl.runner.report import Report, build_report


@pytest.fixture
def whole(make: Any, tmp_path: Path) -> Report:
    """A learned method of five seeds, a preliminary one of three, and the baselines."""
    five = make.run(tmp_path / "runs/good/1", "good", 58.0, range(5))
    three = make.run(tmp_path / "runs/poor/1", "poor", 43.0, range(3))
    return make.report([five, three, make.baselines(tmp_path / "baselines.json")], tmp_path / "out")


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


def test_a_report_needs_neither_jax_nor_a_plotting_library() -> None:
    code = "import sys, marl.runner.report; print(sorted({'jax', 'ray', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_tables_hold_the_numbers_of_the_records(make: Any, whole: Report) -> None:
    rows = make.rows_of(whole.files["aggregate.csv"])
    row = next(r for r in rows if r["method"] == "good" and r["metric"] == "return/vehicle")
    episodes = [r for r in make.rows_of(whole.files["episodes.csv"]) if r["method"] == "good"]
    assert len(episodes) == 5 * 32
    assert float(row["mean"]) == pytest.approx(np.mean([float(r["return/vehicle"]) for r in episodes]), rel=1e-4)
    assert float(row["mean_low"]) < float(row["mean"]) < float(row["mean_high"])
    assert (row["n_seeds"], row["n_episodes"], row["preliminary"], row["kind"]) == ("5", "32", "False", "learned")
    curves = [
        r
        for r in make.rows_of(whole.files["curves.csv"])
        if r["method"] == "good" and r["tag"] == "eval/return/vehicle"
    ]
    assert {r["seed"] for r in curves} == {"0", "1", "2", "3", "4", "mean"}
    assert [int(r["env_steps"]) for r in curves if r["seed"] == "mean"] == [16_384 * n for n in range(5, 31, 5)]


def test_the_records_that_it_leaves_give_the_same_tables(make: Any, whole: Report, tmp_path: Path) -> None:
    again = make.report([whole.files["evaluations.json"]], tmp_path / "again")
    for name in ("aggregate.csv", "comparisons.csv", "episodes.csv"):
        assert again.files[name].read_bytes() == whole.files[name].read_bytes()


def test_markdown_has_a_row_for_every_method(whole: Report) -> None:
    text = whole.files["table.md"].read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "poor *(preliminary)*" in text
    assert "5 × 32" in text


def test_the_same_input_gives_the_same_numbers(make: Any, tmp_path: Path) -> None:
    path = make.baselines(tmp_path / "b.json")
    one, two = (make.report([path], tmp_path / name).files["aggregate.csv"].read_bytes() for name in ("one", "two"))
    assert one == two


EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>]]>&#x3c;b|`*_[x](javascript:1)\n=1+1"


def test_no_text_of_a_run_becomes_markup(make: Any, tmp_path: Path) -> None:
    env = {"id": EVIL, EVIL: EVIL}
    run = make.run(tmp_path / "run", EVIL, 50.0, range(2), env=env, algorithm=EVIL, commit=EVIL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "eval":
            row[f"eval/return/{EVIL}"] = 1.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evil_name = {"returns": {EVIL: [[1.0], [2.0]]}, "info": {EVIL: [0.0, 1.0], f"reward/{EVIL}": [0.0, 1.0]}}
    columns = {"seed_index": [0, 1], "length": [1, 1], "agent_steps": [1, 1], **evil_name}
    other = make.evaluation("other", 1.0).model_copy(update={"env": env, "episodes": Episodes.model_validate(columns)})
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


def test_the_matrix_is_over_runs_and_keeps_the_references(make: Any, tmp_path: Path) -> None:
    records = [make.evaluation(f"single-{i}", 60.0 + i) for i in range(9)]
    records += [make.evaluation("several", 50.0, seed=seed) for seed in range(2)]
    records.append(make.evaluation("several", 51.0, greedy=True))
    records.append(make.evaluation("still", 10.0, algorithm="scripted/constant"))
    write_evaluations(tmp_path / "e.json", records)
    page = make.report([tmp_path / "e.json"], tmp_path / "out").files["report.html"].read_text()
    matrix = page.partition("<table class='matrix'>")[2].partition("</table>")[0]
    assert matrix.count("<tr>") == 1 + 1  # the heading, and the one method with more than one run
    assert "<th scope='row'>several" in matrix
    assert "<th scope='col'>still</th>" in matrix
    assert matrix.count("scope='col'") == 8 + 1


def test_roles_have_columns_of_their_own(make: Any, tmp_path: Path) -> None:
    records = []
    for label, algorithm, shift in (("x", "ppo", 5.0), ("c", "scripted/constant", 0.0)):
        returns = {"hider": [[shift], [shift + 1]], "seeker": [[-shift, 0.0], [-shift, 1.0]]}
        found = Episodes.from_arrays(returns, [5, 5], [15, 15])
        records.append(make.evaluation(label, 1.0, algorithm=algorithm).model_copy(update={"episodes": found}))
    write_evaluations(tmp_path / "e.json", records)
    made = make.report([tmp_path / "e.json"], tmp_path / "out")
    head = next(line for line in made.files["table.md"].read_text().splitlines() if line.startswith("| method"))
    assert "return hider" in head
    assert "beats best constant action? (return seeker)" in head
    answers = [made.sections[0].verdict(0, "constant", f"return/{role}") for role in ("hider", "seeker")]
    assert [a.answer for a in answers if a is not None] == ["yes", "worse"]


def test_the_command_prints_the_table_and_where_things_are(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.statistics, "RESAMPLES", 200)
    run = make.run(tmp_path / "runs/x/20260101-000000-abcdef", "x", 50.0, (0, 1))
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
