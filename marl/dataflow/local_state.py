"""A local run as a plain tree of arrays, and back: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marl.dataflow.actor_state import restore_slots, snapshot_slots
from marl.dataflow.learning import plain_counts, tree_of
from marl.dataflow.local_run import LocalRun


def snapshot(run: LocalRun) -> dict[str, Any]:
    """The whole run as a plain tree: learners, tickets, buffers, store, open rollouts, worlds."""
    run.settle()
    return {
        **run.trainer.snapshot(),
        "version": np.int64(run.version),
        "tickets": run.tickets.snapshot(),
        "store": run.store.snapshot(),
        "flow": run.flow.snapshot(),
        "slots": snapshot_slots(run.actor),
        "counts": [tree_of(counts) for counts in run.actor.counts],  # of rollouts that no dispatch has reported yet
    }


def restore(run: LocalRun, stored: Mapping[str, Any]) -> None:
    """Go on from a snapshot, on a run that has been started."""
    run.trainer.restore(stored)
    run.tickets.restore(stored["tickets"])
    run.version = int(stored["version"])
    run.store.restore(stored["store"])
    run.flow.restore(stored["flow"])
    for name in run.stages:
        run.server.unload(name, set())
        for version in run.store.versions(name):
            run.server.load(name, version, jax.tree.map(jnp.asarray, run.store.get(name, version)[1]))
    restore_slots(run.actor, stored["slots"], run.params())
    run.actor.counts = [plain_counts(counts) for counts in stored.get("counts", ())]
