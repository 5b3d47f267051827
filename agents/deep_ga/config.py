"""Options of random search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from marl.agents.networks.config import NetworkConfig

Preset = Literal["cpu", "paper"]

CANDIDATES = 8
# Sizes of the Atari runs of Such et al. 2017.
_PAPER: dict[str, Any] = {"population": 1000, "candidates": 10, "candidate_episodes": 30, "activation": "relu"}


class RandomSearchConfig(NetworkConfig):
    """Options of random search; those of the networks are in `NetworkConfig`.

    population: individuals a generation. episodes: that each of them plays; fitness is their mean.
    candidates: how many of the best, the elite before among them, play `candidate_episodes` further episodes, which
    alone decide who is the elite.
    init: how wide the weights are drawn. `fan_in`: 1 / sqrt(inputs) (0.1 / sqrt(inputs) in the last layer); `glorot`:
    sqrt(2 / (inputs + outputs)) times the same 1 or 0.1. Biases begin at 0.
    preset: `cpu`, the defaults shown here; `paper`: 1000 individuals, 10 candidates with 30 episodes each, ReLU. Keys
    given beside it win.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: Preset = "cpu"
    population: int = Field(128, ge=2, le=1_000_000)
    episodes: int = Field(1, ge=1, le=100_000)
    candidates: int = Field(CANDIDATES, ge=2, le=100_000)
    candidate_episodes: int = Field(8, ge=1, le=100_000)
    init: Literal["fan_in", "glorot"] = "fan_in"
    last_action: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        """Puts the preset's values where the user gave none; a small population has as many candidates at most."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", "cpu")
        preset = cls.presets.get(name, {}) if isinstance(name, str) else {}
        found = {**preset, **given}
        population = found.get("population")
        if "candidates" not in given and isinstance(population, int):
            found["candidates"] = max(2, min(found.get("candidates", CANDIDATES), population))
        return found

    @model_validator(mode="after")
    def _check_candidates(self) -> RandomSearchConfig:
        if self.candidates > self.population:
            raise ValueError(f"{self.candidates} candidates of {self.population} individuals; expected at most as many")
        return self
