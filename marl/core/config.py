"""The base of every configuration object: frozen, and strict about names and types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenConfig(BaseModel):
    """A pydantic model that refuses unknown keys and cannot be changed after it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EnvConfig(FrozenConfig):
    """Options of a world (its class attribute `Config`); field names are the YAML keys under `env:`."""


class AgentConfig(FrozenConfig):
    """Options of an algorithm or a policy (its class attribute `Config`); field names are the YAML keys under `agents:
    <role>:`."""
