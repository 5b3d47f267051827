"""The worlds. Names map to strings, so importing this package imports no world."""

from __future__ import annotations

from marl.core.registry import Registry

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
