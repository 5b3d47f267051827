"""Bad input about worlds in Python and where they run: exit code 2, one line, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl.cli import main

WORLD = Path(__file__).parent / "local" / "hide_v0.py"
GOOD = """\
name: bad
env: {id: "pettingzoo:hide_v0.py", rounds: 4}
agents:
  hider: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}
  seeker: {algorithm: random}
dataflow: {kind: local, num_envs: 4}
stop: {env_steps: 100}
compilation_cache: false
"""
CART = """\
name: bad
env: {id: "gymnasium:CartPole-v1"}
agents: {all: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}}
dataflow: {kind: local, num_envs: 4}
stop: {env_steps: 100}
compilation_cache: false
"""


def edited(old: str, new: str, text: str = GOOD) -> str:
    assert old in text
    return text.replace(old, new)


def in_dataflow(more: str, text: str = GOOD) -> str:
    return edited("num_envs: 4", more, text)


# What a world file may hold that no run can use: its text, then what the message must hold.
FOREIGN = """\
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

class Odd(ParallelEnv):
    metadata = {"name": "odd"}
    possible_agents = ["a"]
    def __init__(self, render_mode=None):
        self.render_mode = render_mode
    def observation_space(self, agent):
        return OBSERVATION
    def action_space(self, agent):
        return ACTION
    def reset(self, seed=None, options=None):
        self.agents = ["a"]
        return {"a": 0}, {"a": {}}
    def step(self, actions):
        return {"a": 0}, {"a": 0.0}, {"a": False}, {"a": False}, {"a": {}}

OBSERVATION = spaces.Discrete(3)
ACTION = spaces.Discrete(2)
"""
WORLDS: dict[str, tuple[str, list[str]]] = {
    "syntax error": ("def broken(:\n", ["world.py", "SyntaxError", "line 1"]),
    "raises when imported": (
        "x = 1\nraise RuntimeError('no licence')\n",
        ["world.py", "RuntimeError: no licence", "line 2"],
    ),
    "imports what is not there": (
        "import nowhere_to_be_found\n",
        ["world.py", "'nowhere_to_be_found'", "not installed"],
    ),
    "no world in it": ("x = 1\n", ["world.py", "no function parallel_env or env"]),
    "two worlds in it": (FOREIGN + "class Other(Odd):\n    pass\n", ["Odd", "Other", "name one"]),
    "a factory that gives something else": (
        "def parallel_env(render_mode=None):\n    return 3\n",
        ["int", "ParallelEnv"],
    ),
    "a factory that raises": ("def parallel_env():\n    raise OSError('no map')\n", ["world.py", "OSError: no map"]),
    "a factory with arguments it needs": ("def parallel_env(size):\n    pass\n", ["world.py", "size"]),
    "text as observation": (
        FOREIGN.replace("OBSERVATION = spaces.Discrete(3)", "OBSERVATION = spaces.Text(4)"),
        ["agent 'a'", "Text"],
    ),
    "a sequence as action": (
        FOREIGN.replace("ACTION = spaces.Discrete(2)", "ACTION = spaces.Sequence(spaces.Discrete(2))"),
        ["agent 'a'", "Sequence"],
    ),
    "no space at all": (FOREIGN.replace("ACTION = spaces.Discrete(2)", "ACTION = 2"), ["agent 'a'", "int"]),
    "no agents": (FOREIGN.replace('["a"]', "[]"), ["no agents"]),
}

# text of the file, then what the message must hold
FILES: dict[str, tuple[str, list[str]]] = {
    "fused": (
        edited("kind: local", "kind: fused"),
        ["kind fused needs a world in JAX", "hide_v0.py", "expected local"],
    ),
    "unknown kind": (edited("kind: local", "kind: locl"), ["dataflow.kind: 'locl'", "did you mean 'local'?"]),
    "unknown key of local": (in_dataflow("num_envs: 4, worker: 1"), ["dataflow.worker", "did you mean 'workers'?"]),
    "key of the other kind": (in_dataflow("num_envs: 4, data_parallel: 2"), ["dataflow.data_parallel: unknown key"]),
    "unknown file": (
        edited("hide_v0.py", "hide_v1.py"),
        ["exp.yaml:2: env: ", "hide_v1.py", "did you mean 'hide_v0.py'?"],
    ),
    "unknown module": (edited("hide_v0.py", "no_such_module"), ["exp.yaml:2: env: ", "no module 'no_such_module'"]),
    "unknown function": (edited("hide_v0.py", "hide_v0.py:paralel_env"), ["did you mean 'parallel_env'?"]),
    "no module": (edited("pettingzoo:hide_v0.py", "pettingzoo:"), ["'pettingzoo:'", "expected pettingzoo:MODULE"]),
    "unknown gymnasium id": (
        edited("CartPole-v1", "CartPol-v1", CART),
        ["'CartPol-v1'", "did you mean 'CartPole-v1'?"],
    ),
    "unknown gymnasium version": (edited("CartPole-v1", "CartPole-v9", CART), ["'CartPole-v9'", "did you mean"]),
    "gymnasium extra that is missing": (
        edited("CartPole-v1", "no_such_package:World-v1", CART),
        ["no_such_package", "exp.yaml:2: env: "],
    ),
    "unknown argument of the world": (edited("rounds: 4", "round: 4"), ["'round'", "did you mean 'rounds'?"]),
    "unknown argument of gymnasium's": (
        edited('"gymnasium:CartPole-v1"', '"gymnasium:CartPole-v1", sutton: true', CART),
        ["'sutton'", "sutton_barto_reward"],
    ),
    "max_steps of nothing": (edited("rounds: 4", "max_steps: 0"), ["max_steps"]),
    "argument of the wrong kind": (edited("rounds: 4", "corners: three"), ["hide_v0.py", "three"]),
    "role of an unknown agent": (
        edited("rounds: 4", "roles: {hider: [hider_0, hidr_1], seeker: [seeker]}"),
        ["'hidr_1'", "did you mean 'hider_1'?"],
    ),
    "role that fits nobody": (
        edited("rounds: 4", "roles: {hider: 'hider_*', seeker: 'serch*'}"),
        ["role 'seeker'", "'serch*' fits no agent"],
    ),
    "agent in no role": (edited("rounds: 4", "roles: {hider: 'hider_*'}"), ["agent 'seeker' is in no role"]),
    "agent in two roles": (
        edited("rounds: 4", "roles: {hider: 'hider_*', one: [hider_1], seeker: [seeker]}"),
        ["agent 'hider_1' is in the roles hider and one"],
    ),
    "role of unlike agents": (edited("rounds: 4", "roles: {everybody: '*'}"), ["different spaces"]),
    "role that nobody plays": (edited("  seeker:", "  seker:"), ["unknown role 'seker'", "did you mean 'seeker'?"]),
    "slots that do not split": (in_dataflow("num_envs: 4, slots: 3"), ["num_envs 4 is no multiple of slots 3"]),
    "more processes than slots": (
        in_dataflow("num_envs: 4, slots: 2, workers: 4"),
        ["slots 2 is no multiple of workers 4"],
    ),
    "processes that do not split": (
        in_dataflow("num_envs: 4, workers: 3"),
        ["dataflow.workers: 3 processes", "num_envs"],
    ),
    "negative staleness": (in_dataflow("num_envs: 4, max_staleness: -1"), ["dataflow.max_staleness: -1", "at least 0"]),
    "staleness that PPO cannot stand": (
        in_dataflow("num_envs: 4, max_staleness: 4"),
        ["dataflow.max_staleness: ", "'hider' learns from data at most", "correction: vtrace"],
    ),
    "gradients that PPO does not give": (
        in_dataflow("num_envs: 4, gradients: asynchronous"),
        ["dataflow.gradients: 'hider' gives no gradients", "a3c"],
    ),
    "unknown gradients": (
        in_dataflow("num_envs: 4, gradients: async"),
        ["dataflow.gradients: 'async'", "asynchronous"],
    ),
    "faults beyond all": (in_dataflow("num_envs: 4, world_faults: {share: 2}"), ["dataflow.world_faults.share: 2"]),
    "no time to answer": (in_dataflow("num_envs: 4, world_faults: {timeout: 0s}"), ["dataflow.world_faults.timeout: "]),
    "absent learner": (
        in_dataflow("num_envs: 4, devices: {learner: 'gpu:7'}"),
        ["dataflow.devices.learner: device 'gpu:7' is not on this machine", "expected auto or one"],
    ),
    "absent inference": (
        in_dataflow("num_envs: 4, devices: {inference: 'gpu:7'}"),
        ["dataflow.devices.inference: device 'gpu:7' is not on this machine"],
    ),
    "worlds on an accelerator": (
        in_dataflow("num_envs: 4, devices: {actors: 'gpu:7'}"),
        ["dataflow.devices.actors: ", "worlds in Python run on the CPU"],
    ),
    "rollouts that differ": (
        edited("{algorithm: random}", "{algorithm: ppo, rollout: 4}"),
        ["rollout lengths differ (hider: 8, seeker: 4)"],
    ),
    "central critic without a state": (
        edited("algorithm: ppo", "algorithm: mappo"),
        ["agents.hider: ", "global state"],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hide_v0.py").write_text(WORLD.read_text())
    return tmp_path


def expect_one_line(error: str, parts: list[str]) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert "pydantic" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused_with_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, parts = FILES[name]
    (folder / "exp.yaml").write_text(content)
    assert main(["train", "exp.yaml", "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, parts)
    assert {path.name for path in folder.iterdir()} <= {"exp.yaml", "hide_v0.py", "__pycache__"}


@pytest.mark.parametrize("name", WORLDS)
def test_world_that_cannot_be_used_is_refused_with_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, parts = WORLDS[name]
    (folder / "world.py").write_text(content)
    text = edited("agents:\n  hider", "agents:\n  all", edited("hide_v0.py", "world.py"))
    (folder / "exp.yaml").write_text(edited(", rounds: 4", "", edited("  seeker: {algorithm: random}\n", "", text)))
    assert main(["train", "exp.yaml", "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, ["exp.yaml:2: env: ", *parts])
    assert {path.name for path in folder.iterdir()} <= {"exp.yaml", "hide_v0.py", "world.py", "__pycache__"}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("dataflow.workers=3", ["3 processes cannot share 4 lanes"]),
        ("dataflow.devices.learner=gpu:7", ["command line: dataflow.devices.learner: device 'gpu:7'"]),
        ("env.rounds=[1]", ["hide_v0.py"]),
        ("dataflow.kind=fused", ["kind fused needs a world in JAX"]),
    ],
)
def test_bad_override_is_refused_with_one_line(
    override: str, parts: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "exp.yaml").write_text(GOOD)
    assert main(["train", "exp.yaml", override, "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, parts)
    assert not (folder / "runs").exists()
