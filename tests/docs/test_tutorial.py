"""Everything the tutorial shows works, in the order in which it is shown."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from marl.cli import main
from marl.interop.check import check_world

PAGE = "docs/tutorial/bring_your_own_world.md"
# What makes a training of the page small: a later value of a key wins.
SMALL = ["stop.env_steps=128", "evaluate.every=null", "evaluate.episodes=2", "evaluate.video=false", "--quiet"]
SMALL += ["dataflow.num_envs=4"]
SMALL_PPO = "{role}.rollout=8 {role}.epochs=1 {role}.minibatches=1 {role}.hidden_sizes=[8]"


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / PAGE).read_text()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is imported from the current folder is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def small(words: list[str]) -> list[str]:
    """A command line that trains, with so little to do that it takes a moment."""
    if words[0] not in ("train", "resume"):
        return words
    if words[0] == "resume":
        return [*words, "stop.env_steps=256", "--quiet"]
    agents = yaml.safe_load(Path(words[1]).read_text())["agents"]
    learners = [role for role, section in agents.items() if section["algorithm"] == "ppo"]
    keys = [SMALL_PPO.format(role=f"agents.{role}").split() for role in learners]
    return [*words, *SMALL, *(key for found in keys for key in found)]


@pytest.mark.slow
@pytest.mark.learn
def test_the_page_works_from_top_to_bottom(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: opened.append(words))  # TensorBoard takes the process over
    said, counts = "", dict.fromkeys(("sh", "python", "yaml", "text"), 0)
    names: dict[str, object] = {}
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        counts[kind] += 1
        if kind == "sh":
            for line in block.splitlines():
                program, *words = shlex.split(line)
                assert program == "marl", line
                capsys.readouterr()
                assert main(small(words)) in (0, None), line
                said = capsys.readouterr().out
        elif kind == "python":
            names = {}
            exec(block, names)
        elif kind == "yaml":
            first, _, text = block.partition("\n")
            path = Path(first.removeprefix("# "))
            assert path.suffix == ".yaml"
            assert not path.exists() or path.read_text() == text, f"{path} is not what marl init writes"
            path.write_text(text)
        else:
            missing = [line for line in block.splitlines() if line not in said.splitlines()]
            assert not missing
    assert all(counts.values()), counts
    assert opened
    assert Path("episode.gif").stat().st_size > 0
    assert isinstance(names["apples"], float)


def test_the_check_says_of_a_mistake_what_the_page_says(page: str, repository: Path) -> None:
    world = (repository / "marl/runner/templates/my_world.py").read_text()
    rows = re.findall(r"^\| `(.*)` \| `(.*)` \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) >= 8
    for number, (wrong, right, words) in enumerate(rows):
        assert world.count(right) == 1, right
        path = Path(f"wrong_{number}.py")
        path.write_text(world.replace(right, wrong))
        with np.errstate(divide="ignore"):
            findings = check_world(f"pettingzoo:{path}", {})
        assert any(words in finding.detail for finding in findings if not finding.ok), (wrong, findings)
