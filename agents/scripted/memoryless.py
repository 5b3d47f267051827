"""What all policies share that neither learn nor remember."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from marl.core.config import AgentConfig
from marl.core.types import DataNeeds, RoleSpec, Tree

C = TypeVar("C", bound=AgentConfig)


class Memoryless(Generic[C]):
    """The frame of a policy without parameters and without carry; `act` is what is left to write."""

    Config: ClassVar[type[AgentConfig]] = AgentConfig

    def __init__(self, config: C, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        del axis
        self.config = config
        self.specs = roles

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=1)

    def initial_carry(self) -> Tree:
        return ()
