"""The worlds. Names map to strings, so importing this package imports no world.

`from marl.envs import heterogeneous_highway_v0` gives what a PettingZoo module gives: `parallel_env(**options)` and
`env(**options)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marl.core.errors import did_you_mean
from marl.core.registry import Registry

if TYPE_CHECKING:
    from marl.interop.pettingzoo import AECEnv, ParallelEnv

REGISTRY = Registry(
    "environment",
    {
        "heterogeneous_highway_v0": "marl.envs.heterogeneous_highway.env:HeterogeneousHighway",
        "probe_value_v0": "marl.envs.probe.value:Value",
        "probe_credit_v0": "marl.envs.probe.credit:Credit",
        "probe_memory_v0": "marl.envs.probe.memory:Memory",
        "probe_coordination_v0": "marl.envs.probe.coordination:Coordination",
        "probe_roles_v0": "marl.envs.probe.roles:Roles",
        "probe_truncation_v0": "marl.envs.probe.truncation:Truncation",
        "cartpole_v0": "marl.envs.probe.cartpole:CartPole",
    },
    entry_point_group="marl.envs",
)


class World:
    """A registered world, imported when one of its members is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def raw(self) -> type[Any]:
        """The class itself: `raw(**options)` has the pure `reset` and `step`."""
        found: type[Any] = REGISTRY.resolve(self._name)
        return found

    def parallel_env(self, **options: Any) -> ParallelEnv:
        """A PettingZoo parallel environment. options: the world's, and `render_mode`."""
        from marl.interop.pettingzoo import parallel_env

        return parallel_env(self.raw, name=self._name, **options)

    def env(self, **options: Any) -> AECEnv:
        """The same with one agent acting at a time (PettingZoo's AEC form)."""
        from marl.interop.pettingzoo import aec_env

        return aec_env(self.raw, name=self._name, **options)

    def __repr__(self) -> str:
        return f"<world {self._name}>"


def __getattr__(name: str) -> World:
    """Every registered id is an attribute of this module."""
    if not name.startswith("_"):
        names = REGISTRY.names()
        if name in names:
            return World(name)
        raise AttributeError(f"marl.envs has no world '{name}'{did_you_mean(name, names)}", name=name)
    raise AttributeError(f"module 'marl.envs' has no attribute '{name}'", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *REGISTRY.names()})
