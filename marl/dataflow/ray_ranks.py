"""Ranks of a group of learners on Ray: the learner's process starts the others, which end when it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from marl.dataflow.learner_group import TIMEOUT_S, OwnRanks, Rank
from marl.dataflow.learner_rank import RankShell, decode, encode, free_address, join
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_crew import ProcessOptions, Remote, get


@dataclasses.dataclass(frozen=True)
class RayRanks:
    """ranks: processes that share every batch, the learner's own among them.  options: of each of the others, which are
    in the placement group of the learner's process if it is in one.  timeout: seconds that an update may take."""

    ranks: int
    options: ProcessOptions
    timeout: float = TIMEOUT_S

    def join(self, blueprint: Blueprint, identity: str) -> OwnRanks:
        """Start the other ranks and become rank 0, in the learner's process, before anything else in it uses JAX.

        Raises: RunError if they do not come in time.
        """
        from ray.util import get_current_placement_group, get_node_ip_address

        # The address that Ray knows this node by: 127.0.0.1 in a cluster of one machine that keeps to itself.
        host: Any = get_node_ip_address()  # type: ignore[no-untyped-call]
        address = free_address(host)
        group = get_current_placement_group()
        others = [
            Remote(RankShell, (blueprint, identity, address, self.ranks, rank), self.options, group)
            for rank in range(1, self.ranks)
        ]
        join(address, self.ranks, 0)
        made: list[Callable[[str], Rank]] = [partial(RayRank, remote) for remote in others]
        return OwnRanks(made, self.timeout)


class RayRank:
    """The rank of a policy in a process of Ray's."""

    def __init__(self, remote: Remote, policy: str) -> None:
        self.remote, self.policy = remote, policy

    def call(self, method: str, *arguments: Any) -> RayAnswer:
        encoded = [encode(value) for value in arguments]
        return RayAnswer(self.remote.call("call", self.policy, method, *encoded))

    def kill(self) -> None:
        self.remote.kill()


class RayAnswer:
    """What a call of a rank will have given."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ready(self) -> bool:
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        """Raises: RunError in the words of what went wrong there."""
        return decode(get(self._reference))
