"""What a process needs to take part in a run: a recipe that is nothing but JSON, and what is made of it there."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from marl.core.algorithm import Algorithm, Policy
from marl.core.env import AnyEnvironment
from marl.core.errors import RunError
from marl.core.host_rows import HostWorlds
from marl.core.inference import run_at_once
from marl.core.types import Tree

PACKAGES = ("jax", "numpy", "marl-platform")  # of which every process of a run must have the same version


@dataclasses.dataclass(frozen=True)
class Parts:
    """worlds: a world in JAX, or in Python.  learners: names of the policies that learn.  fixed: parameters by name of
    those that do not.  on_axis: a learner's algorithm that averages over a mesh axis, by policy and axis name."""

    worlds: AnyEnvironment | HostWorlds
    policies: dict[str, Policy]
    learners: tuple[str, ...]
    fixed: Mapping[str, Tree]
    on_axis: Callable[[str, str], Algorithm]

    @property
    def algorithms(self) -> dict[str, Algorithm]:
        return {name: self.policies[name] for name in self.learners}  # type: ignore[misc]

    @property
    def all_fixed(self) -> dict[str, Tree]:
        """Parameters of every policy that does not learn, `()` for one that has none."""
        return {name: self.fixed.get(name, ()) for name in self.policies if name not in self.learners}


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A function `module:name` that makes Parts of `arguments` (JSON). path: further folders to import from."""

    function: str
    arguments: dict[str, Any]
    path: tuple[str, ...] = ()

    def make(self) -> Parts:
        """The parts, made in this process, which does one thing at a time: see `run_at_once`."""
        run_at_once()
        for folder in self.path:
            if folder not in sys.path:
                sys.path.append(folder)
        module, _, name = self.function.partition(":")
        made: Parts = getattr(importlib.import_module(module), name)(**self.arguments)
        return made

    def identity(self) -> str:
        """Hash of the recipe and of the versions of what runs it; processes of a run must agree on it."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
                versions[package] = ""
        words = json.dumps([self.function, self.arguments, versions], sort_keys=True)
        return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()

    def check(self, identity: str) -> None:
        """Raises: RunError if another process has another recipe or other versions."""
        own = self.identity()
        if own != identity:
            raise RunError(
                f"this process runs other code or another experiment ({own}) than the one that started the run "
                f"({identity}); expected the same versions of {', '.join(PACKAGES)} everywhere"
            )
