"""From a file and overrides to an `ExperimentConfig`, with errors that name the line. Imports neither JAX nor Ray."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml

from marl import agents, envs
from marl.core.errors import ConfigError, did_you_mean
from marl.core.registry import Registry
from marl.runner.explain import expected_one, show, validate
from marl.runner.schema import ExperimentConfig
from marl.runner.yaml_tree import COMMAND_LINE, MAX_BYTES, Node, Path, Source, parse_scalar, parse_yaml

STUDIES = "studies/"
_EXCLUSIVE = {"seed": "seeds", "seeds": "seed"}


@dataclasses.dataclass(frozen=True)
class LoadedExperiment:
    """A valid experiment: its config (which keeps the places of its keys), and the file it came from."""

    config: ExperimentConfig
    path: FilePath
    overrides: tuple[str, ...] = ()


def load_experiment(
    path_or_name: str | FilePath, overrides: Iterable[str] = (), *, only: tuple[str, ...] | None = None
) -> LoadedExperiment:
    """The experiment in a file, or in a packaged one by its name (`quickstart`, `highway/ippo_mild`), with overrides.

    overrides: `key.path=value`, the value written as in YAML; a list index is a key.  only: the sections, or keys in
    them, that overrides may change, None for all.
    Names of worlds and algorithms are checked here; their options and the roles in `marl.runner.plan`.
    Raises: ConfigError with file (or `command line`), line, key, what was given, what was expected, the nearest name.
    """
    path = find_experiment(path_or_name)
    overrides = tuple(overrides)
    root = read_tree(path)
    if not isinstance(root.value, dict):
        text = f"the file holds {show(root.plain())}; expected keys such as name, env, agents, stop"
        raise Source(root).error((), text)
    for text in overrides:
        root = _override(root, text, only)
    return LoadedExperiment(_config(root), path, overrides)


def config_from(data: Mapping[str, Any], overrides: Iterable[str] = ()) -> ExperimentConfig:
    """An `ExperimentConfig` from plain values, checked as a file is.

    Raises: ConfigError as in `load_experiment`, without file and line.
    """
    root = _node(data)
    for text in overrides:
        root = _override(root, text, None)
    return _config(root)


def _config(root: Node) -> ExperimentConfig:
    source = Source(root)
    config = validate(ExperimentConfig, root.plain(), source)
    config._source = source
    _check_name(envs.REGISTRY, config.env.id, source, ("env", "id"))
    for key, section in config.agents.items():
        _check_name(agents.REGISTRY, section.algorithm, source, ("agents", key, "algorithm"))
    return config


def resolved_yaml(config: ExperimentConfig) -> str:
    """The whole config, defaults written out, as a file that `load_experiment` reads back to an equal config."""
    data = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["env"] |= config.env.options  # where none may be a choice
    for key, section in config.agents.items():
        data["agents"][key] |= section.options
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def packaged_experiments() -> dict[str, FilePath]:
    """The experiments that come with this package, by name."""
    return {name: path for name, path in _packaged().items() if not name.startswith(STUDIES)}


def packaged_studies() -> dict[str, FilePath]:
    """The studies (see `marl.runner.study`) that come with this package, by name."""
    return {name.removeprefix(STUDIES): path for name, path in _packaged().items() if name.startswith(STUDIES)}


def _packaged() -> dict[str, FilePath]:
    root = FilePath(str(importlib.resources.files("marl"))) / "experiments"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_experiment(path_or_name: str | FilePath) -> FilePath:
    """The file of an experiment: a path as it stands, else a packaged name.

    Raises: ConfigError if neither exists, with the nearest name or neighbouring file.
    """
    text = str(path_or_name)
    path = FilePath(text)
    try:
        if not text.strip():
            raise ConfigError(f"{show(text)}: no file name; expected a YAML file or a packaged experiment")
        if path.is_file() or (path.exists() and not path.is_dir()):
            return path
        packaged = packaged_experiments()
        if text in packaged:
            return packaged[text]
        if path.is_dir():
            raise ConfigError(f"{text}: is a folder; expected a YAML file")
        near = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{show(text)}: no such file or experiment ({_reason(error)})") from None
    hint = did_you_mean(text, near) or did_you_mean(text.removesuffix(".yaml"), packaged)
    raise ConfigError(f"{text}: no such file; expected a YAML file or one of {', '.join(packaged)}{hint}")


def read_tree(path: FilePath) -> Node:
    """The YAML tree of a file of at most 1 MiB.

    Raises: ConfigError if it cannot be read, is too large, is not UTF-8 text, is empty or is not valid YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}; expected a readable YAML file") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; expected a small YAML file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not a text file; expected YAML in UTF-8") from None
    root = parse_yaml(text, str(path))
    if root is None:
        raise ConfigError(f"{path}: the file is empty; expected keys such as name, env, agents, stop")
    return root


def _node(data: Any) -> Node:
    if isinstance(data, Mapping):
        return Node({str(key): _node(value) for key, value in data.items()}, 0, "")
    if isinstance(data, (list, tuple)):
        return Node([_node(value) for value in data], 0, "")
    return Node(data, 0, "")


def _override(root: Node, text: str, only: tuple[str, ...] | None) -> Node:
    key, equals, value = text.partition("=")
    key = key.strip()
    path: Path = tuple(key.split("."))
    if not equals or not all(re.fullmatch(r"[^\s=]+", str(part)) for part in path):
        raise ConfigError(f"{COMMAND_LINE}: override {show(text)} is incomplete; expected key.path=value")
    if only is not None and path[0] not in only and key not in only:
        hint = did_you_mean(key if "." in key else str(path[0]), only)
        raise ConfigError(f"{COMMAND_LINE}: {key}: cannot change here; expected a key of {', '.join(only)}{hint}")
    try:
        node = parse_yaml(value, COMMAND_LINE, first_line=0) or Node(None, 0, COMMAND_LINE)
    except ConfigError as error:
        raise ConfigError(str(error).replace(COMMAND_LINE, f"{COMMAND_LINE}: {key}", 1)) from None
    twin = _EXCLUSIVE.get(str(path[0]))
    if twin and isinstance(root.value, dict) and twin in root.value and root.value[twin].origin != COMMAND_LINE:
        entries = {name: entry for name, entry in root.value.items() if name != twin}
        root = dataclasses.replace(root, value=entries)
    return _replaced(root, path, node, key)


def _replaced(root: Node, path: Path, new: Node, key: str) -> Node:
    """A copy of the tree with `new` at `path`; mappings on the way are made, scalars on the way are refused."""
    if not path:
        return new
    head, rest = str(path[0]), path[1:]
    if isinstance(root.value, list):
        if root.child(head) is None:
            raise ConfigError(f"{COMMAND_LINE}: {key}: no index '{head}'; expected 0 to {len(root.value) - 1}")
        items = list(root.value)
        items[int(head)] = _replaced(items[int(head)], rest, new, key)
        return dataclasses.replace(root, value=items)
    if root.value is not None and not isinstance(root.value, dict):
        raise ConfigError(f"{COMMAND_LINE}: {key}: {show(root.value)} has no keys; expected no '.{head}' after it")
    entries = dict(root.value or {})
    entries[head] = _replaced(entries.get(head, Node(None, 0, COMMAND_LINE)), rest, new, key)
    return dataclasses.replace(root, value=entries)


def _check_name(registry: Registry, name: str, source: Source, path: Path) -> None:
    if ":" in name:
        return
    known = registry.names()
    if name not in known:
        raise source.error(path, f"unknown {registry.kind} '{name}'; {expected_one(name, known)}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this project's reader, which differs from YAML 1.1, would take for something else."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        plain = parse_scalar(text) == text
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)
