"""Options of PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from marl.agents.networks.config import ActorCriticConfig

Preset = Literal["cpu", "paper"]

# What a preset changes; a key that the user gives wins. `paper` follows iPLAN's released IPPO (highway): fifteen epochs
# of one minibatch, Huber and clipped values, and its LayerNorm-ReLU-GRU trunk.
_PAPER: dict[str, Any] = {
    "epochs": 15,
    "minibatches": 1,
    "value_loss": "huber",
    "value_clip": 0.2,
    "value_normalisation": "none",
    "max_grad_norm": 10.0,
    "adam_eps": 1e-5,
    "recurrent": True,
    "layer_norm": True,
    "activation": "relu",
}


class PPOConfig(ActorCriticConfig):
    """Options of PPO with one critic an agent (IPPO); those of the networks are in `NetworkConfig`.

    Data. rollout: env steps between updates. epochs: passes over them. minibatches: parts of a pass; rows for a
    feed-forward network, whole sequences (lanes) for a recurrent one.
    Targets. gamma, gae_lambda: discount and advantage mixing [1]. normalise_advantage: each agent's to mean 0,
    variance 1. value_normalisation: `running` lets the critic predict in units of the returns' running mean and
    deviation. correction: `vtrace` for data that are some updates old: V-trace instead of GAE, and ratios to the
    parameters at the start of the update instead of those that acted.
    Loss. clip: largest rewarded change of the probability ratio. value_clip: same for values, None = off.
    value_loss, huber_delta: squared error or Huber's. value_coef, entropy_coef: weights.
    Optimiser. Adam: learning_rate, adam_eps; max_grad_norm: limit of each agent's actor and critic gradient apart.
    learning_rate_schedule: `linear` falls to 0 at schedule_env_steps.
    critic_recurrent: the critic of a recurrent policy has a GRU too, which starts from zeros at the first row of every
    rollout.
    preset: `cpu`, the defaults shown here; `paper`: 15 epochs of one minibatch, Huber loss with delta 10, value
    clip 0.2, recurrent, LayerNorm, ReLU. Keys given beside it win.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: Preset = "cpu"
    rollout: int = Field(128, ge=1)
    epochs: int = Field(4, ge=1)
    minibatches: int = Field(4, ge=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    normalise_advantage: bool = True
    value_normalisation: Literal["none", "running"] = "running"
    clip: float = Field(0.2, gt=0)
    value_clip: float | None = Field(None, gt=0)
    value_loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = Field(10.0, gt=0)
    adam_eps: float = Field(1e-5, gt=0)
    max_grad_norm: float = Field(10.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        """Puts the preset's values where the user gave none."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", "cpu")
        preset = cls.presets.get(name, {}) if isinstance(name, str) else {}
        return {**preset, **given}


class MAPPOConfig(PPOConfig):
    """Options of PPO with one critic for all agents on the world's global state (MAPPO).

    team_reward: every agent learns from the sum of all rewards of its group instead of its own.
    """

    team_reward: bool = False
