"""The policy server: acts for whoever asks, many lanes in one call, several policies and versions at hand.

It takes the requests that are there, without a timer: while it works, others queue up, so its batches grow with the
load (continuous batching). Batches are padded to a power of two of requests, so that few programs are compiled. It
knows nothing of episodes or trajectories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from marl.core.algorithm import Policy
from marl.core.inference import Acted, LaneMemory, act_lanes
from marl.core.types import TimeStep, Tree

Versions: TypeAlias = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Request:
    """Lanes that want to act. memory, step: leaves `[B, ...]`; all requests of a server have the same B."""

    versions: Versions
    memory: LaneMemory
    step: TimeStep


class PolicyServer:
    """Acts with the parameters it was given. fixed: parameters by name of policies that never change.

    together: answer waiting requests in one call. Alone (False) every request is a call of its own, and so its numbers
    do not depend, not even in the last bit, on who else asks.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        fixed: Mapping[str, Tree],
        *,
        explore: bool = True,
        together: bool = False,
        device: jax.Device | None = None,
    ) -> None:
        self.policies = dict(policies)
        self.explore = explore
        self.together = together
        self.device = device
        self._fixed = {name: jax.device_put(params, device) for name, params in fixed.items()}
        self._held: dict[tuple[str, int], Tree] = {}
        self._cast = tuple(self.policies.items())
        self.calls = 0
        self.requests = 0

    def load(self, policy: str, version: int, params: Tree) -> None:
        """Hold a version of a policy."""
        self._held[policy, version] = jax.device_put(params, self.device) if self.device is not None else params

    def unload(self, policy: str, keep: set[int]) -> None:
        """Forget all versions of a policy but these."""
        for held in [key for key in self._held if key[0] == policy and key[1] not in keep]:
            del self._held[held]

    def held(self, policy: str) -> list[int]:
        """The versions of a policy that can act."""
        return sorted(version for name, version in self._held if name == policy)

    def params(self, versions: Versions) -> dict[str, Tree]:
        """Parameters of every policy. Raises: KeyError for a version that was not loaded or is gone."""
        return {**self._fixed, **{name: self._held[name, version] for name, version in versions.items()}}

    def act(self, requests: Sequence[Request]) -> list[tuple[LaneMemory, Acted]]:
        """Answers in the order of the requests; those of one set of versions share a call."""
        self.requests += len(requests)
        if not self.together:
            return [self._call(self.params(r.versions), [r])[0] for r in requests]
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(tuple(sorted(request.versions.items())), []).append(index)
        answers: dict[int, tuple[LaneMemory, Acted]] = {}
        for indices in groups.values():
            members = [requests[i] for i in indices]
            answers.update(zip(indices, self._call(self.params(members[0].versions), members), strict=True))
        return [answers[index] for index in range(len(requests))]

    def _call(self, params: dict[str, Tree], requests: list[Request]) -> list[tuple[LaneMemory, Acted]]:
        self.calls += 1
        size = 1 << (len(requests) - 1).bit_length()
        padded = [*requests, *[requests[-1]] * (size - len(requests))]
        answers: list[tuple[LaneMemory, Acted]] = act_together(
            self._cast, self.explore, params, [r.memory for r in padded], [r.step for r in padded]
        )
        return answers[: len(requests)]


@partial(jax.jit, static_argnums=(0, 1))
def act_together(
    cast: tuple[tuple[str, Policy], ...],
    explore: bool,
    params: dict[str, Tree],
    memories: list[LaneMemory],
    steps: list[TimeStep],
) -> list[tuple[LaneMemory, Acted]]:
    """Act for the lanes of several requests in one batch. Compiled once for policies and a number of requests."""
    policies = dict(cast)
    if len(memories) == 1:
        return [act_lanes(policies, params, memories[0], steps[0], explore=explore)]
    memory, step = (jax.tree.map(lambda *parts: jnp.concatenate(parts), *trees) for trees in (memories, steps))
    answer = act_lanes(policies, params, memory, step, explore=explore)
    lanes = memories[0].key.shape[0]
    return [jax.tree.map(lambda x, i=i: x[i * lanes : (i + 1) * lanes], answer) for i in range(len(memories))]
