"""What acts, and what trains it. Neither ever sees a loop, a worker, a file or Ray."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from marl.core.config import AgentConfig
from marl.core.types import ByRole, DataNeeds, Key, LearnerState, Metrics, TimeStep, Trajectory, Tree


@runtime_checkable
class Policy(Protocol):
    """What acts, is evaluated, rendered and served; written for one lane.

    Made as `Class(config, roles, axis=None)`: `config` of its own `Config` type, `roles` the RoleSpecs it plays (its
    carry and actions hold all of them), `axis` the device-mesh axis name over which a learner averages (None outside
    shard_map). One that another program trains, so that it has no `update`, names that dataflow in `trained_by`.
    """

    Config: ClassVar[type[AgentConfig]]

    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def needs(self) -> DataNeeds: ...
    def initial_carry(self) -> Tree:
        """Recurrent state of one lane; leaves `[n_role, ...]`, or `()`. The dataflow resets it at `first`."""
        ...

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """New carry, actions by role `[n_role, ...]`, extras. `explore` is static: sample, or the greedy action."""
        ...


@runtime_checkable
class Algorithm(Policy, Protocol):
    """A policy that learns."""

    def init(self, key: Key, hyper: Tree = None) -> LearnerState: ...
    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]: ...
    def publish(self, state: LearnerState) -> Tree:
        """What actors need, no more."""
        ...


@runtime_checkable
class GradientAlgorithm(Algorithm, Protocol):
    """Gradients may cross a process boundary: `update` is `apply` after `gradient` after `publish`."""

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        """Gradients at `params` (what `publish` gave, now or a while ago), and metrics."""
        ...

    def apply(self, state: LearnerState, grads: Tree) -> LearnerState:
        """The state after gradients have arrived, whatever version they were taken at."""
        ...


class GradientUpdate:
    """Gives a GradientAlgorithm its `update`, so that the two ways to learn cannot drift apart."""

    def update(
        self: GradientAlgorithm, state: LearnerState, batch: Trajectory, key: Key
    ) -> tuple[LearnerState, Metrics]:
        grads, metrics = self.gradient(self.publish(state), batch, key)
        return self.apply(state, grads), metrics
