"""`marl check` of worlds in Python: from a name or a file to words, and to an experiment to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl import cli
from marl.runner.load import load_experiment

WORLDS = Path(__file__).parents[1] / "interop"


def test_a_sound_world_gets_an_experiment_to_begin_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["check", "gymnasium:Pendulum-v1", "max_steps=50", "g=9.5"]) == 0
    out = capsys.readouterr().out
    assert "roles: 1 agent" in out
    assert "WRONG" not in out
    assert out.rstrip().endswith("next:\n  marl train pendulum_v1.yaml")
    lines = out.partition("as pendulum_v1.yaml:\n")[2].partition("next:")[0]
    path = tmp_path / "pendulum_v1.yaml"
    path.write_text("".join(f"{line.removeprefix('  ')}\n" for line in lines.splitlines()))
    config = load_experiment(path).config
    assert config.env.id == "gymnasium:Pendulum-v1"
    assert config.env.options == {"max_steps": 50, "g": 9.5}


def test_a_broken_world_is_named_with_agent_step_and_expectation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", f"{WORLDS / 'broken_worlds.py'}:NaNReward"]) == 1
    out = capsys.readouterr().out
    assert "WRONG  rewards: seed 0, step 2: agent 'agent_0': reward is nan, expected a finite number" in out
    assert "1 of 9 checks failed" in out
    assert "marl train" not in out


@pytest.mark.parametrize(
    ("target", "kind"), [("tiny_worlds.py:Dice", "3 player, in turns"), ("tiny_worlds.py:Masked", "1 agent")]
)
def test_a_file_is_taken_for_what_is_in_it(target: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(WORLDS / target)]) == 0
    assert f"roles: {kind}\n" in capsys.readouterr().out


def test_a_file_with_one_of_our_own_worlds_is_checked_as_such(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "my_value.py"
    path.write_text((repository / "envs/probe/value.py").read_text().replace("from .", "from marl.envs.probe."))
    assert cli.main(["check", str(path)]) == 0
    assert "ok     roles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gymnasium:CartPol-v1"], "did you mean 'CartPole-v1'?"),
        (["gymnasium:CartPole-v1", "max_step=3"], "did you mean 'max_steps'?"),
        (["pettingzoo:no_such_module"], "there is no module 'no_such_module'"),
        ([str(WORLDS / "tiny_worlds.py") + ":Dise"], "has no 'Dise'; did you mean 'Dice'?"),
        (["no_such_file.py"], "there is no file"),
    ],
)
def test_what_is_not_there_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err
