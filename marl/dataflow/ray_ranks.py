"""Ranks of a group of learners on Ray: the learner's process starts the others, which end when it does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from marl.core.errors import RunError
from marl.dataflow.learner_group import TIMEOUT_S, OwnRanks, Rank
from marl.dataflow.learner_rank import RankShell, decode, encode, free_address, join
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_crew import START_LIMIT_S, ProcessOptions, Remote, get
from marl.dataflow.shells import LearnerJob, LearnerShell


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
        from ray.util import get_current_placement_group

        group = get_current_placement_group()
        address = free_address(_host(group))
        others = [
            Remote(RankShell, (blueprint, identity, address, self.ranks, rank), self.options, group)
            for rank in range(1, self.ranks)
        ]
        join(address, self.ranks, 0)
        made: list[Callable[[str], Rank]] = [partial(RayRank, remote) for remote in others]
        return OwnRanks(made, self.timeout)


def _host(group: Any) -> str:
    """Loopback if all ranks are on this node, else the address that Ray knows it by."""
    from ray.util import get_node_ip_address, placement_group_table

    nodes = placement_group_table(group)["bundles_to_node_id"].values() if group is not None else ()
    host: str = "127.0.0.1" if len(set(nodes)) == 1 else get_node_ip_address()  # type: ignore[no-untyped-call]
    return host


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
        """What the method returned. Raises: RunError if the rank is lost; else what the method raised."""
        return decode(get(self._reference))


def start_learner(blueprint: Blueprint, job: LearnerJob, options: ProcessOptions, processes: int) -> Remote:
    """The learner's process; with `processes` above 1 it is one of so many that share every batch, all with `options`,
    and ends when one of them does.

    Raises: RunError if the cluster has no room for them.
    """
    if processes == 1:
        return Remote(LearnerShell, (blueprint, job), options)
    job = dataclasses.replace(job, ranks=RayRanks(processes, options))
    return GroupRemote(LearnerShell, (blueprint, job), options, processes)


class GroupRemote(Remote):
    """The learner's process and, beside it, the room for the others that it starts: one placement group, which is kept
    together as far as nodes allow and goes with the learner.

    Raises: RunError if the cluster has no such room.
    """

    def __init__(self, shell: type, arguments: tuple[Any, ...], options: ProcessOptions, ranks: int) -> None:
        from ray.util import placement_group

        each = {"CPU": options.cpus, **({"GPU": options.gpus} if options.gpus else {})}
        self._group = placement_group([each] * ranks, strategy="PACK")
        if not self._group.wait(START_LIMIT_S):
            self._remove()
            raise RunError(f"the cluster has no room for {ranks} learner processes of {each}")
        super().__init__(shell, arguments, options, self._group)

    def kill(self) -> None:
        super().kill()
        self._remove()

    def _remove(self) -> None:
        from ray.util import remove_placement_group

        with contextlib.suppress(Exception):  # the cluster may be gone
            remove_placement_group(self._group)
