"""`marl init` writes worlds and algorithms that work as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marl.cli import main

SMALL = ["stop.env_steps=64", "evaluate.episodes=2", "evaluate.video=false", "--quiet"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is imported from the current folder is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_a_world_is_written_that_passes_its_check_and_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "env", "apple_field"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("next:\n  marl check apple_field.py\n  marl train apple_field.yaml\n")
    text = Path("apple_field.py").read_text()
    assert "class AppleField(" in text
    assert '"name": "apple_field"' in text
    assert "my_world" not in (text + Path("apple_field.yaml").read_text()).lower()
    assert main(["check", "apple_field.py"]) == 0
    assert "WRONG" not in capsys.readouterr().out
    assert main(["train", "apple_field.yaml", "dataflow.num_envs=2", "agents.all.rollout=8", *SMALL]) == 0


@pytest.mark.env
def test_a_jax_world_is_written_that_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "env", "apple_field", "--jax"]) == 0
    assert "class AppleFieldConfig(EnvConfig)" in Path("apple_field.py").read_text()
    assert main(["check", "apple_field.py"]) == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said
    assert said.endswith("marl bench apple_field:AppleField\n")
    assert main(["check", "apple_field.yaml"]) == 0


@pytest.mark.parametrize("kind", ["fused", "local"])
def test_an_agent_is_written_that_passes_its_check_and_trains(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "agent", "Slope"]) == 0
    assert "class SlopeConfig(AgentConfig)" in Path("Slope.py").read_text()
    if kind == "fused":
        assert main(["check", "Slope:Slope"]) == 0
        assert "one update of 32 rows" in capsys.readouterr().out
    small = ["dataflow.num_envs=2", "agents.all.rollout=8", f"dataflow.kind={kind}", *SMALL]
    assert main(["train", "Slope.yaml", *small]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env", "my-world"], "'my-world' is no name for a file to import; expected letters, digits and _"),
        (["env", "class"], "'class' is no name for a file to import"),
        (["env", "__"], "'__' is no name for a file to import"),
        (["env", "latest"], "'latest' is no name for an experiment"),
        (["env", "json"], "'json' is the name of a module that is installed here"),
        (["env", "parallel_env"], "a class ParallelEnv would hide another one"),
        (["env", "env", "--jax"], "a class Env would hide another one"),
        (["agent", "slope", "--jax"], "--jax is for worlds"),
        (["agnet", "slope"], "did you mean 'agent'"),
    ],
)
def test_a_name_that_does_not_do_is_refused_and_nothing_is_written(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("there", ["field.py", "field.yaml"])
def test_nothing_is_overwritten(there: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(there).write_text("mine")
    assert main(["init", "env", "field"]) == 2
    assert (
        capsys.readouterr().err == f"error: {there} is there already, and nothing was written; expected another name\n"
    )
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]
