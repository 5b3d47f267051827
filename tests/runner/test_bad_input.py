"""Bad input ends with exit code 2 and one line: place, key, what was given, what was expected, the nearest name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marl.cli import main

GOOD = """\
name: bad
seed: 1
env: {id: probe_value_v0}
agents:
  agent: {algorithm: ippo, learning_rate: 3e-4}
dataflow:
  num_envs: 8
stop:
  env_steps: 100
compilation_cache: false
"""


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
)

# text of the file, then what the message must hold
FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["exp.yaml: ", "the file is empty", "expected keys such as name"]),
    "comment only": ("# nothing\n", ["the file is empty"]),
    "list at the top": ("- name: x\n", ["exp.yaml:1: ", "holds a list", "expected keys such as name"]),
    "text at the top": ("hello\n", ["exp.yaml:1: ", "holds 'hello'"]),
    "binary": (bytes(range(256)), ["exp.yaml:", "not a text file", "UTF-8"]),
    "control character": ("name: a\x01b\n", ["exp.yaml: ", "not valid YAML", "expected a text file"]),
    "tab": ("name: x\n\tseed: 1\n", ["exp.yaml:2: ", "indent with spaces, not tabs"]),
    "unclosed list": (edited("seed: 1", "seeds: [1, 2"), ["exp.yaml:3: ", "not valid YAML"]),
    "duplicate key": (GOOD + "name: again\n", ["exp.yaml:11: ", "name: key given twice (first at exp.yaml:1)"]),
    "recursive alias": ("name: &n [*n]\n", ["exp.yaml:1: ", "'*n' stands inside its own anchor"]),
    "unknown alias": ("name: *n\n", ["exp.yaml:1: ", "'*n' has no anchor"]),
    "billion laughs": (LAUGHS, ["exp.yaml:5: ", "more than 20000 values"]),
    "deep": ("a: " + "[" * 50 + "]" * 50, ["exp.yaml:1: ", "nested more than 32 levels"]),
    "python tag": ("name: !!python/object/apply:os.getcwd []\n", ["exp.yaml:1: ", "tag ", "is not allowed"]),
    "two documents": (GOOD + "---\nname: b\n", ["exp.yaml:11: ", "second YAML document"]),
    "key that is a list": ("? [a]\n: 1\n", ["exp.yaml:1: ", "expected a word"]),
    "unknown key": (GOOD + "evalute: {}\n", ["exp.yaml:11: evalute: unknown key", "did you mean 'evaluate'?"]),
    "endless key": (f"'{'k' * 1000}': 1\n", ["exp.yaml:1: kkkk", "kkk...: unknown key"]),
    "unknown key deep": (
        edited("  env_steps: 100", "  env_step: 100"),
        ["exp.yaml:9: stop.env_step: unknown key", "env_steps, wall_time, return", "did you mean 'env_steps'?"],
    ),
    "missing key": (
        edited("name: bad\n", ""),
        ["exp.yaml:1: name: required key is missing; expected the name of the exp"],
    ),
    "misspelt required key": (
        edited("algorithm", "algoritm"),
        ["exp.yaml:5: agents.agent.algorithm: required key is missing", "did you mean 'algorithm'?"],
    ),
    "text for a number": (edited(": 100", ": many"), ["exp.yaml:9: stop.env_steps: 'many'", "expected a whole number"]),
    "quoted number": (edited(": 100", ": '100'"), ["exp.yaml:9: stop.env_steps: '100'", "expected a whole number"]),
    "true for a number": (edited(": 8", ": true"), ["exp.yaml:7: dataflow.num_envs: true", "expected a whole number"]),
    "number for true": (GOOD + "evaluate: {video: 1}\n", ["exp.yaml:11: evaluate.video: 1", "expected true or false"]),
    "number for text": (edited("name: bad", "name: 12"), ["exp.yaml:1: name: 12", "expected text"]),
    "fraction for a whole number": (edited(": 8", ": 8.5"), ["exp.yaml:7: dataflow.num_envs: 8.5", "a whole number"]),
    "mapping for a list": (edited("seed: 1", "seeds: {a: 1}"), ["exp.yaml:2: seeds: a mapping", "expected a list"]),
    "text for a mapping": (edited("{id: probe_value_v0}", "probe"), ["exp.yaml:3: env: 'probe'", "expected a mapping"]),
    "negative steps": (edited(": 100", ": -5"), ["exp.yaml:9: stop.env_steps: -5", "expected at least 1"]),
    "huge number": (edited(": 100", ": " + "9" * 30), ["exp.yaml:9: stop.env_steps: 9999", "expected at most"]),
    "endless number": (edited(": 100", ": " + "9" * 5000), ["exp.yaml:9: ", "a number of 5000 digits is too long"]),
    "nan": (edited("env_steps: 100", "return: .nan"), ["exp.yaml:9: stop.return: nan", "expected a finite number"]),
    "overflow": (edited("env_steps: 100", "return: 1e999"), ["exp.yaml:9: stop.return: inf", "a finite number"]),
    "bad duration": (
        edited("env_steps: 100", "wall_time: 2 parsecs"),
        ["exp.yaml:9: stop.wall_time: '2 parsecs'", "expected a duration such as 90s"],
    ),
    "no time at all": (edited("env_steps: 100", "wall_time: 0s"), ["exp.yaml:9: stop.wall_time: ", "more than 0"]),
    "no stop rule": (
        edited("stop:\n  env_steps: 100", "stop: {}"),
        ["exp.yaml:8: stop: ", "expected at least one of env_steps, wall_time, return"],
    ),
    "seed and seeds": (GOOD + "seeds: [1]\n", ["exp.yaml:11: seeds: both seed and seeds", "expected one of them"]),
    "seed twice": (edited("seed: 1", "seeds: [3, 3]"), ["exp.yaml:2: seeds: seed 3 is given twice"]),
    "no seeds": (edited("seed: 1", "seeds: []"), ["exp.yaml:2: seeds: an empty list", "expected at least 1"]),
    "negative seed": (edited("seed: 1", "seed: -1"), ["exp.yaml:2: seed: -1", "expected at least 0"]),
    "name with a path": (edited("name: bad", "name: ../bad"), ["exp.yaml:1: name: '../bad'", "letters, digits"]),
    "name of dots": (edited("name: bad", "name: '..'"), ["exp.yaml:1: name: '..'", "letters, digits"]),
    "name too long": (edited("name: bad", f"name: {'x' * 65}"), ["exp.yaml:1: name: ", "1 to 64"]),
    "unknown dataflow": (
        edited("  num_envs", "  kind: fusd\n  num_envs"),
        ["exp.yaml:7: dataflow.kind: 'fusd'", "expected fused, local or ray", "did you mean 'fused'?"],
    ),
    "a key that a dataflow on Ray does not have": (
        edited("  num_envs", "  kind: ray\n  num_actors"),
        ["exp.yaml:8: dataflow.num_actors: unknown key", "did you mean 'min_actors'?"],
    ),
    "slots that actors cannot share": (
        edited("  num_envs", "  kind: ray\n  actors: 3\n  slots: 4\n  num_envs"),
        ["exp.yaml:6: dataflow: slots 4 is no multiple of actors 3"],
    ),
    "a device that nobody would use on Ray": (
        edited("  num_envs", "  kind: ray\n  devices: {learner: gpu}\n  num_envs"),
        ["exp.yaml:6: dataflow: devices.learner gpu means nothing on Ray", "gpus_per_learner"],
    ),
    "several seeds on Ray": (
        edited("  num_envs", "  kind: ray\n  num_envs").replace("seed: 1", "seeds: [0, 1]"),
        ["seeds", "trains one seed a run", "marl sweep"],
    ),
    "more in flight than the object store holds": (
        edited("  num_envs: 8", "  kind: ray\n  num_envs: 65536\n  object_store: 80").replace(
            "rollout: 4", "rollout: 4096"
        ),
        ["object_store", "expected at least"],
    ),
    "unknown device kind": (
        edited("  num_envs", "  devices: {learner: gpus}\n  num_envs"),
        ["exp.yaml:7: dataflow.devices.learner: 'gpus'", "did you mean 'gpu'?"],
    ),
    "lanes that do not split": (
        edited("  num_envs", "  data_parallel: 3\n  num_envs"),
        ["exp.yaml:6: dataflow: num_envs 8 is no multiple of data_parallel 3"],
    ),
    "unknown world": (
        edited("probe_value_v0", "probe_vale_v0"),
        ["exp.yaml:3: env.id: unknown environment 'probe_vale_v0'", "did you mean 'probe_value_v0'?"],
    ),
    "host world": (edited("probe_value_v0", "'gymnasium:A-v1'"), ["exp.yaml:3: env: there is no environment 'A-v1'"]),
    "world that is not there": (
        edited("probe_value_v0", "'no.such:World'"),
        ["exp.yaml:3: env.id: cannot import 'no.such:World'"],
    ),
    "world that is none": (
        edited("probe_value_v0", "'marl.core.spaces:Box'"),
        ["exp.yaml:3: env.id: 'marl.core.spaces:Box' is no environment"],
    ),
    "unknown world option": (
        edited("{id: probe_value_v0}", "{id: heterogeneous_highway_v0, scenaro: mild}"),
        ["exp.yaml:3: env.scenaro: unknown key", "did you mean 'scenario'?"],
    ),
    "unknown algorithm": (
        edited("ippo", "ipo"),
        ["exp.yaml:5: agents.agent.algorithm: unknown algorithm 'ipo'", "did you mean 'ippo'?"],
    ),
    "unknown algorithm option": (
        edited("learning_rate", "learning_rat"),
        ["exp.yaml:5: agents.agent.learning_rat: unknown key", "did you mean 'learning_rate'?"],
    ),
    "algorithm option of the wrong kind": (
        edited("learning_rate: 3e-4", "preset: [cpu]"),
        ["exp.yaml:5: agents.agent.preset: a list", "expected 'cpu' or 'paper'"],
    ),
    "algorithm option out of range": (
        edited("3e-4", "-3e-4"),
        ["exp.yaml:5: agents.agent.learning_rate: -0.0003", "expected more than 0"],
    ),
    "unknown role": (
        edited("  agent:", "  agnet:"),
        ["exp.yaml:5: agents.agnet: unknown role 'agnet'", "did you mean 'agent'?"],
    ),
    "missing role": (
        GOOD.replace("probe_value_v0", "probe_roles_v0").replace("  agent:", "  leader:"),
        ["exp.yaml:4: agents: no policy for role 'follower'", "leader, follower"],
    ),
    "role twice": (
        edited("dataflow:", "  all: {algorithm: random}\ndataflow:"),
        ["exp.yaml:6: agents.all: role 'agent' is already played by 'agent'"],
    ),
    "unknown role in a group": (
        edited("  agent: {", "  both: {group: [agnt], "),
        ["exp.yaml:5: agents.both.group.0: unknown role 'agnt'", "did you mean 'agent'?"],
    ),
    "no agents": (GOOD[: GOOD.index("agents")] + "agents: {}\nstop: {env_steps: 1}\n", ["exp.yaml:4: agents: "]),
    "checkpoint that is not there": (
        edited("3e-4", "3e-4, checkpoint: nowhere"),
        ["exp.yaml:5: agents.agent.checkpoint: 'nowhere' is no folder", "expected a run folder"],
    ),
    "checkpoint of a policy without parameters": (
        edited("{algorithm: ippo, learning_rate: 3e-4}", "{algorithm: random, checkpoint: .}"),
        ["exp.yaml:5: agents.agent.checkpoint: this policy has no parameters"],
    ),
}

# arguments; FILE stands for a good file
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["trian", "FILE"], ["unknown command 'trian'", "did you mean 'train'?"]),
    "no config": (["train"], ["marl train", "CONFIG", "marl train --help"]),
    "unknown option": (["train", "FILE", "--quite"], ["'--quite'", "did you mean '--quiet'?"]),
    "unknown option without a command": (["--versio"], ["'--versio'", "did you mean '--version'?"]),
    "missing file": (["train", "nowhere.yaml"], ["nowhere.yaml: no such file", "quickstart"]),
    "misspelt file": (["train", "exq.yaml"], ["exq.yaml: no such file", "did you mean 'exp.yaml'?"]),
    "misspelt experiment": (["train", "quickstrat"], ["quickstrat: no such file", "did you mean 'quickstart'?"]),
    "folder": (["train", "."], [".: is a folder", "expected a YAML file"]),
    "no file name": (["train", ""], ["no file name"]),
    "endless file name": (["train", "x" * 5000], ["no such file"]),
    "null in a file name": (["train", "a\0b"], ["no such file"]),
    "override without a value": (
        ["train", "FILE", "seed"],
        ["command line: override 'seed'", "expected key.path=value"],
    ),
    "override without a key": (["train", "FILE", "=1"], ["command line: override '=1'", "expected key.path=value"]),
    "override of no key": (["train", "FILE", "a b=1"], ["command line: override 'a b=1'", "expected key.path=value"]),
    "override of an unknown key": (
        ["train", "FILE", "stop.env_step=1"],
        ["command line: stop.env_step: unknown key", "did you mean 'env_steps'?"],
    ),
    "override of the wrong type": (["train", "FILE", "seed=x"], ["command line: seed: 'x'", "a whole number"]),
    "override out of range": (
        ["train", "FILE", "dataflow.num_envs=0"],
        ["command line: dataflow.num_envs: 0", "least 1"],
    ),
    "override below a scalar": (["train", "FILE", "name.x=1"], ["command line: name.x: 'bad' has no keys"]),
    "override of a list item": (["train", "FILE", "seeds=[1]", "seeds.4=1"], ["command line: seeds.4: no index '4'"]),
    "override that is no YAML": (["train", "FILE", "seeds=[1"], ["command line: seeds: not valid YAML"]),
    "override with two seeds": (["train", "FILE", "seed=1", "seeds=[1]"], ["command line: seeds: both seed and seeds"]),
    "absent device": (
        ["train", "FILE", "dataflow.devices.learner=tpu"],
        ["command line: dataflow.devices.learner: device 'tpu' is not on this machine", "expected auto or one"],
    ),
    "too many devices": (
        ["train", "FILE", "dataflow.data_parallel=4096", "dataflow.num_envs=4096"],
        ["command line: dataflow.data_parallel: 4096 devices are asked for"],
    ),
    "run that is not there": (["evaluate", "latest"], ["no run 'latest'", "marl train quickstart"]),
    "resume of nothing": (["resume", "nothing"], ["no run 'nothing'"]),
    "no episodes": (["evaluate", "latest", "--episodes", "0"], ["--episodes", "'0'", "at least 1"]),
    "greedy and sampled": (["evaluate", "latest", "--greedy", "--sampled"], ["--sampled", "not allowed with"]),
    "unknown kind": (["list", "env"], ["'env'", "expected one of envs, agents", "did you mean 'envs'?"]),
    "tensorboard of nothing": (["tensorboard"], ["no runs in 'runs'", "marl train quickstart"]),
    "nothing to check": (["check", "cartpol_v0"], ["nothing is called 'cartpol_v0'", "did you mean 'cartpole_v0'?"]),
    "check of an unknown option": (["check", "ppo", "rolout=1"], ["agents.all.rolout: unknown key", "'rollout'"]),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.yaml").write_text(GOOD)
    return tmp_path


def expect_one_line(error: str, parts: list[str]) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert "Traceback" not in error
    assert "pydantic" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused_with_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, parts = FILES[name]
    (folder / "exp.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", "exp.yaml", "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, parts)
    assert [path.name for path in folder.iterdir()] == ["exp.yaml"]


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_command_line_is_refused_with_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, parts = COMMANDS[name]
    assert main([word.replace("FILE", "exp.yaml") for word in arguments]) == 2
    expect_one_line(capsys.readouterr().err, parts)
    assert [path.name for path in folder.iterdir()] == ["exp.yaml"]


def test_large_file_is_refused_without_reading_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "exp.yaml").open("ab") as file:
        file.truncate(100 * 2**20)
    assert main(["train", "exp.yaml"]) == 2
    expect_one_line(capsys.readouterr().err, ["exp.yaml: larger than 1 MiB"])


def test_file_where_the_runs_folder_should_be_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs").write_text("in the way")
    assert main(["train", "exp.yaml", "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, ["cannot write runs"])
    assert (folder / "runs").read_text() == "in the way"


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 1)])
def test_runs_folder_that_cannot_be_made_leaves_nothing_behind(
    code: int, exit_code: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Path.mkdir

    def refuse(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.parent.name == "bad":
            raise OSError(code, os.strerror(code))
        make(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["train", "exp.yaml", "--quiet"]) == exit_code
    expect_one_line(capsys.readouterr().err, ["cannot write runs", os.strerror(code)])
    assert [path.name for path in folder.iterdir()] == ["exp.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_runs_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs").mkdir(mode=0o500)
    assert main(["train", "exp.yaml", "--quiet"]) == 2
    expect_one_line(capsys.readouterr().err, ["cannot write runs"])


@pytest.mark.parametrize("arguments", [["trian"], ["train", "nowhere.yaml"], ["train", "exp.yaml", "seed=x"]])
def test_program_itself_ends_with_code_2_and_one_line(arguments: list[str], folder: Path) -> None:
    # The package is imported from where this process found it, and the program runs in the test's folder.
    root = str(Path(sys.modules["marl"].__file__ or "").parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "marl.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    expect_one_line(done.stderr, [])
