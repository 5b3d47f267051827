"""Other people's worlds without a line of code: train 5,000 env steps with a resume between, evaluate, render."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from marl.cli import main
from marl.io.jsonl import read_rows

CONFIG = """
name: world
seed: 2
env: {env}
agents: {{all: {agents}}}
dataflow: {{num_envs: {lanes}}}
stop: {{env_steps: 2500}}
evaluate: {{episodes: 4, video: false}}
checkpoint: {{every: 1000}}
"""
PPO = "algorithm: ppo, sharing: role, rollout: 32, epochs: 1, minibatches: 1, hidden_sizes: [16]"
PICTURES = f"{PPO.replace('32', '8')}, cnn_channels: [4], cnn_kernels: [16], cnn_strides: [16], cnn_features: 16"

# Of each world: its options in YAML, the modules that it needs, its roles, whether agents act in turns, the policy.
WORLDS: dict[str, tuple[str, tuple[str, ...], dict[str, int], bool, str]] = {
    "mpe2.simple_spread_v3": ("max_cycles: 25", ("mpe2",), {"agent": 3}, False, PPO),
    "mpe2.simple_adversary_v3": ("max_cycles: 25", ("mpe2",), {"adversary": 1, "agent": 2}, False, PPO),
    "mpe2.simple_crypto_v3": ("max_cycles: 25", ("mpe2",), {"eve": 1, "alice_bob": 2}, False, PPO),
    "pettingzoo.sisl.multiwalker_v9": ("max_cycles: 100", ("Box2D", "pygame"), {"walker": 3}, False, PPO),
    "pettingzoo.sisl.waterworld_v4": (
        "max_cycles: 100",
        ("pettingzoo.sisl.waterworld", "pygame"),
        {"pursuer": 2},
        False,
        PPO,
    ),
    "pettingzoo.butterfly.pistonball_v6": (
        "max_cycles: 50, n_pistons: 4",
        ("pymunk", "pygame"),
        {"piston": 4},
        False,
        PICTURES,
    ),
    "pettingzoo.butterfly.knights_archers_zombies_v11": (
        "max_cycles: 200",
        ("pygame",),
        {"archer_knight": 4},
        False,
        PPO,
    ),
    "pettingzoo.classic.connect_four_v3": ("", ("pygame",), {"player": 2}, True, PPO),
    "pettingzoo.classic.tictactoe_v3": ("", ("pygame",), {"player": 2}, True, PPO),
    "pettingzoo.classic.leduc_holdem_v4": ("", ("rlcard", "pygame"), {"player": 2}, True, PPO),
}
DEFAULT_TIER = ("mpe2.simple_spread_v3", "pettingzoo.classic.tictactoe_v3")


def _marks(name: str) -> list[Any]:
    missing = [module for module in WORLDS[name][1] if importlib.util.find_spec(module) is None]
    reason = f"needs {', '.join(missing)}: scripts/test --all, or pip install -e '.[worlds]'"
    if "waterworld" in name:
        reason = "PettingZoo 1.26 dropped it: pip install pettingzoo==1.25.0 'pymunk<7'"
    marks: list[Any] = [pytest.mark.skipif(bool(missing), reason=reason)]
    return marks if name in DEFAULT_TIER else [*marks, pytest.mark.slow]


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in WORLDS])
def test_a_world_trains_resumes_evaluates_and_renders_without_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, _, roles, turns, agents = WORLDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = f'{{id: "pettingzoo:{name}"{", " if options else ""}{options}}}'
    Path("world.yaml").write_text(CONFIG.format(env=env, agents=f"{{{agents}}}", lanes=2 if agents == PICTURES else 4))
    assert main(["train", "world.yaml", "--quiet"]) == 0
    (run,) = (tmp_path / "runs" / "world").iterdir()
    assert main(["resume", str(run), "stop.env_steps=5000", "--quiet"]) == 0

    rows = read_rows(run / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    steps = [int(row["env_steps"]) for row in train]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 5000
    assert "world fault" not in [row["event"] for row in rows if row["kind"] == "event"]
    last = train[-1]
    assert all(np.isfinite(value) for value in last.values() if isinstance(value, float))
    assert last["flow/episodes"] > 0
    share = last["flow/agent_steps"] / last["env_steps"]
    assert share == 1 if turns else 0 < share <= sum(roles.values())
    assert json.loads((run / "meta.json").read_text())["roles"] == roles

    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["metrics"]
    assert set(shown) == {"length", *(f"return/{role}" for role in roles)}
    assert all(np.isfinite(values["mean"]) for values in shown.values())
    assert main(["render", str(run), "-o", "film.gif"]) == 0
    assert len(imageio.mimread("film.gif", memtest=False)) > 1
