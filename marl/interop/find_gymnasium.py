"""Gymnasium environments by id. Importing this imports no JAX."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from marl.core.errors import UserError, did_you_mean
from marl.core.host import HostWorld
from marl.interop.atari import AtariGame, AtariOptions, arguments
from marl.interop.factories import INSTALL, Source, arguments_of, load, missing, own_classes
from marl.interop.host_gymnasium import GymnasiumWorld
from marl.interop.host_rows import limit_of
from marl.interop.pictures import Pictures

ATARI_FRAMES = 108_000  # half an hour of play, where ale-py cuts a game


class Options(AtariOptions, Protocol):
    """The options of `worlds.WorldConfig` that are read here."""

    @property
    def max_steps(self) -> int | None: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def pictures(self) -> Pictures: ...


def is_atari(name: str) -> bool:
    """Whether an id is a game of the Arcade Learning Environment."""
    return name.startswith("ALE/")


def find(name: str) -> Source:
    """The environment of an id, or of `package.module:Class`. Raises: UserError if there is none, with the nearest."""
    module, colon, attribute = name.partition(":")
    if name.endswith(".py"):
        only = only_class(name)
        return Source(name, only, arguments_of(only))
    if colon:
        loaded = _module(module, name)
        found = getattr(loaded, attribute, None)
        if found is not None:
            return Source(name, found, arguments_of(found))
    if is_atari(name):
        _register_atari(name)
    try:
        spec = gymnasium.spec(name)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        known = [*gymnasium.registry]
        raise UserError(f"there is no environment '{name}'{did_you_mean(name, known)} ({_first(error)})") from error
    spec = copy.deepcopy(spec)
    steps, spec.max_episode_steps, spec.order_enforce, spec.disable_env_checker = (
        spec.max_episode_steps,
        None,  # the adapter counts steps itself
        False,
        True,
    )
    creator = _creator(name, spec)
    arguments = arguments_of(creator)
    return Source(name, lambda **own: gymnasium.make(spec, **own), arguments, steps=steps)


def only_class(path: str) -> type[Any]:
    """The environment class of a file. Raises: UserError if it has none or several."""
    classes = [found for found in own_classes(load(path)) if issubclass(found, gymnasium.Env)]
    if len(classes) != 1:
        names = ", ".join(found.__name__ for found in classes) or "none"
        raise UserError(
            f"{path} has {len(classes)} classes of gymnasium.Env ({names}); name one: gymnasium:{path}:NAME"
        )
    return classes[0]


def make(id: str, source: Source, own: Mapping[str, Any], config: Options, render: bool) -> HostWorld:
    """A copy. Raises: UserError if an argument or a space cannot be used or something is not installed."""
    return GymnasiumWorld(id, *raw(source, own, config, render), config.pictures)


def raw(source: Source, own: Mapping[str, Any], config: Options, render: bool = False) -> tuple[Any, int | None]:
    """The environment, without those wrappers of Gymnasium's that only check, and its longest episode if that is
    known."""
    atari = is_atari(source.name) and config.preprocessing != "none"
    try:
        env = source.make({**own, **(arguments() if atari else {})}, render)
    except gymnasium.error.Error as error:
        raise UserError(f"cannot be made: {_first(error)}{_hint(error)}") from error
    while isinstance(env, OrderEnforcing | PassiveEnvChecker):
        env = env.env
    if atari:
        steps = ATARI_FRAMES // config.frame_skip
        return AtariGame(env, config), limit_of(steps, config.max_steps)
    return env, limit_of(source.steps, config.max_steps)


def _module(module: str, name: str) -> Any:
    try:
        return load(module)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no environment '{name}': no module named '{error.name}'") from error


def _creator(name: str, spec: Any) -> Any:
    entry = spec.entry_point
    if callable(entry):
        return entry
    try:
        return gymnasium.envs.registration.load_env_creator(entry)
    except ModuleNotFoundError as error:
        raise missing(name, error) from error
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        raise UserError(f"'{name}' cannot be loaded: {_first(error)}{_hint(error)}") from error


def _register_atari(name: str) -> None:
    if importlib.util.find_spec("ale_py") is None:
        raise UserError(f"'{name}' is an Atari game and needs ale-py: {INSTALL['atari']}")
    ale_py: Any = importlib.import_module("ale_py")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    gymnasium.register_envs(ale_py)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _hint(error: Exception) -> str:
    text = str(error).lower()
    for word, extra in (("box2d", "worlds"), ("pygame", "worlds"), ("mujoco", "mujoco"), ("ale", "atari")):
        if word in text:
            return f"; {INSTALL[extra]}"
    return ""
