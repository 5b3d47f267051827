"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from marl.cli import main

TINY = [
    "dataflow.num_envs=2",
    "agents.vehicle.rollout=4",
    "agents.vehicle.minibatches=1",
    "stop.env_steps=8",
    "evaluate.episodes=1",
    "evaluate.video=false",
    "evaluate.every=null",
]


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.mark.learn
def test_the_python_snippets_run_on_a_quickstart_run(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart", *TINY, "--quiet"]) == 0
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["action"], np.ndarray)
    assert names["action"].shape == (5,)
    assert len(names["observations"]) == 5  # type: ignore[arg-type]


def test_every_command_line_shown_is_one_the_program_knows(readme: str, repository: Path) -> None:
    """Each `scripts/marl COMMAND` with `--help` added parses, so no command or option shown is gone."""
    lines = re.findall(r"^scripts/marl (.*?)(?:\s+#.*)?$", readme, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line)
        with pytest.raises(SystemExit) as left:
            main([*words, "--help"])
        assert left.value.code == 0, line
    for script in set(re.findall(r"scripts/(?:bench/)?[a-z_]+", readme)):
        assert (repository / script).is_file(), script
