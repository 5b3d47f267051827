"""Actors alone, without noise: what searches over parameters play their individuals with."""

from __future__ import annotations

from typing import ClassVar

from marl.core.config import AgentConfig
from marl.core.types import ByRole, DataNeeds, Key, TimeStep, Tree

from .actor_critic import Actors
from .config import NetworkConfig


class GreedyActors(Actors):
    """Always the most likely action, or the mean: all variety comes from the parameters."""

    Config: ClassVar[type[AgentConfig]] = NetworkConfig

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=1, whole_episodes=True)

    def init(self, key: Key) -> Tree:
        """Parameters of every role's actors, leaves `[G, ...]`."""
        return {name: actor.init(key) for name, actor in self.actors.items()}

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """`explore` makes no difference."""
        del explore
        carry, actions, _ = super().act(params, carry, step, key, explore=False)
        return carry, actions, ()
