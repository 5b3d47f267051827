"""`marl bench` of worlds in Python and of the local placement; `marl doctor` on where its parts run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from marl.cli import main
from marl.core.host import HostFactory
from marl.core.host_rows import HostWorlds
from marl.runner import bench
from marl.runner.bench_local import host_stepper

pytestmark = pytest.mark.long

WORLD = Path(__file__).parent / "local" / "hide_v0.py"
PPO = "{algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}"
CONFIG = """
name: bench
env: {{id: "{id}"}}
agents: {{all: {agents}}}
dataflow: {{kind: local, num_envs: 4, {dataflow}}}
stop: {{env_steps: 100}}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(WORLD, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "WINDOW_S", 0.05)


def measured(capsys: pytest.CaptureFixture[str], what: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["bench", what, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id", "agents", "dataflow"),
    [
        ("pettingzoo:hide_v0.py", PPO, "workers: 1"),
        pytest.param(
            "probe_roles_v0",
            PPO.replace("ppo", "a3c").replace(", epochs: 1, minibatches: 1", ""),
            "slots: 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_local_experiment_is_measured_with_and_without_learning(
    id: str, agents: str, dataflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exp.yaml").write_text(CONFIG.format(id=id, agents=agents, dataflow=dataflow))
    found = measured(capsys, "exp.yaml")
    for name in ("env_steps_per_s", "without_learning_env_steps_per_s", "world_only_env_steps_per_s"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    assert {"world", "learner", "host"} <= set(found["shares"])
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=0.02)
    assert found["bottleneck"] in found["shares"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["hide_v0.py", "gymnasium:CartPole-v1"])
def test_a_world_in_python_is_measured_alone(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, what)
    assert found["env_steps_per_s"]["min"] > 0
    assert "1 copy in this process" in found["setting"]


def test_what_the_stepper_counts_are_env_steps() -> None:
    """Episodes of six steps: of seven rows, one is a reset."""
    worlds, _ = HostWorlds.of(
        HostFactory("marl.interop.worlds:make_world", {"id": "pettingzoo:hide_v0.py", "options": {}})
    )
    group, step = host_stepper(worlds, 3)
    assert step() + step() == 3 * sum(row % 7 != 6 for row in range(128))
    group.close()


def test_an_experiment_in_which_nobody_learns_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "exp.yaml").write_text(CONFIG.format(id="probe_roles_v0", agents="{algorithm: random}", dataflow=""))
    assert main(["bench", "exp.yaml"]) == 2
    assert "nobody learns" in capsys.readouterr().err


def test_doctor_says_what_auto_means_and_which_extras_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["parts"]["detail"].endswith("inference and learner cpu:0")
    assert {"mpe2", "ale-py"} <= set(found)
