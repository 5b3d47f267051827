"""The algorithms and scripted policies. Names map to strings, so importing this package imports no algorithm."""

from __future__ import annotations

from marl.core.registry import Registry

REGISTRY = Registry(
    "algorithm",
    {
        "ppo": "marl.agents.ppo.algorithm:PPO",
        "ippo": "marl.agents.ppo.algorithm:PPO",
        "mappo": "marl.agents.ppo.algorithm:MAPPO",
        "a3c": "marl.agents.a3c.algorithm:A3C",
        "random_search": "marl.agents.deep_ga.random_search:RandomSearch",
        "rllib/PPO": "marl.agents.rllib.policy:RllibPPO",
        "rllib/IMPALA": "marl.agents.rllib.policy:RllibIMPALA",
        "random": "marl.agents.scripted.policies:Random",
        "scripted/constant": "marl.agents.scripted.policies:Constant",
        "scripted/highway_defensive": "marl.agents.scripted.highway:Defensive",
    },
    entry_point_group="marl.agents",
)
