"""The Ray placement: the decoupled parts in processes of their own, here or on a cluster. Used as `Local` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marl.core.types import Tree
from marl.dataflow.learning import DispatchResult
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_metrics import Gauges
from marl.dataflow.ray_run import RayOptions, RayRun
from marl.dataflow.ray_session import Session, SessionOptions
from marl.io import checkpoint

# What Ray's dashboard shows, by the kind of part that it is about.
SHOWN = {
    "actor": ("flow/actors", "flow/lost_actors", "flow/env_steps", "flow/bottleneck/world", "flow/bottleneck/actor"),
    "server": ("flow/bottleneck/inference",),
    "learner": ("flow/version", "flow/policy_lag", "flow/lost_learners", "flow/bottleneck/learner"),
    "store": ("flow/store_share", "flow/store_spilled_mb", "flow/chunks_offered", "flow/chunks_dropped"),
}


class RayPlacement:
    """A run of one seed. rollout: rows of a rollout.  fixed: parameters by name of policies that never change.
    should_stop: a dispatch ends early once it says so.  post_mortem: folder for batches after which updates were not
    finite; None: they are not kept.

    Raises: UserError if the cluster cannot be joined.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        learners: Sequence[str],
        fixed: Mapping[str, Tree],
        options: RayOptions,
        session: SessionOptions,
        seed: int,
        rollout: int,
    ) -> None:
        self.options, self.seeds, self.num_envs = options, (seed,), options.num_envs
        self.rollout, self.fixed = rollout, dict(fixed)
        self.devices = [jax.devices()[0]]
        self._gauges = {kind: Gauges(kind) for kind in SHOWN}
        self.session = Session(session)
        try:
            self.run = RayRun(blueprint, learners, options, seed, self.session.folder)
        except BaseException:
            self.session.close()
            raise

    @property
    def should_stop(self) -> Callable[[], bool]:
        return self.run.should_stop

    @should_stop.setter
    def should_stop(self, asked: Callable[[], bool]) -> None:
        self.run.should_stop = asked

    @property
    def post_mortem(self) -> Path | None:
        return self.run.learner.post_mortem

    @post_mortem.setter
    def post_mortem(self, folder: Path | None) -> None:
        self.run.learner.post_mortem = folder

    def init(self) -> RayPlacement:
        """Start every process. The state of this placement is the placement itself."""
        self.run.start()
        self.session.note_processes()
        return self

    def dispatch(self, state: RayPlacement, env_steps: Sequence[int]) -> tuple[RayPlacement, DispatchResult]:
        """`updates_per_dispatch` updates. env_steps: counted by the run itself."""
        del env_steps
        result = self.run.run(self.options.updates_per_dispatch)
        shown = {tag: float(value) for tag, value in result.flow.items()}
        shown |= {"flow/env_steps": float(result.env_steps), "flow/version": float(self.run.version)}
        for kind, tags in SHOWN.items():
            self._gauges[kind].set({tag: shown[tag] for tag in tags if tag in shown})
        return state, jax.tree.map(lambda x: np.asarray(x)[None], result)

    def published(self, state: RayPlacement, seed_index: int) -> dict[str, Tree]:
        """The newest parameters of every policy."""
        del seed_index
        return {**self.fixed, **state.run.params()}

    def rows_per_dispatch(self) -> int:
        """Rows collected in a dispatch."""
        own = self.options
        lanes = own.num_envs // own.slots if own.asynchronous else own.num_envs
        return own.updates_per_dispatch * self.rollout * lanes

    def snapshot(self, state: RayPlacement) -> dict[str, Any]:
        """The whole state as a plain tree of arrays, at a moment when nothing is under way."""
        return {"runs": [state.run.snapshot()]}

    def restore(self, stored: Mapping[str, Any]) -> RayPlacement:
        """The started run, brought to where a snapshot was taken. Raises: CheckpointError if it is of another run."""
        self.run.restore(stored["runs"][0])
        return self

    def compile(self, state: RayPlacement) -> None:
        """Nothing to do ahead: programs are compiled when they are first called."""

    def load(self, path: Path, state: RayPlacement) -> tuple[RayPlacement, dict[str, Any]]:
        """The started run brought to where a checkpoint was taken, and its header.

        Raises: CheckpointError if it is damaged or of another run.
        """
        stored, header = checkpoint.load_plain(path)
        return state.restore(stored), header

    def describe(self) -> str:
        """What runs where, in words."""
        own, run = self.options, self.run
        learner = ", ".join(run.about.get("learner", {}).get("devices", ["?"]))
        kind = "reproducible" if own.reproducible else "not reproducible: what arrives first is learned from first"
        served = f"{own.servers} policy servers" if own.servers else "the actors"
        return (
            f"{own.num_envs} lanes in {own.slots} slots, {own.actors} actors on Ray, inference in {served}, "
            f"learner on {learner}; {kind}"
        )

    def bottleneck(self) -> str:
        """The part that was busy for most of the last dispatch."""
        return self.run.flow.bottleneck()

    def take_events(self) -> list[tuple[int, str, str]]:
        """(seed, name, words) of what happened since the last call."""
        return [(self.seeds[0], name, words) for name, words in self.run.take_events()]

    def close(self) -> None:
        """End every process, and the cluster if it is this run's own."""
        self.run.close()
        self.session.close()
