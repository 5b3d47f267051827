"""What an experiment file may say. Importing this imports neither JAX nor Ray."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from marl.core.config import FrozenConfig
from marl.core.errors import did_you_mean
from marl.runner.yaml_tree import Source

KINDS = ("fused", "local", "ray")  # of dataflows that run every algorithm
HOST_WORLDS = ("pettingzoo:", "gymnasium:")  # how the ids of worlds in Python begin
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
PositiveDuration = Annotated[
    Annotated[float, Field(gt=0.0, le=86_400.0)],
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
]
_DEVICE = re.compile(r"auto|(cpu|gpu|tpu)(:\d{1,4})?")


def valid_device(text: str) -> str:
    """The text itself if it can name a device. Raises: ValueError otherwise."""
    if not _DEVICE.fullmatch(text):
        near = did_you_mean(text, ("auto", "cpu", "gpu", "tpu"))
        raise ValueError(f"expected auto, cpu, gpu or tpu, or one of several as in gpu:1{near}")
    return text


Device = Annotated[str, AfterValidator(valid_device)]


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
    """Where the parts run: `auto`, `cpu`, `gpu`, or one of several, `gpu:1`. With `fused` all parts are one program,
    which runs where `learner` says. Worlds in Python (`actors`) always run on the CPU; `auto` puts inference and
    learner on JAX's default device."""

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
        if kind != "fused":
            raise ValueError(f"expected fused, local or ray{did_you_mean(str(kind), KINDS)}")
        return kind

    @model_validator(mode="after")
    def _even(self) -> FusedConfig:
        if self.data_parallel != "auto" and self.num_envs % self.data_parallel:
            raise ValueError(f"num_envs {self.num_envs} is no multiple of data_parallel {self.data_parallel}")
        return self


class WorldFaultsConfig(FrozenConfig):
    """What worlds in Python may do wrong before the run stops: a `share` of all episodes once `grace` faults are used
    up; one call may take `timeout`."""

    share: float = Field(default=0.05, ge=0.0, le=1.0)
    grace: int = Field(default=3, ge=0, le=1_000_000)
    timeout: PositiveDuration = 60.0


class DecoupledConfig(FrozenConfig):
    """What the decoupled dataflows share.

    num_envs: copies of the world, in `slots` groups that fill a rollout each.  max_staleness: how many versions old a
    rollout may be when it is learned from.  gradients: `asynchronous`: each slot is a worker whose gradient is applied
    as it arrives (A3C).  random_phase: slots begin at different rows of their first rollout, so that they are not all
    full at the same moment.  learners: devices that share every batch.
    """

    num_envs: int = Field(default=32, ge=1, le=2**16)
    slots: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    max_staleness: Annotated[int, Field(ge=0, le=1000)] = 0
    gradients: Literal["auto", "batch", "asynchronous"] = "auto"
    random_phase: bool | Literal["auto"] = "auto"
    updates_per_dispatch: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    learners: int = Field(default=1, ge=1, le=256)
    devices: DevicesConfig = DevicesConfig()
    world_faults: WorldFaultsConfig = WorldFaultsConfig()

    @property
    def processes(self) -> int:
        """Processes that share the slots."""
        return 0

    @property
    def processes_key(self) -> str:
        """The key that says how many."""
        return "workers"

    @model_validator(mode="after")
    def _even(self) -> DecoupledConfig:
        if self.slots != "auto" and self.num_envs % self.slots:
            raise ValueError(f"num_envs {self.num_envs} is no multiple of slots {self.slots}")
        if self.slots != "auto" and self.processes and self.slots % self.processes:
            raise ValueError(f"slots {self.slots} is no multiple of {self.processes_key} {self.processes}")
        return self


class LocalConfig(DecoupledConfig):
    """Actors, policy server, buffer, learner and parameter store, decoupled in one process.

    workers: processes that step worlds in Python; 0: this one.
    """

    kind: Literal["local"] = "local"
    workers: int = Field(default=0, ge=0, le=1024)

    @property
    def processes(self) -> int:
        return self.workers


class RayConfig(DecoupledConfig):
    """The same parts in processes of their own on Ray, here or on a cluster.

    actors: processes that fill rollouts.  inference: where actions are inferred: `inline` in the actors, or `served` by
    `servers` policy servers.  learner_processes: that share the learners evenly.  address: of a cluster (`auto`,
    host:port); without it the run starts one on this machine.  min_actors: with fewer left the run fails.
    actor_timeout: an actor that does not answer for so long is started anew.  cpus_per_actor, gpus_per_learner,
    gpus_per_server: Ray's resources; memory_fraction: of a GPU's memory.  object_store: MiB, of a cluster that the run
    starts.
    """

    kind: Literal["ray"] = "ray"
    actors: int = Field(default=2, ge=1, le=4096)
    inference: Literal["inline", "served"] = "inline"
    servers: int = Field(default=1, ge=1, le=256)
    learner_processes: int = Field(default=1, ge=1, le=256)
    address: str | None = Field(default=None, min_length=1)
    min_actors: int = Field(default=1, ge=1, le=4096)
    actor_timeout: PositiveDuration = 600.0
    cpus_per_actor: float = Field(default=1.0, gt=0.0, le=1024.0)
    gpus_per_learner: float = Field(default=0.0, ge=0.0, le=1024.0)
    gpus_per_server: float = Field(default=0.0, ge=0.0, le=1024.0)
    memory_fraction: float = Field(default=0.9, gt=0.0, le=1.0)
    object_store: int = Field(default=512, ge=80, le=2**20)
    dashboard: bool = False

    @property
    def processes(self) -> int:
        return self.actors

    @property
    def processes_key(self) -> str:
        return "actors"

    @model_validator(mode="after")
    def _enough(self) -> RayConfig:
        if self.min_actors > self.actors:
            raise ValueError(f"min_actors {self.min_actors} is more than actors {self.actors}")
        if self.learners % self.learner_processes:
            raise ValueError(f"learners {self.learners} is no multiple of learner_processes {self.learner_processes}")
        for part, gpus in (("actors", 0.0), ("inference", self.gpus_per_server), ("learner", self.gpus_per_learner)):
            asked = getattr(self.devices, part)
            if asked != "auto" and (gpus or asked != "cpu"):
                raise ValueError(
                    f"devices.{part} {asked} means nothing on Ray; expected auto, with gpus_per_learner or "
                    "gpus_per_server"
                )
        return self


class RllibConfig(FrozenConfig):
    """RLlib's own dataflow on this machine, for its own algorithms (`rllib/PPO`, `rllib/IMPALA`).

    num_env_runners: processes that step worlds and act; 0: this one.  envs_per_runner: copies of the world in each.
    updates_per_dispatch: how many of RLlib's iterations make a row of metrics.  world_faults: of each copy of a world
    (`timeout` in evaluations only).
    """

    kind: Literal["rllib"] = "rllib"
    num_env_runners: int = Field(default=2, ge=0, le=1024)
    envs_per_runner: int = Field(default=1, ge=1, le=4096)
    updates_per_dispatch: int = Field(default=1, ge=1, le=100_000)
    devices: DevicesConfig = DevicesConfig()
    world_faults: WorldFaultsConfig = WorldFaultsConfig()

    @property
    def num_envs(self) -> int:
        """Copies of the world in all."""
        return max(1, self.num_env_runners) * self.envs_per_runner


def _kind(given: Any) -> str:
    """Which dataflow a section means; unknown kinds are for FusedConfig to refuse."""
    kind = given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
    return str(kind) if kind in ("local", "ray", "rllib") else "fused"


def _learnt_by_rllib(sections: Any) -> bool:
    """Whether some policy is to be trained by RLlib."""
    listed = [s for s in sections.values() if isinstance(s, dict)] if isinstance(sections, dict) else []
    return any(str(s.get("algorithm")).startswith("rllib/") and not s.get("checkpoint") for s in listed)


DataflowConfig = Annotated[
    Annotated[FusedConfig, Tag("fused")]
    | Annotated[LocalConfig, Tag("local")]
    | Annotated[RayConfig, Tag("ray")]
    | Annotated[RllibConfig, Tag("rllib")],
    Discriminator(_kind),
]


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
    dataflow: DataflowConfig = FusedConfig()
    stop: StopConfig = Field(description="when to stop, for example {env_steps: 1_000_000}")
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runs_dir: str = Field(default="runs", min_length=1)
    compilation_cache: bool = True
    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Seed 0, and the dataflow that fits the world."""
        if not isinstance(given, dict):
            return given
        if given.get("seed") is None and given.get("seeds") is None:
            given = {**given, "seed": 0}
        env, dataflow = given.get("env"), given.get("dataflow", {})
        in_python = isinstance(env, dict) and str(env.get("id", "")).startswith(HOST_WORLDS)
        kind = "rllib" if _learnt_by_rllib(given.get("agents")) else "local" if in_python else "fused"
        if kind != "fused" and isinstance(dataflow, dict) and "kind" not in dataflow:
            given = {**given, "dataflow": {"kind": kind, **dataflow}}
        return given

    @model_validator(mode="after")
    def _world_fits(self) -> ExperimentConfig:
        if self.env.id.startswith(HOST_WORLDS) and self.dataflow.kind == "fused":
            raise ValueError(
                f"dataflow.kind fused needs a world in JAX, and {self.env.id} is in Python; expected local or ray"
            )
        return self

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
