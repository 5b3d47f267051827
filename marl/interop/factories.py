"""What makes a world: functions and classes found in modules and files, and the arguments that they take.

Importing this imports no JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from marl.core.errors import ConfigError, UserError, did_you_mean
from marl.core.registry import find_in_current_folder

INSTALL = {
    "worlds": "pip install 'marl-platform[worlds]'",
    "atari": "pip install 'marl-platform[atari]'",
    "mujoco": "pip install 'marl-platform[mujoco]'",
}
# Modules that worlds need, by the extra that brings them.
NEEDED = {
    "mpe2": "worlds",
    "pygame": "worlds",
    "pymunk": "worlds",
    "Box2D": "worlds",
    "chess": "worlds",
    "rlcard": "worlds",
    "ale_py": "atari",
    "cv2": "atari",
    "mujoco": "mujoco",
}
MAX_DEPTH = 4  # wrappers looked through for the arguments of the function inside


@dataclasses.dataclass(frozen=True)
class Source:
    """Where worlds come from. factory: called with keyword arguments.  arguments: their names, None if any is taken.
    aec: what `factory` makes takes turns (None: look at it).  steps: longest episode, if the source knows."""

    name: str
    factory: Callable[..., Any]
    arguments: frozenset[str] | None
    aec: bool | None = None
    steps: int | None = None

    def check(self, own: Collection[str], adapter: Iterable[str]) -> None:
        """Raises: ConfigError for an option that neither the world nor the adapter takes, with the nearest one."""
        if self.arguments is None:
            return
        for key in own:
            if key not in self.arguments:
                choices = sorted({*self.arguments, *adapter} - {"render_mode"})
                raise ConfigError(
                    f"unknown option '{key}' for {self.name}{did_you_mean(key, choices)} known: {', '.join(choices)}"
                )

    def make(self, own: Mapping[str, Any], render: bool) -> Any:
        """The world. Raises: UserError if the arguments are wrong or something is not installed."""
        arguments = dict(own)
        if render:  # films only: SDL is to look for no screen, and to say nothing where there is none
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if render and (self.arguments is None or "render_mode" in self.arguments):
            arguments["render_mode"] = "rgb_array"
        try:
            with quiet():
                return self.factory(**arguments)
        except ModuleNotFoundError as error:
            raise missing(self.name, error) from error
        except TypeError as error:
            if "argument" in str(error):
                raise ConfigError(f"{self.name} cannot be made with {own or 'no options'}: {error}") from error
            raise


def arguments_of(factory: Callable[..., Any], inside: Callable[..., Any] | None = None) -> frozenset[str] | None:
    """The keyword arguments that a factory takes, None if that cannot be known. A factory that hands on what it gets is
    looked through. inside: what it is known to call, if that cannot be seen."""
    for _ in range(MAX_DEPTH):
        try:
            parameters = list(inspect.signature(factory).parameters.values())
        except (TypeError, ValueError):
            return None
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not open_ended:
            return names
        if names:
            return None  # it takes some itself and hands on the others
        inner = _handed_on(factory) or inside
        if inner is None or inner is factory:
            return None
        factory = inner
    return None


def _handed_on(factory: Callable[..., Any]) -> Callable[..., Any] | None:
    """The one function or class in the closure of a function."""
    if not isinstance(factory, FunctionType):
        return None
    held = [cell.cell_contents for cell in factory.__closure__ or () if cell.cell_contents is not factory]
    callables = [value for value in held if callable(value)]
    return callables[0] if len(callables) == 1 else None


def load(name: str) -> ModuleType:
    """A module by its name, or a file by its path. The current folder counts.

    Raises: UserError if there is none, or its own code fails, in one line.
    """
    if name.endswith(".py") or os.sep in name:
        return _load_file(Path(name))
    find_in_current_folder()
    try:
        with quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise missing(name, error) from error
    except Exception as error:  # foreign code
        raise _broken(name, error) from error


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else [])
        raise UserError(f"there is no file {path}{near}")
    name = f"marl_world_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported; expected a Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        with quiet():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise missing(str(path), error) from error
        if isinstance(error, Exception):
            raise _broken(str(path), error) from error
        raise
    return module


def own_classes(module: ModuleType) -> list[type[Any]]:
    """The classes that a module defines itself."""
    return [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]


def missing(name: str, error: ModuleNotFoundError) -> UserError:
    """The error for a world that needs what is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = INSTALL.get(NEEDED.get(module, ""))
    return UserError(
        f"{name} needs the module '{error.name}', which is not installed" + (f": {extra}" if extra else "")
    )


def _broken(name: str, error: Exception) -> UserError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return UserError(f"{name} cannot be imported: {type(error).__name__}: {error}{where}")


def quiet() -> warnings.catch_warnings[None]:
    """Foreign modules' deprecation warnings are not for our user."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)
