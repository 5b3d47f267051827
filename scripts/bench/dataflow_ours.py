"""Our side of `dataflow`: `marl train`'s own loop, with its metrics written, on a world in Python."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import serving

from marl.io.jsonl import JsonlSink
from marl.io.metrics import Row, Sinks
from marl.io.tensorboard import TensorBoardSink
from marl.runner.build import build_dataflow, resolved
from marl.runner.load import config_from, resolved_yaml
from marl.runner.loop import TrainingLoop
from marl.runner.plan import make_plan
from marl.runner.progress import Progress
from marl.runner.schema import ExperimentConfig
from marl.runner.train import set_up_jax

WORLDS: dict[str, dict[str, Any]] = {
    "cartpole": {"id": "gymnasium:CartPole-v1"},
    "spread": {"id": "pettingzoo:mpe2.simple_spread_v3", "N": 3, "max_cycles": 25},
    "atari": {"id": "gymnasium:ALE/Pong-v5", "sticky": 0.0},
}
LEARNER = ("rollout", "epochs", "minibatches", "learning_rate", "gamma", "gae_lambda", "entropy_coef", "max_grad_norm")
DATAFLOW = ("num_envs", "workers", "slots", "max_staleness", "updates_per_dispatch")


def experiment(setting: dict[str, Any]) -> ExperimentConfig:
    """The same experiment a user would write for a setting."""
    agent = {name: setting[name] for name in LEARNER if name in setting}
    agent |= {"algorithm": "ippo", "last_action": False, "agent_id": False, "sharing": "role"}
    agent |= {"value_normalisation": "none"}
    if setting.get("max_staleness"):
        agent["correction"] = "vtrace"
    if setting["task"] != "atari":
        agent |= {"hidden_sizes": [64, 64], "activation": "tanh"}
    return config_from(
        {
            "name": "bench",
            "seed": setting.get("seed", 0),
            "env": WORLDS[setting["task"]],
            "agents": {"all": agent},
            "dataflow": {"kind": "local", **{name: setting[name] for name in DATAFLOW if name in setting}},
            "stop": {"env_steps": 10**12},
            "checkpoint": {"every": 10**12},
        }
    )


class Episodes:
    """A sink that keeps the mean return of the last 100 episodes."""

    def __init__(self) -> None:
        self.returns = serving.Returns()

    def write(self, row: Row) -> None:
        means = [float(value) for tag, value in row.items() if tag.startswith("episode/return/")]  # type: ignore[arg-type]
        if row["kind"] == "train" and means:
            episodes = int(row["episode/count"])  # type: ignore[call-overload]
            self.returns.add(episodes * sum(means) / len(means), episodes)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def main() -> None:
    setting = serving.setting()
    config = experiment({"updates_per_dispatch": 4, **setting})
    set_up_jax(config)  # as `marl train` does
    plan = make_plan(config)
    config = resolved(plan)
    dataflow = build_dataflow(config, plan)
    state: Any = dataflow.init()
    episodes = Episodes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = JsonlSink(folder / "metrics.jsonl", 0)
        board = TensorBoardSink(folder, list(dataflow.seeds), resolved_yaml(config), {})
        loop = TrainingLoop(
            config,
            dataflow,
            None,
            folder,
            Sinks([metrics, board, episodes]),
            metrics,
            Progress.start(len(dataflow.seeds)),
            {},
            should_stop=lambda: True,  # after every dispatch
        )

        def train() -> int:
            nonlocal state
            before = sum(loop.progress.env_steps)
            state, _ = loop.run(state, save=False)
            return sum(loop.progress.env_steps) - before

        if not setting.get("fresh"):
            train()
            train()
        about = {"jax": jax.__version__, **serving.versions("flax", "gymnasium")}
        serving.serve(about, train, episodes.returns.mean)
        loop.sinks.close()
        dataflow.close()


if __name__ == "__main__":
    main()
