"""Registries map a name to a string `package.module:Attribute`; nothing is imported before it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from typing import Any

from marl.core.errors import UserError, unknown_name


def find_in_current_folder() -> None:
    """Let modules of the current folder be imported, after all others: people keep their worlds beside their YAML."""
    with contextlib.suppress(OSError):  # the folder may be gone
        here = os.getcwd()
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)


def import_target(target: str) -> Any:
    """The object that `package.module:Attribute` names.

    Raises: UserError if the module cannot be found or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{target}' is not of the form package.module:Name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import '{target}': no module named '{error.name}'") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            raise unknown_name(f"name in module {module_name}", part, names)
        found = getattr(found, part)
    return found


class Registry:
    """Names of one kind of thing: built-in ones, ones registered at run time, ones other packages declare as entry
    points."""

    def __init__(self, kind: str, builtin: Mapping[str, str], entry_point_group: str) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._targets = dict(builtin)

    def register(self, name: str, target: str) -> None:
        """Add `name`, pointing at `package.module:Attribute`. Raises: UserError if the name is taken by something
        else."""
        if self._targets.get(name, target) != target:
            raise UserError(f"{self.kind} '{name}' is already registered as {self._targets[name]}")
        self._targets[name] = target

    def targets(self) -> dict[str, str]:
        """Every known name with its target; a built-in name wins over an entry point of the same name."""
        found = {p.name: p.value for p in importlib.metadata.entry_points(group=self.entry_point_group)}
        return {**found, **self._targets}

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted(self.targets())

    def resolve(self, name: str) -> Any:
        """The object behind a registered name, or behind `package.module:Name` where the current folder counts, too.

        Raises: UnknownNameError with the nearest known name; UserError if the target cannot be imported.
        """
        if ":" in name:
            find_in_current_folder()
            return import_target(name)
        targets = self.targets()
        if name not in targets:
            raise unknown_name(self.kind, name, targets)
        return import_target(targets[name])
