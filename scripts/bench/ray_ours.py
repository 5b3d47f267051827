"""Our side of `scripts/bench/ray`: `marl train`'s own loop on Ray (or fused), with its metrics written."""

from __future__ import annotations

import collections
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import jax
import ray_processes
import serving
from dataflow_ours import LEARNER, WORLDS, Episodes

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

HERE = Path(__file__).resolve().parent
OURS = {
    **WORLDS,
    "waiting": {"id": f"gymnasium:{HERE / 'ray_waiting_world.py'}"},
    "cartpole_jax": {"id": "cartpole_v0"},
}
DATAFLOW = {
    "ray": ("num_envs", "actors", "inference", "slots", "max_staleness", "updates_per_dispatch"),
    "fused": ("num_envs", "updates_per_dispatch"),
}
NETWORK = {"hidden_sizes": [64, 64], "activation": "tanh"}


def experiment(setting: dict[str, Any]) -> ExperimentConfig:
    """The same experiment a user would write for a setting."""
    kind = setting.get("kind", "ray")
    agent = {name: setting[name] for name in LEARNER if name in setting} | NETWORK
    agent |= {"algorithm": "ippo", "last_action": False, "agent_id": False, "sharing": "role"}
    agent |= {"value_normalisation": "none"}
    if "hidden" in setting:
        agent["hidden_sizes"] = [setting["hidden"]] * 2
    dataflow = {"kind": kind, "updates_per_dispatch": 8}
    dataflow |= {name: setting[name] for name in DATAFLOW[kind] if name in setting}
    if kind == "ray":
        dataflow["object_store"] = 256
        if setting.get("max_staleness"):
            agent["correction"] = "vtrace"
    return config_from(
        {
            "name": "bench",
            "seed": setting.get("seed", 0),
            "env": OURS[setting["task"]],
            "agents": {"all": agent},
            "dataflow": dataflow,
            "stop": {"env_steps": 10**12},
            "checkpoint": {"every": 10**12},
        }
    )


class Shares:
    """A sink that adds up which parts a run says it was busy with."""

    def __init__(self) -> None:
        self._sums: collections.Counter[str] = collections.Counter()
        self._rows = 0

    def write(self, row: Row) -> None:
        tags = {t.rpartition("/")[2]: v for t, v in row.items() if t.startswith("flow/bottleneck/")}
        self._sums.update({name: float(value) for name, value in tags.items()})  # type: ignore[arg-type]
        self._rows += bool(tags)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> dict[str, float]:
        """Mean shares since the last call."""
        found = {name: round(total / self._rows, 3) for name, total in self._sums.items()}
        self._sums.clear()
        self._rows = 0
        return found


def on_one_core(pids: list[int]) -> None:
    """Keep processes, and whatever threads they begin from now on, on the first core that this one may use."""
    core = {min(os.sched_getaffinity(0))}
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), core)


class OurRun:
    """A started run of a setting, with its training loop; ended with `close`."""

    def __init__(self, setting: dict[str, Any], folder: Path, sinks: list[Any]) -> None:
        config = experiment(setting)
        set_up_jax(config)  # as `marl train` does
        plan = make_plan(config)
        config = resolved(plan)
        self.began = {"imported": time.perf_counter()}
        self.dataflow: Any = build_dataflow(config, plan)
        self.began["session"] = time.perf_counter()
        self.state: Any = self.dataflow.init()
        self.began["parts"] = time.perf_counter()
        metrics = JsonlSink(folder / "metrics.jsonl", 0)
        board = TensorBoardSink(folder, list(self.dataflow.seeds), resolved_yaml(config), {})
        self.loop = TrainingLoop(
            config,
            self.dataflow,
            None,
            folder,
            Sinks([metrics, board, *sinks]),
            metrics,
            Progress.start(len(self.dataflow.seeds)),
            {},
            should_stop=lambda: True,  # after every dispatch
        )

    def train(self) -> int:
        """One dispatch; the env steps that it collected."""
        before = sum(self.loop.progress.env_steps)
        self.state, _ = self.loop.run(self.state, save=False)
        return int(sum(self.loop.progress.env_steps) - before)

    def close(self) -> None:
        self.loop.sinks.close()
        self.dataflow.close()


def main() -> None:
    setting = serving.setting()
    episodes, shares = Episodes(), Shares()
    with tempfile.TemporaryDirectory() as name:
        run = OurRun(setting, Path(name), [episodes, shares])
        try:
            if setting.get("share_core"):
                own = ray_processes.of_run(run.dataflow)
                on_one_core([*own["server"], *own["learner"]])
            for _ in range(3):
                run.train()
            meter = ray_processes.Meter(run.dataflow)

            def more() -> dict[str, Any]:
                return {"shares": shares.take(), "by_kind": meter.take()}

            serving.serve({"jax": jax.__version__, **serving.versions("ray")}, run.train, episodes.returns.mean, more)
        finally:
            run.close()


if __name__ == "__main__":
    main()
