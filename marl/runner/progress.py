"""What a run has done so far, in exact Python integers; it travels in the checkpoint header."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """Totals of a run. Lists are by seed, in the run's seed order.

    evaluations, checkpoints: how many multiples of `every` have been passed.  wall_s: seconds, all sessions.
    best_return, best_env_steps: the highest mean validation return and where.  best_checkpoint: the name of the
    checkpoint of the best state that was saved.  metrics_offset: bytes of metrics.jsonl that this state covers.
    """

    env_steps: list[int]
    agent_steps: list[int]
    updates: list[int]
    episodes: list[int]
    dispatches: int = 0
    evaluations: int = 0
    checkpoints: int = 0
    wall_s: float = 0.0
    best_return: list[float | None] = dataclasses.field(default_factory=list)
    best_env_steps: list[int] = dataclasses.field(default_factory=list)
    best_checkpoint: list[str | None] = dataclasses.field(default_factory=list)
    metrics_offset: int = 0

    @classmethod
    def start(cls, seeds: int) -> Progress:
        return cls(
            env_steps=[0] * seeds,
            agent_steps=[0] * seeds,
            updates=[0] * seeds,
            episodes=[0] * seeds,
            best_return=[None] * seeds,
            best_env_steps=[0] * seeds,
            best_checkpoint=[None] * seeds,
        )

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> Progress:
        return cls(**header)

    def to_header(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
