"""PettingZoo worlds by module or file. Importing this imports no JAX."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel, parallel_to_aec

from marl.core.errors import ConfigError, UserError, did_you_mean
from marl.core.host import HostWorld
from marl.interop.factories import INSTALL, Source, arguments_of, load, own_classes
from marl.interop.host_aec import TurnWorld
from marl.interop.host_parallel import ParallelWorld
from marl.interop.host_rows import limit_of
from marl.interop.pictures import Pictures

FAMILIES = ("atari", "butterfly", "classic", "sisl")  # packages within `pettingzoo`
PACKAGES = ("mpe2", *(f"pettingzoo.{family}" for family in FAMILIES))


class Options(Protocol):
    """The options of `worlds.WorldConfig` that are read here."""

    @property
    def roles(self) -> Mapping[str, str | Sequence[str]] | None: ...
    @property
    def max_steps(self) -> int | None: ...
    @property
    def api(self) -> str: ...
    @property
    def state(self) -> bool | None: ...
    @property
    def pictures(self) -> Pictures: ...


def find(name: str, api: str = "auto") -> Source:
    """The world of `MODULE`, `PATH.py`, or either with `:function` behind it. api: which form is wanted.

    Raises: UserError if there is none, with the nearest, or if something that it needs is not installed.
    """
    module_name, _, attribute = name.partition(":")
    module = _module(module_name)
    if attribute:
        if not hasattr(module, attribute):
            known = [n for n in vars(module) if not n.startswith("_")]
            raise UserError(f"{module_name} has no '{attribute}'{did_you_mean(attribute, known)}")
        factory = getattr(module, attribute)
    else:
        factory = _factory(module, module_name, api)
    return Source(name, factory, arguments_of(factory, getattr(module, "raw_env", None)))


def make(id: str, source: Source, own: Mapping[str, Any], config: Options, render: bool) -> HostWorld:
    """A copy. Raises: UserError if an argument, a space or a role cannot be used or something is not installed."""
    env, steps = raw(source, own, config, render)
    if takes_turns(env):
        return TurnWorld(id, env, config.max_steps, config.roles, config.state, config.pictures)
    return ParallelWorld(id, env, steps, config.roles, config.state, config.pictures, config.max_steps)


def raw(source: Source, own: Mapping[str, Any], config: Options, render: bool = False) -> tuple[Any, int | None]:
    """The environment, in the form that is wanted, and its longest episode if that is known."""
    env = source.make(own, render)
    turns = takes_turns(env)
    if turns is None:
        raise UserError(f"made {type(env).__name__}, expected a ParallelEnv or an AECEnv of PettingZoo")
    if turns != (config.api == "aec") and config.api != "auto":
        env, turns = _converted(env, config.api), not turns
    return env, config.max_steps if turns else max_steps_of(env, config.max_steps)


def takes_turns(env: Any) -> bool | None:
    """Whether agents act one after another, None if it is no PettingZoo environment."""
    if isinstance(env, AECEnv) or hasattr(env, "agent_iter"):
        return True
    fits = isinstance(env, ParallelEnv) or all(
        hasattr(env, name) for name in ("reset", "step", "action_space", "agents")
    )
    return False if fits else None


def _converted(env: Any, api: str) -> Any:
    try:
        return parallel_to_aec(env) if api == "aec" else aec_to_parallel(env)
    except AssertionError as error:
        raise ConfigError(
            "api: parallel does not fit, as its agents act in turns (metadata has no is_parallelizable); expected "
            "api: auto or aec"
        ) from error


def max_steps_of(env: Any, option: int | None) -> int | None:
    """The longest episode: many worlds keep `max_cycles`, as PettingZoo's own do."""
    own = getattr(env.unwrapped, "max_cycles", None)
    return limit_of(own if isinstance(own, int) and own > 0 else None, option)


def _module(name: str) -> ModuleType:
    first = name.partition(".")[0]
    if name.startswith(("pettingzoo.mpe.", "mpe.")):
        name = f"mpe2.{name.rpartition('.')[2]}"
    try:
        return load(name)
    except ModuleNotFoundError as error:
        if first in FAMILIES and error.name == first:
            return _module(f"pettingzoo.{name}")
        if error.name == "mpe2":
            raise UserError(f"there is no module 'mpe2': {INSTALL['worlds']}") from error
        near = did_you_mean(name, known_worlds())
        raise UserError(
            f"there is no module '{error.name}'{near}; expected a module or the path of a .py file"
        ) from error


def known_worlds() -> list[str]:
    """The worlds of the packages that are installed here, such as `mpe2.simple_spread_v3`."""
    found = []
    for package in PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.submodule_search_locations is not None:
            names = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
            found += [f"{package}.{name}" for name in names if name.rpartition("_v")[2].isdigit()]
    return found


def _factory(module: ModuleType, name: str, api: str) -> Callable[..., Any]:
    """What a module makes worlds with: `parallel_env`, `env`, or its only class of PettingZoo's."""
    names = ("parallel_env", "env", "raw_env")
    for attribute in ("env", "raw_env", "parallel_env") if api == "aec" else names:
        if callable(getattr(module, attribute, None)):
            found: Callable[..., Any] = getattr(module, attribute)
            return found
    classes = [found for found in own_classes(module) if issubclass(found, ParallelEnv | AECEnv)]
    if len(classes) == 1:
        return classes[0]
    shown = f"has {', '.join(c.__name__ for c in classes)}" if classes else "has no class of ParallelEnv or AECEnv"
    raise UserError(f"{name} has no function parallel_env or env and {shown}; name one: pettingzoo:{name}:NAME")
