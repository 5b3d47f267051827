"""A local run as a plain tree of arrays, and back: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.errors import CheckpointError
from marl.core.inference import act_lanes
from marl.dataflow.learning import pack, unpack
from marl.dataflow.local_run import LocalRun, Slot
from marl.dataflow.server import Request
from marl.dataflow.slots import HostSlot, JaxSlot
from marl.dataflow.tickets import Ticket


def snapshot(run: LocalRun) -> dict[str, Any]:
    """The whole run as a plain tree: learners, tickets, buffers, store, open rollouts, worlds."""
    run.settle()
    slots = []
    for slot in run.slots:
        stored: dict[str, Any] = {
            "ticket": np.array(slot.ticket or (0, 0, 0), np.int64),
            "sequence": np.int64(slot.sequence),
            "versions": {name: np.int64(v) for name, v in slot.versions.items()},
        }
        if isinstance(slot.lanes, JaxSlot):
            stored["lanes"] = pack(slot.lanes.lanes)
        else:
            stored["memory"] = pack(slot.memory)
            stored["lanes"] = slot.lanes.snapshot()
            stored["carry"] = {name: pack(tree) for name, tree in slot.lanes.carry.items()}
        slots.append(stored)
    return {
        "stages": {name: stage.snapshot() for name, stage in run.stages.items()},
        "key": np.asarray(jax.random.key_data(run.key)),
        "version": np.int64(run.version),
        "env_steps_learned": np.int64(run.env_steps_learned),
        "tickets": run.tickets.snapshot(),
        "store": run.store.snapshot(),
        "flow": run.flow.snapshot(),
        "slots": slots,
    }


def restore(run: LocalRun, stored: Mapping[str, Any]) -> None:
    """Go on from a snapshot, on a run that has been started."""
    for name, stage in run.stages.items():
        stage.restore(stored["stages"][name])
    run.key = jax.random.wrap_key_data(jnp.asarray(stored["key"]), impl=str(jax.random.key_impl(run.key)))
    run.env_steps_learned = int(stored["env_steps_learned"])
    run.tickets.restore(stored["tickets"])
    run.version = int(stored["version"])
    run.store.restore(stored["store"])
    run.flow.restore(stored["flow"])
    for name in run.stages:
        run.server.unload(name, set())
        for version in run.store.versions(name):
            run.server.load(name, version, jax.tree.map(jnp.asarray, run.store.get(name, version)[1]))
    if len(stored["slots"]) != len(run.slots):
        raise CheckpointError(f"the checkpoint has {len(stored['slots'])} slots, this run {len(run.slots)}")
    for slot, own in zip(run.slots, stored["slots"], strict=True):
        _restore_slot(run, slot, own)


def _restore_slot(run: LocalRun, slot: Slot, stored: Mapping[str, Any]) -> None:
    number, index, version = (int(x) for x in stored["ticket"])
    slot.ticket = Ticket(number, index, version) if number else None
    slot.sequence, slot.answer = int(stored["sequence"]), None  # what was asked for is asked for again
    slot.versions = {name: int(v) for name, v in stored["versions"].items()}
    if isinstance(slot.lanes, JaxSlot):
        slot.lanes.lanes = unpack(stored["lanes"], slot.lanes.lanes, "worlds")
        return
    slot.memory = unpack(stored["memory"], slot.memory, "recurrent states")
    carry = {name: slot.memory.carry[name] for name in stored["carry"]}
    slot.lanes.carry = {n: unpack(leaves, carry[n], "recurrent states") for n, leaves in stored["carry"].items()}
    lost = slot.lanes.restore(stored["lanes"], _extras_forms(run, slot))
    run.events.extend(("episode restarted", words) for words in lost)


def _extras_forms(run: LocalRun, slot: Slot) -> dict[str, Any]:
    """By learner, how its extras are nested."""
    assert isinstance(slot.lanes, HostSlot)
    request = Request({}, slot.memory, slot.lanes.step)  # type: ignore[arg-type]
    params = run.params()
    shapes = jax.eval_shape(lambda: act_lanes(run.policies, params, request.memory, request.step, explore=True))
    return {name: jax.tree.structure(shapes[1].extras[name]) for name in run.algorithms}
