"""Acting for lanes whose worlds are not JAX: the half of `core.collect` that policies do, with the same order of keys.

A host loop calls `act_lanes` on a row, gives the actions to its worlds and comes back with the next row. The numbers
that a lane draws depend on its own key and on nothing else, so neither on who shares the batch nor on the placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from marl.core.algorithm import Policy
from marl.core.collect import restrict
from marl.core.errors import ConfigError
from marl.core.host_rows import Path, nest
from marl.core.types import Array, ByRole, Key, TimeStep, Tree

_IMPL = "threefry2x32"  # of the keys of `core.prng.stream`


def run_at_once() -> None:
    """Run programs on the CPU in the thread that calls them. To be called before JAX looks for devices.

    By default each goes to a thread of its own, and to wake that and be woken costs more than a small network:
    inference for 8 lanes of two layers of 64 took 75 us, and 30 us in the calling thread. It pays wherever whoever
    infers has nothing else to do meanwhile.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


@struct.dataclass
class LaneMemory:
    """What B lanes keep between rows beside their worlds. carry: by policy, leaves `[B, ...]`.  key: the numbers of a
    key each, u32 `[B, 2]`: typed keys at the boundary of a program would cost as much as a small network."""

    carry: dict[str, Tree]
    key: Array


@struct.dataclass
class Acted:
    """What was done on a row. carry: before it, reset where it is an episode's first.  seed: u32 `[B]`, of the episode
    that a lane begins if the row was its last.  action: by role.  extras: by policy."""

    carry: dict[str, Tree]
    seed: Array
    action: ByRole
    extras: dict[str, Tree]


def time_step_arrays(arrays: Mapping[Path, Any]) -> TimeStep:
    """A TimeStep of arrays by field path (`core.host_rows`)."""
    tree = nest(dict(arrays))
    return TimeStep(
        obs=tree["obs"],
        reward=tree["reward"],
        terminated=tree["terminated"],
        truncated=tree["truncated"],
        alive=tree["alive"],
        first=tree["first"],
        last=tree["last"],
        action_mask=tree.get("action_mask"),
        state=tree.get("state"),
        acting=tree.get("acting"),
    )


def check_policies(policies: Mapping[str, Policy]) -> None:
    """Raises: ConfigError if a policy needs what only worlds in JAX can give."""
    for name, policy in policies.items():
        if policy.needs.commit_action:
            raise ConfigError(
                f"agents.{name}: this algorithm draws its next action before it learns, which only worlds in JAX "
                "support; expected another algorithm for this world"
            )


def start_lanes(policies: Mapping[str, Policy], keys: Key) -> tuple[LaneMemory, Array]:
    """The memory of fresh lanes, one a key `[B]`, and the seeds of their first episodes, u32 `[B]`.

    Keys are used as `core.collect.init_lanes` uses them.
    """

    def one(key: Key) -> tuple[LaneMemory, Array]:
        own, k_world, _ = jax.random.split(key, 3)
        carry = {name: policy.initial_carry() for name, policy in policies.items()}
        return LaneMemory(carry, jax.random.key_data(own)), _seed(k_world)

    memory: tuple[LaneMemory, Array] = jax.vmap(one)(keys)
    return memory


def act_lanes(
    policies: Mapping[str, Policy],
    params: Mapping[str, Tree],
    memory: LaneMemory,
    step: TimeStep,
    *,
    explore: bool,
) -> tuple[LaneMemory, Acted]:
    """What every policy does on one row of B lanes; leaves of `step` are `[B, ...]`."""

    def one(memory: LaneMemory, step: TimeStep) -> tuple[LaneMemory, Acted]:
        key, k_world, k_act = jax.random.split(jax.random.wrap_key_data(memory.key, impl=_IMPL), 3)
        carries, actions, extras, before = {}, {}, {}, {}
        for index, (name, policy) in enumerate(policies.items()):
            own_key = k_act if len(policies) == 1 else jax.random.fold_in(k_act, index)
            old: Any = jax.tree.map(
                lambda fresh, kept: jnp.where(step.first, fresh, kept), policy.initial_carry(), memory.carry[name]
            )
            before[name] = old
            carries[name], acts, extras[name] = policy.act(
                params[name], old, restrict(step, policy.roles), own_key, explore=explore
            )
            actions.update(acts)
        return LaneMemory(carries, jax.random.key_data(key)), Acted(before, _seed(k_world), actions, extras)

    result: tuple[LaneMemory, Acted] = jax.vmap(one)(memory, step)
    return result


def _seed(key: Key) -> Array:
    return jax.random.bits(key, (), jnp.uint32)
