"""The local placement: the decoupled parts in one process, for worlds in Python, for debugging, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marl.core.algorithm import Policy
from marl.core.env import AnyEnvironment
from marl.core.host_rows import HostWorlds
from marl.core.types import Tree
from marl.dataflow.learning import DispatchResult
from marl.dataflow.local_run import LocalOptions as LocalOptions
from marl.dataflow.local_run import LocalRun
from marl.dataflow.local_state import restore, snapshot
from marl.io import checkpoint


class Local:
    """The local placement of all seeds of a run, one after another in each dispatch. Used as `Fused` is."""

    def __init__(
        self,
        worlds: AnyEnvironment | HostWorlds,
        policies: Mapping[str, Policy],
        learners: Sequence[str],
        fixed: Mapping[str, Tree],
        options: LocalOptions,
        seeds: Sequence[int],
    ) -> None:
        self.options = options
        self.seeds = tuple(seeds)
        self.num_envs = options.num_envs
        self.runs = [LocalRun(worlds, policies, learners, fixed, options, seed) for seed in seeds]
        chosen = [jax.devices()[0] if d is None else d for d in (options.inference, options.learner)]
        self.devices = list(dict.fromkeys(chosen))

    def init(self) -> Local:
        """Start every seed. The state of this placement is the placement itself."""
        for run in self.runs:
            run.start()
        return self

    def dispatch(self, state: Local, env_steps: Sequence[int]) -> tuple[Local, DispatchResult]:
        """`updates_per_dispatch` updates of every seed. env_steps: counted by the runs themselves."""
        del env_steps
        results = [run.run(self.options.updates_per_dispatch) for run in self.runs]
        return state, jax.tree.map(lambda *parts: np.stack(parts), *results)

    def published(self, state: Local, seed_index: int) -> dict[str, Tree]:
        """Parameters of every policy as seed number `seed_index` publishes them."""
        return state.runs[seed_index].params()

    def rows_per_dispatch(self) -> int:
        """Rows a seed collects in a dispatch."""
        run = self.runs[0]
        lanes = run.actor.options.lanes_per_slot if self.options.asynchronous else self.num_envs
        return self.options.updates_per_dispatch * run.length * lanes

    def snapshot(self, state: Local) -> dict[str, Any]:
        """The whole state as a plain tree of arrays."""
        return {"runs": [snapshot(run) for run in state.runs]}

    def restore(self, stored: Mapping[str, Any]) -> Local:
        """Started runs, brought to where a snapshot was taken. Raises: CheckpointError if it is of another run."""
        for run, own in zip(self.runs, stored["runs"], strict=True):
            restore(run, own)
        return self

    def compile(self, state: Local) -> None:
        """Nothing to do ahead: programs are compiled when they are first called."""

    def load(self, path: Path, state: Local) -> tuple[Local, dict[str, Any]]:
        """The started runs brought to where a checkpoint was taken, and its header.

        Raises: CheckpointError if it is damaged or of another run.
        """
        stored, header = checkpoint.load_plain(path)
        return state.restore(stored), header

    def describe(self) -> str:
        """What runs where, in words."""
        own = self.options

        def name(device: jax.Device | None) -> str:
            device = jax.devices()[0] if device is None else device
            return f"{device.platform}:{device.id}"

        where = f"{own.workers} processes" if own.workers else "this process"
        kind = "reproducible" if own.reproducible else "not reproducible: what arrives first is learned from first"
        return (
            f"{own.num_envs} lanes in {own.slots} slots x {len(self.seeds)} seeds, worlds in {where}, "
            f"inference on {name(own.inference)}, learner on {name(own.learner)}; {kind}"
        )

    def bottleneck(self) -> str:
        """The part that was busy for most of the last dispatch."""
        return self.runs[0].flow.bottleneck()

    def take_events(self) -> list[tuple[int, str, str]]:
        """(seed, name, words) of what happened since the last call."""
        return [(run.seed, name, words) for run in self.runs for name, words in run.take_events()]

    def close(self) -> None:
        """End the processes and close the worlds."""
        for run in self.runs:
            run.close()
