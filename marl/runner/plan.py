"""What a config means: the world, who plays which role, who learns. Importing this imports JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from marl import agents, envs
from marl.core.algorithm import Policy
from marl.core.config import AgentConfig
from marl.core.env import AnyEnvironment
from marl.core.errors import ConfigError, MarlError, UserError, did_you_mean
from marl.core.evolution import evolves
from marl.core.host import HostFactory, HostWorld
from marl.core.host_rows import HostWorlds
from marl.core.registry import Registry
from marl.core.types import RoleSpec
from marl.runner.explain import explain, validate
from marl.runner.schema import HOST_WORLDS, AgentSection, EnvSection, ExperimentConfig
from marl.runner.yaml_tree import Path as KeyPath

ALL = "all"
WORLD_FACTORY = "marl.interop.worlds:make_world"  # makes a copy of a world in Python, in any process


class MisfitError(ConfigError):
    """A policy that cannot play the roles it was given in this world."""


@dataclasses.dataclass(frozen=True)
class Cast:
    """One policy of a plan: its class, its options, the roles it plays."""

    make: Callable[..., Any]
    config: AgentConfig
    roles: tuple[RoleSpec, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts that a config names. Policies are named by their keys under `agents`, in that order.

    config: the config with every option of the world and the policies written out.  env: the world; one in Python has
    `host` beside it, with which copies are made.  learners: the policies that learn.  frozen: the policy folders that
    `checkpoint` names.
    """

    config: ExperimentConfig
    env: AnyEnvironment | HostWorld
    host: HostWorlds | None
    policies: dict[str, Policy]
    learners: tuple[str, ...]
    frozen: dict[str, Path]
    cast: dict[str, Cast]

    @property
    def jax_env(self) -> AnyEnvironment:
        """The world of a plan whose world is in JAX."""
        assert self.host is None
        return cast(AnyEnvironment, self.env)

    @property
    def population(self) -> str | None:
        """The policy that is searched for by populations, if one is."""
        return next((name for name in self.learners if evolves(self.policies[name])), None)

    def with_axis(self, axis: str) -> Plan:
        """The same plan with policies whose learners average over the device-mesh axis `axis`."""
        return dataclasses.replace(self, policies={name: _policy(cast, axis) for name, cast in self.cast.items()})


def make_world(config: ExperimentConfig) -> AnyEnvironment | HostWorld:
    """Import and build the world of a config alone. Raises: ConfigError as `make_plan`."""
    return _world(config)[0]


def make_plan(config: ExperimentConfig) -> Plan:
    """Import and build the world and the policies of a config.

    Raises: ConfigError with the key's place if the world or an algorithm cannot be imported or is none, an option is
    wrong, a role is unknown, missing or played twice, or a checkpoint is not there.
    """
    env, host, env_options = _world(config)
    roles = {spec.name: spec for spec in env.roles}
    casts: dict[str, Cast] = {}
    policies: dict[str, Policy] = {}
    frozen: dict[str, Path] = {}
    sections: dict[str, AgentSection] = {}
    for key, names in _assign(config, tuple(roles)).items():
        path, section = ("agents", key), config.agents[key]
        make = _resolve(agents.REGISTRY, section.algorithm, config, (*path, "algorithm"), ("initial_carry", "act"))
        options = validate(make.Config, section.options, config.source, path)
        casts[key] = Cast(make, options, tuple(roles[name] for name in names))
        try:
            policies[key] = _policy(casts[key], None)
        except UserError as error:
            raise MisfitError(str(config.source.error(path, str(error)))) from error
        if section.checkpoint is not None:
            frozen[key] = _checkpoint(section.checkpoint, policies[key], config, (*path, "checkpoint"))
        kept = section.model_dump(exclude_none=True, include={"algorithm", "group"})
        if key in frozen:
            kept["checkpoint"] = str(frozen[key])
        sections[key] = AgentSection(**kept, **options.model_dump(mode="json"))
    if host is not None and not any(policy.needs.global_state for policy in policies.values()):
        env, host = _without_state(env, host)
    learners = tuple(name for name, policy in policies.items() if _learns(policy) and name not in frozen)
    full = config.model_copy(update={"env": EnvSection(id=config.env.id, **env_options), "agents": sections})
    return Plan(full, env, host, policies, learners, frozen, casts)


def _without_state(env: Any, host: HostWorlds) -> tuple[Any, HostWorlds]:
    """The same world without the global state that nobody reads: many compute it anew, agent by agent, at every step.

    A `state` that was asked for stays.
    """
    arguments = host.factory.arguments
    if "state" in arguments["options"] or all(role.state_space is None for role in host.roles):
        return env, host
    env.close()
    options = {**arguments["options"], "state": False}
    lean, world = HostWorlds.of(HostFactory(host.factory.function, {**arguments, "options": options}))
    return world, lean


def _learns(policy: Policy) -> bool:
    return hasattr(policy, "update") or hasattr(policy, "trained_by") or evolves(policy)


def _policy(cast: Cast, axis: str | None) -> Policy:
    policy: Policy = cast.make(cast.config, roles=cast.roles, axis=axis)
    return policy


def _world(config: ExperimentConfig) -> tuple[AnyEnvironment | HostWorld, HostWorlds | None, dict[str, Any]]:
    if config.env.id.startswith(HOST_WORLDS):
        factory = HostFactory(WORLD_FACTORY, {"id": config.env.id, "options": config.env.options})
        try:
            host, world = HostWorlds.of(factory)
        except MarlError as error:
            raise config.source.error(("env",), str(error)) from error
        return world, host, config.env.options
    make = _resolve(envs.REGISTRY, config.env.id, config, ("env", "id"), ("reset", "step"))
    options = validate(make.Config, config.env.options, config.source, ("env",))
    try:
        env: AnyEnvironment = make(**config.env.options)
    except ValidationError as error:
        raise explain(error, make.Config, config.env.options, config.source, ("env",)) from None
    except UserError as error:
        raise config.source.error(("env",), str(error)) from error
    return env, None, options.model_dump(mode="json")


def _resolve(registry: Registry, name: str, config: ExperimentConfig, path: KeyPath, methods: tuple[str, ...]) -> Any:
    """The class behind a name, if it looks like what it should be."""
    try:
        found = registry.resolve(name)
    except UserError as error:
        raise config.source.error(path, str(error)) from error
    missing = [method for method in ("Config", *methods) if not hasattr(found, method)]
    if missing:
        raise config.source.error(
            path, f"'{name}' is no {registry.kind}: it has no {missing[0]}; expected a class that has"
        )
    return found


def _assign(config: ExperimentConfig, roles: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The roles that each key under `agents` plays. Every role is played exactly once."""
    source = config.source
    known = ", ".join(roles)
    played_by: dict[str, str] = {}
    assigned: dict[str, tuple[str, ...]] = {}
    for key, section in config.agents.items():
        names = section.group if section.group is not None else roles if key == ALL else (key,)
        for index, name in enumerate(names):
            path: KeyPath = ("agents", key) if section.group is None else ("agents", key, "group", index)
            if name not in roles:
                expected = f"expected {known}" if section.group else f"expected {known}, or {ALL} for every role"
                raise source.error(
                    path, f"unknown role '{name}' of {config.env.id}; {expected}{did_you_mean(name, roles)}"
                )
            if name in played_by:
                other = played_by[name]
                raise source.error(path, f"role '{name}' is already played by '{other}'; expected each role once")
            played_by[name] = key
        assigned[key] = names
    missing = [name for name in roles if name not in played_by]
    if missing:
        raise source.error(("agents",), f"no policy for role '{missing[0]}'; expected one for each of {known}")
    return assigned


def _checkpoint(text: str, policy: Policy, config: ExperimentConfig, path: KeyPath) -> Path:
    """The policy folder that a `checkpoint:` names: itself, or that of a run folder."""
    if not _learns(policy):
        raise config.source.error(path, "this policy has no parameters to load; expected no checkpoint")
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise config.source.error(path, f"'{text}' is no folder; expected a run folder or a policy/ folder in one")
    if (folder / "config.yaml").is_file():
        from marl.runner.policies import policy_folder

        try:
            return policy_folder(folder)
        except UserError as error:
            raise config.source.error(path, str(error)) from error
    return folder
