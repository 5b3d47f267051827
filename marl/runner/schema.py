"""What an experiment file may say. Importing this imports neither JAX nor Ray."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from marl.core.config import FrozenConfig
from marl.runner.yaml_tree import Source

LATER_DATAFLOWS = ("local", "ray")
RESERVED_NAMES = (".", "..", "latest")
MAX_STEPS = 10**15
_UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(sec|min|s|m|h|d)\s*")


def valid_name(name: str) -> str:
    """The name itself, if it can be a folder inside the runs folder and nothing else.

    Raises: ValueError otherwise.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name in RESERVED_NAMES:
        raise ValueError("expected 1 to 64 letters, digits or . _ - (and not '.', '..' or 'latest')")
    return name


def parse_duration(value: object) -> object:
    """Seconds from `90`, `90s`, `10min`, `2h`, `1h 30min` or `1d`.

    Raises: ValueError for a text of another form.
    """
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 90s, 10min, 2h or 1h 30min")
    if not isinstance(value, str):
        return value
    parts = _DURATION.findall(value)
    if not parts or _DURATION.sub("", value):
        raise ValueError("expected a duration such as 90s, 10min, 2h or 1h 30min")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def format_duration(seconds: float | None) -> str | None:
    """The shortest text that `parse_duration` reads back as these seconds; None for None."""
    if seconds is None:
        return None
    for unit in ("d", "h", "min"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:f}s"


Name = Annotated[str, AfterValidator(valid_name)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Duration = Annotated[
    Annotated[float, Field(gt=0.0)] | None,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
]
Device = Literal["auto", "cpu", "gpu", "tpu"]


class OpenConfig(FrozenConfig):
    """A section whose further keys belong to a world or an algorithm, which checks them itself."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that this section itself does not know."""
        return dict(self.model_extra or {})


class EnvSection(OpenConfig):
    """`env:` a world by its registered name or `package.module:Name`, and its options."""

    id: str = Field(min_length=1, description="the name of a world")


class AgentSection(OpenConfig):
    """`agents: <role>:` who plays a role. `group` joins roles under one policy; `checkpoint` freezes it."""

    algorithm: str = Field(min_length=1, description="the name of an algorithm or a scripted policy")
    group: tuple[str, ...] | None = Field(default=None, min_length=1)
    checkpoint: str | None = Field(default=None, min_length=1)


class DevicesConfig(FrozenConfig):
    """Where the parts run. With `fused` all parts are one program, which runs where `learner` says."""

    learner: Device = "auto"
    actors: Device = "auto"
    inference: Device = "auto"


class FusedConfig(FrozenConfig):
    """World, policies and learners in one compiled program, data-parallel over `data_parallel` local devices."""

    kind: Literal["fused"] = "fused"
    num_envs: int = Field(default=64, ge=1, le=2**20)
    updates_per_dispatch: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    devices: DevicesConfig = DevicesConfig()
    data_parallel: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = 1

    @field_validator("kind", mode="before")
    @classmethod
    def _known(cls, kind: object) -> object:
        if kind in LATER_DATAFLOWS:
            raise PydanticCustomError("unavailable", "not available yet in this version; expected 'fused'")
        return kind

    @model_validator(mode="after")
    def _even(self) -> FusedConfig:
        if self.data_parallel != "auto" and self.num_envs % self.data_parallel:
            raise ValueError(f"num_envs {self.num_envs} is no multiple of data_parallel {self.data_parallel}")
        return self


class StopConfig(FrozenConfig):
    """The run ends when any one rule is met. `wall_time` is in seconds, `return_` (key `return`) the mean return."""

    model_config = ConfigDict(populate_by_name=True)

    env_steps: Steps | None = None
    wall_time: Duration = None
    return_: float | None = Field(default=None, alias="return")

    @model_validator(mode="after")
    def _some(self) -> StopConfig:
        if self.env_steps is None and self.wall_time is None and self.return_ is None:
            raise ValueError("no stop rule; expected at least one of env_steps, wall_time, return")
        return self


class EvaluateConfig(FrozenConfig):
    """Evaluation during training: `every` env steps (None: at the end only) on `episodes` fresh episodes."""

    every: Steps | None = None
    episodes: int = Field(default=64, ge=1, le=1_000_000)
    greedy: bool = False
    video: bool = True


class CheckpointConfig(FrozenConfig):
    """`every` env steps (None: chosen from the length of the run); the newest `keep` stay on disk."""

    every: Steps | None = None
    keep: int = Field(default=3, ge=1, le=1000)


class ExperimentConfig(FrozenConfig):
    """One run, or one group of seeds side by side."""

    name: Name = Field(description="the name of the experiment")
    seed: Seed | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1024)] | None = None
    env: EnvSection = Field(description="a world, for example {id: cartpole_v0}")
    agents: dict[str, AgentSection] = Field(
        min_length=1, description="a policy for each role, for example {all: {algorithm: ippo}}"
    )
    dataflow: FusedConfig = FusedConfig()
    stop: StopConfig = Field(description="when to stop, for example {env_steps: 1_000_000}")
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runs_dir: str = Field(default="runs", min_length=1)
    compilation_cache: bool = True
    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="before")
    @classmethod
    def _default_seed(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("seed") is None and given.get("seeds") is None:
            return {**given, "seed": 0}
        return given

    @field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if seeds is not None and info.data.get("seed") is not None:
            raise ValueError("both seed and seeds are given; expected one of them")
        twice = sorted({seed for seed in seeds or () if (seeds or ()).count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} is given twice; expected different seeds")
        return seeds

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of this run, in order; (0,) if the file names none."""
        return self.seeds if self.seeds is not None else (self.seed or 0,)

    @property
    def source(self) -> Source:
        """Where each key was written; empty for a config made in Python."""
        return self._source
