"""Parts of tiny runs, made from JSON in whichever process needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # processes of Ray import this module alone

from tiny import Tiny, TinyGradient, TinyReplay
from tiny_host import TinyHost

from marl.core.host import HostFactory
from marl.core.host_rows import HostWorlds
from marl.dataflow.parts import Blueprint, Parts
from marl.envs.probe.credit import Credit

POLICIES = {"tiny": Tiny, "gradient": TinyGradient, "replay": TinyReplay}


def make(policy: str = "tiny", world: dict[str, Any] | None = None) -> Parts:
    """world: options of the tiny world in Python; None: the probe `Credit` in JAX."""
    worlds: Any = Credit()
    roles = worlds.roles
    if world is not None:
        worlds, _ = HostWorlds.of(HostFactory("tiny_host:TinyHost", world))
        roles = TinyHost().roles
    made = POLICIES[policy](roles)
    return Parts(worlds, {"all": made}, ("all",), {}, lambda name, axis: made)


def blueprint(**arguments: Any) -> Blueprint:
    return Blueprint("tiny_parts:make", arguments, (str(Path(__file__).parent),))
