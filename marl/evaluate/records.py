"""The record of evaluated episodes: `evaluations.json` of a run, and the same file committed under docs/results/.

    {"format": "marl-evaluations", "version": 1, "evaluations": [
      {"label": "quickstart", "algorithm": "ppo", "env": {"id": "heterogeneous_highway_v0", "scenario": "mild"},
       "seed": 0, "env_steps": 500000, "kind": "test", "greedy": false, "commit": "1a2b3c4", "config_hash": "5e6f...",
       "time": 1790000000.0,
       "episodes": {"seed_index": [0, 1], "returns": {"vehicle": [[50.1, 60.2], [48.0, 61.5]]}, "length": [90, 90],
                    "agent_steps": [180, 175], "info": {"survival_s": [90.0, 87.5]}}}]}

Episodes are columns, entry i of each being the i-th episode, so that names are written once; numbers keep six digits. A
list of episode objects (`[{"seed_index": 0, "returns": {"vehicle": [50.1, 60.2]}, ...}]`) is read as well: the
form to write by hand or from another program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from marl.core.config import FrozenConfig
from marl.core.errors import UserError
from marl.io.files import dumps, read_json, write_failure, write_text_atomic

FORMAT = "marl-evaluations"
VERSION = 1
MAX_BYTES = 256 << 20

Count = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=200, strict=True)]
Model = TypeVar("Model", bound=FrozenConfig)


class Episodes(FrozenConfig):
    """Columns over E episodes.

    seed_index: which held-out episode of its stream, `[E]`, no index twice.  returns: by role, `[E][n_role]`,
    undiscounted. length: env steps `[E]`.  agent_steps: `[E]`.  info: figures of the world by name, `[E]`, summed over
    the episode.
    """

    seed_index: tuple[Count, ...] = Field(min_length=1)
    returns: dict[Name, tuple[tuple[Number, ...], ...]] = Field(min_length=1)
    length: tuple[Count, ...]
    agent_steps: tuple[Count, ...]
    info: dict[Name, tuple[Number, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _columns_fit(self) -> Episodes:
        n = len(self.seed_index)
        columns: dict[str, Sequence[object]] = {"length": self.length, "agent_steps": self.agent_steps}
        columns |= {f"returns.{role}": rows for role, rows in self.returns.items()}
        columns |= {f"info.{name}": values for name, values in self.info.items()}
        for name, values in columns.items():
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for {n} episodes")
        for role, rows in self.returns.items():
            if len({len(row) for row in rows}) != 1 or not rows[0]:
                raise ValueError(f"returns.{role} must give every episode the same number of agents, at least one")
        if len(set(self.seed_index)) != n:
            raise ValueError("seed_index names an episode twice")
        return self

    @classmethod
    def from_arrays(
        cls,
        returns: Mapping[str, Any],
        length: Any,
        agent_steps: Any,
        info: Mapping[str, Any] | None = None,
        *,
        first: int = 0,
    ) -> Episodes:
        """From the leaves of a batch of episode results.

        returns: by role, `[E, n_role]`.  length, agent_steps: `[E]`.  info: by name, `[E]`.  first: index of the first
        episode in its held-out stream.
        Raises: UserError if a number is not finite or the shapes do not fit together.
        """
        return _validated(
            cls,
            {
                "seed_index": range(first, first + len(length)),
                "returns": {role: _rounded(values) for role, values in returns.items()},
                "length": np.asarray(length).tolist(),
                "agent_steps": np.asarray(agent_steps).tolist(),
                "info": {name: _rounded(values) for name, values in (info or {}).items()},
            },
            "episodes",
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names `column` knows: `return/<role>`, `length`, `agent_steps`, and the world's own."""
        return (*(f"return/{role}" for role in self.returns), "length", "agent_steps", *self.info)

    def column(self, metric: str) -> NDArray[np.float64]:
        """One number an episode, `[E]`; `return/<role>` is the mean over the role's agents. Raises: KeyError."""
        if metric.startswith("return/") and metric not in self.info:
            returns = np.asarray(self.returns[metric.removeprefix("return/")], np.float64)
            return np.asarray(returns.mean(axis=1), np.float64)
        if metric in ("length", "agent_steps"):
            return np.asarray(getattr(self, metric), np.float64)
        return np.asarray(self.info[metric], np.float64)


class Evaluation(FrozenConfig):
    """What one policy scored: who it is, where it was trained to, how it acted, and its episodes.

    label: name of the method in tables (the experiment's name).  algorithm: `ppo`, `scripted/always_idle`, ... .
    env: `id` and options of the world.  seed: training seed; 0 for a policy that was not trained.
    env_steps: age of the checkpoint; 0 for a policy that was not trained.  kind: `validation` episodes chose
    checkpoints, `test` episodes never chose anything.  greedy: the most likely action, else actions are sampled.
    commit, config_hash: what produced it.  time: seconds since 1970.
    """

    label: Name
    algorithm: Name
    env: dict[Name, Any]
    seed: Annotated[int, Field(strict=True)]
    env_steps: Count
    kind: Literal["validation", "test"]
    greedy: Annotated[bool, Field(strict=True)]
    episodes: Episodes
    commit: str = ""
    config_hash: str = ""
    time: Number = 0.0

    @field_validator("env")
    @classmethod
    def _names_the_world(cls, env: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(env.get("id"), str):
            raise ValueError("must hold the world's `id`")
        return env

    @field_validator("episodes", mode="before")
    @classmethod
    def _columns(cls, episodes: object) -> object:
        return _columns_of(episodes) if isinstance(episodes, list) else episodes

    @property
    def identity(self) -> tuple[str, str, int, int, str, bool]:
        """Two records that agree in this say the same thing, and the later one counts."""
        return (self.label, dumps(self.env), self.seed, self.env_steps, self.kind, self.greedy)


def read_evaluations(path: Path) -> list[Evaluation]:
    """All evaluations of a file.

    Raises: UserError naming the file and the entry if it is missing, too large, not JSON, of another format or
    incomplete.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB: this is no evaluation file")
    try:
        data = read_json(path)
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: nested too deeply") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{path} is not an evaluation file: it must be an object with "format": "{FORMAT}"')
    if data.get("version") != VERSION:
        raise UserError(f"{path} has format version {data.get('version')!r}, this program reads version {VERSION}")
    entries = data.get("evaluations")
    if not isinstance(entries, list):
        raise UserError(f'{path}: "evaluations" must be a list')
    return [_validated(Evaluation, entry, f"{path}: evaluations[{i}]") for i, entry in enumerate(entries)]


def write_evaluations(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Replace the file whole, one evaluation a line. Raises: RunError or UserError if it cannot be written."""
    lines = ",\n".join(dumps(e.model_dump(mode="json")) for e in evaluations)
    write_text_atomic(path, f'{{"format": "{FORMAT}", "version": {VERSION}, "evaluations": [\n{lines}\n]}}\n')


def merge(*groups: Iterable[Evaluation]) -> list[Evaluation]:
    """One list in order of first appearance; of records that say the same thing the last one is kept."""
    kept: dict[object, Evaluation] = {}
    for group in groups:
        for evaluation in group:
            kept[evaluation.identity] = evaluation
    return list(kept.values())


def append_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Add one evaluation to a file; a record that said the same is replaced. The file and its folder (that of a seed,
    say) are made if they are not there.

    Raises: as `read_evaluations` and `write_evaluations`.
    """
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_failure(path, error) from error
    write_evaluations(path, merge(read_evaluations(path) if path.exists() else (), [evaluation]))


def _rounded(values: Any) -> Any:
    """Six significant digits, about what a float32 knows; NaN and infinities stay, to be refused by the model."""
    array = np.asarray(values, np.float64)
    flat = [float(f"{x:.6g}") for x in array.ravel()]
    return np.asarray(flat, np.float64).reshape(array.shape).tolist()


def _columns_of(rows: list[Any]) -> dict[str, Any]:
    """A list of episode objects as columns. Raises: ValueError if the objects do not share their names."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each episode must be an object")
    shapes = {(tuple(sorted(row)), *(_names(row.get(key)) for key in ("returns", "info"))) for row in rows}
    if len(shapes) > 1:
        raise ValueError("all episodes must have the same entries, roles and info names")
    columns: dict[str, Any] = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows]
        named = key in ("returns", "info") and isinstance(values[0], dict)
        columns[key] = {name: [value[name] for value in values] for name in values[0]} if named else values
    return columns


def _names(value: object) -> tuple[str, ...]:
    return tuple(sorted(map(str, value))) if isinstance(value, dict) else ()


def _validated(model: type[Model], data: object, where: str) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        given = first.get("input")
        shown = f" (given: {given!r:.60})" if isinstance(given, str | int | float | None) else ""
        more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"{where}{'.' if place else ''}{place}: {first['msg']}{shown}{more}") from None
