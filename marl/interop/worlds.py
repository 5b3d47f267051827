"""Anyone's worlds by name: `pettingzoo:MODULE` and `gymnasium:ID`. Importing this imports no JAX.

`pettingzoo:` takes a module to import (the current folder counts) or the path of a .py file, either with `:function` or
`:Class` behind it. `gymnasium:` takes an id that is registered with Gymnasium, or `package.module:Class`.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium
from pettingzoo import AECEnv, ParallelEnv
from pydantic import Field, PositiveInt, ValidationError

from marl.core.config import EnvConfig
from marl.core.errors import ConfigError, MarlError, UserError, WorldError, did_you_mean
from marl.core.host import HostWorld
from marl.interop import find_gymnasium, find_pettingzoo
from marl.interop.factories import Source, load, own_classes
from marl.interop.find_pettingzoo import takes_turns as takes_turns
from marl.interop.pictures import Pictures

PREFIXES = ("pettingzoo:", "gymnasium:")


class WorldConfig(EnvConfig):
    """What every world in Python takes in YAML beside the keyword arguments of its own factory.

    roles: by role the agents that play it, as a list or a pattern of their names (`blue_*`); None groups agents whose
    spaces are equal.  max_steps: cut episodes that are longer.  api: of a PettingZoo world, all at once or in turns.
    state: read the global state of worlds that have one; None reads small ones.  resize, grey: make pictures smaller,
    to a square or to [rows, columns], by area, and of one channel.  preprocessing: `atari` is the usual one of Atari
    games, which `auto` takes for ids in `ALE/`.  frame_skip, frame_stack, size, noops, sticky, life_loss, clip_reward:
    of that one.
    """

    roles: dict[str, str | list[str]] | None = None
    max_steps: int | None = Field(None, ge=1)
    api: Literal["auto", "parallel", "aec"] = "auto"
    state: bool | None = None
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    grey: bool = False
    preprocessing: Literal["auto", "atari", "none"] = "auto"
    frame_skip: int = Field(4, ge=1)
    frame_stack: int = Field(4, ge=1)
    size: int = Field(84, ge=8)
    noops: int = Field(30, ge=0)
    sticky: float = Field(0.25, ge=0.0, le=1.0)
    life_loss: bool = False
    clip_reward: bool = True

    @property
    def pictures(self) -> Pictures:
        """What is done to pictures."""
        return Pictures((self.resize, self.resize) if isinstance(self.resize, int) else self.resize, self.grey)


# Which of these options a kind of world takes; the others are its own arguments, whatever they are called.
SHARED = frozenset({"max_steps", "resize", "grey"})
OPTIONS = {
    "pettingzoo:": SHARED | {"roles", "api", "state"},
    "gymnasium:": SHARED,
    "atari": SHARED
    | {"preprocessing", "frame_skip", "frame_stack", "size", "noops", "sticky", "life_loss", "clip_reward"},
}


def is_host_world(id: str) -> bool:
    """Whether an id names a world in Python, somebody else's."""
    return id.startswith(PREFIXES)


def in_file(target: str) -> str:
    """The id of what is in a file, `PATH.py` or `PATH.py:NAME`: a world of PettingZoo's, of Gymnasium's, or a world or
    an algorithm of ours, which is then `module:Class`.

    Raises: UserError if the file cannot be imported or has no world.
    """
    path, _, name = target.partition(":")
    module = load(path)
    if name and not hasattr(module, name):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{path} has no '{name}'{did_you_mean(name, known)}")
    found = [getattr(module, name)] if name else own_classes(module)
    classes = [value for value in found if inspect.isclass(value)]
    ours = [c for c in classes if all(hasattr(c, part) for part in ("Config", "roles", "reset", "step"))]
    ours += [c for c in classes if all(hasattr(c, part) for part in ("Config", "initial_carry", "act"))]
    if len(ours) == 1:
        here = Path(path).expanduser().resolve().parent == Path.cwd()  # then anybody else finds it by its plain name
        return f"{Path(path).stem if here else module.__name__}:{ours[0].__name__}"
    theirs = any(issubclass(c, ParallelEnv | AECEnv) for c in classes)
    if not theirs and any(issubclass(c, gymnasium.Env) for c in classes):
        return f"gymnasium:{target}"
    return f"pettingzoo:{target}"


def world_config(id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a world with their values: those of the adapter, and the world's own as given.

    Raises: ConfigError if an option is unknown or does not fit, with the nearest; UserError if there is no such world.
    """
    known = _known(id)
    own = {key: value for key, value in options.items() if key not in known}
    config = _validated(id, {key: value for key, value in options.items() if key in known})
    _find(id, config.api).check(own, known)
    return {**{key: value for key, value in config.model_dump(mode="json").items() if key in known}, **own}


def make_world(id: str, options: Mapping[str, Any], render: bool = False) -> HostWorld:
    """A copy of the world, ready to be reset. render: it can draw itself.

    Raises: ConfigError if an option is unknown or does not fit; UserError if there is no such world, something that it
    needs is not installed, or its spaces cannot be used; WorldError if it breaks its promises at once.
    """
    source, config, own = _prepared(id, options)
    try:
        if id.startswith("gymnasium:"):
            return find_gymnasium.make(id, source, own, config, render)
        return find_pettingzoo.make(id, source, own, config, render)
    except Exception as error:
        raise _named(id, options, error) from error


def raw(id: str, options: Mapping[str, Any]) -> tuple[Any, int | None]:
    """The world as its own kind of object, not adapted, and its longest episode if that is known. Raises: as
    `make_world`, but not for spaces."""
    source, config, own = _prepared(id, options)
    try:
        if id.startswith("gymnasium:"):
            return find_gymnasium.raw(source, own, config)
        return find_pettingzoo.raw(source, own, config)
    except Exception as error:
        raise _named(id, options, error) from error


def _named(id: str, options: Mapping[str, Any], error: Exception) -> MarlError:
    """The error with the world's name; what foreign code raises comes with its place."""
    if isinstance(error, MarlError):
        return type(error)(f"world {id}: {error}")
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().partition("\n")[0] or "no message"
    place = f"{Path(where.filename).name}, line {where.lineno}"
    given = f" with {', '.join(f'{key} {value!r}' for key, value in options.items())}" if options else ""
    return WorldError(f"world {id}: cannot be made{given}: it raised {type(error).__name__}: {text} ({place})")


def _prepared(id: str, options: Mapping[str, Any]) -> tuple[Source, WorldConfig, dict[str, Any]]:
    known = _known(id)
    resolved = world_config(id, options)
    config = WorldConfig(**{key: value for key, value in resolved.items() if key in known})
    return _find(id, config.api), config, {key: value for key, value in resolved.items() if key not in known}


def _split(id: str) -> tuple[str, str]:
    for prefix in PREFIXES:
        if id.startswith(prefix) and len(id) > len(prefix):
            return prefix, id[len(prefix) :]
    raise UserError(f"'{id}' is no world in Python; expected pettingzoo:MODULE or gymnasium:ID")


def _known(id: str) -> frozenset[str]:
    prefix, name = _split(id)
    return frozenset(OPTIONS["atari"] if find_gymnasium.is_atari(name) and prefix == "gymnasium:" else OPTIONS[prefix])


def _find(id: str, api: str) -> Source:
    prefix, name = _split(id)
    return find_gymnasium.find(name) if prefix == "gymnasium:" else find_pettingzoo.find(name, api)


def _validated(id: str, options: Mapping[str, Any]) -> WorldConfig:
    try:
        return WorldConfig(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"world {id}: option '{key}' is {problem['input']!r}: {problem['msg']}") from error
