"""An actor's slots as a plain tree of arrays, and back: what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from marl.core.errors import CheckpointError
from marl.core.inference import act_lanes
from marl.core.types import Tree
from marl.dataflow.actor import ActorCore, Slot
from marl.dataflow.learning import pack, unpack
from marl.dataflow.slots import HostSlot, JaxSlot
from marl.dataflow.tickets import Ticket


def snapshot_slots(actor: ActorCore) -> list[dict[str, Any]]:
    """Open rollouts, worlds and recurrent states of a settled actor, slot by slot."""
    slots = []
    for slot in actor.slots:
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
    return slots


def restore_slots(actor: ActorCore, stored: Sequence[Mapping[str, Any]], params: Mapping[str, Tree]) -> None:
    """Go on from a snapshot, on an actor that has been started. What could not be brought back is in its events.

    stored: of this actor's slots.  params: of all policies, of any version.  Raises: CheckpointError if they are not
    as many, or of other shapes.
    """
    if len(stored) != len(actor.slots):
        raise CheckpointError(f"the checkpoint has {len(stored)} slots, this run {len(actor.slots)}")
    for slot, own in zip(actor.slots, stored, strict=True):
        _restore(actor, slot, own, params)


def _restore(actor: ActorCore, slot: Slot, stored: Mapping[str, Any], params: Mapping[str, Tree]) -> None:
    number, index, version = (int(x) for x in stored["ticket"])
    slot.ticket = Ticket(number, index, version) if number else None
    slot.sequence = int(stored["sequence"])
    slot.asked, slot.answer = False, None  # what was asked for is asked for again
    slot.versions = {name: int(v) for name, v in stored["versions"].items()}
    if isinstance(slot.lanes, JaxSlot):
        slot.lanes.lanes = unpack(stored["lanes"], slot.lanes.lanes, "worlds")
        return
    slot.memory = unpack(stored["memory"], slot.memory, "recurrent states")
    carry = {name: slot.memory.carry[name] for name in stored["carry"]}
    slot.lanes.carry = {n: unpack(leaves, carry[n], "recurrent states") for n, leaves in stored["carry"].items()}
    lost = slot.lanes.restore(stored["lanes"], _extras_forms(actor, slot, params))
    actor.events.extend(("episode restarted", words) for words in lost)


def _extras_forms(actor: ActorCore, slot: Slot, params: Mapping[str, Tree]) -> dict[str, Any]:
    """By learner, how its extras are nested."""
    assert isinstance(slot.lanes, HostSlot)
    memory, step = slot.memory, slot.lanes.step
    assert memory is not None
    shapes = jax.eval_shape(lambda: act_lanes(actor.policies, params, memory, step, explore=True))
    return {name: jax.tree.structure(shapes[1].extras[name]) for name in actor.learners}
