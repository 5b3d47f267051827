"""Options that algorithms with an actor and a critic have in common."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from marl.core.config import AgentConfig

Activation = Literal["tanh", "relu", "silu", "gelu"]
Sides = PositiveInt | tuple[PositiveInt, PositiveInt]  # of a square, or (rows, columns)


class NetworkConfig(AgentConfig):
    """Options of the networks of actors and critics.

    hidden_sizes, activation, layer_norm: torso. recurrent, gru_size: a GRU after it. critic_recurrent: the critic of a
    recurrent policy has a GRU too.
    last_action, agent_id: one-hot inputs beside the observation. sharing: one network an agent, or one a role.
    squash: tanh instead of clipping of bounded Box actions.
    encoder: which arrays of an observation are pictures that convolutions read before the torso: those that look like
    one (`auto`: three axes, two of them at least 16 long, or two axes of bytes), every Box of two or three axes
    (`cnn`), or none (`mlp`). Everything else goes into the torso as it is.
    cnn_channels, cnn_kernels, cnn_strides: the convolutions, by layer (kernels default to 3, strides to 1);
    cnn_features: width of the linear layer after them. None: chosen by the size of the picture.
    """

    hidden_sizes: tuple[int, ...] = Field((64, 64), min_length=1)
    activation: Activation = "tanh"
    layer_norm: bool = False
    recurrent: bool = False
    gru_size: int = Field(64, ge=1)
    critic_recurrent: bool = True
    last_action: bool = True
    agent_id: bool = True
    sharing: Literal["none", "role"] = "none"
    squash: bool = False
    encoder: Literal["auto", "cnn", "mlp"] = "auto"
    cnn_channels: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    cnn_kernels: tuple[Sides, ...] | None = None
    cnn_strides: tuple[Sides, ...] | None = None
    cnn_features: PositiveInt | None = None

    @model_validator(mode="after")
    def _check_convolutions(self) -> Self:
        layers = 0 if self.cnn_channels is None else len(self.cnn_channels)
        for name, given in (("cnn_kernels", self.cnn_kernels), ("cnn_strides", self.cnn_strides)):
            if given is not None and len(given) != layers:
                raise ValueError(f"{name} has {len(given)} layers, but cnn_channels has {layers}")
        return self


class ActorCriticConfig(NetworkConfig):
    """Options of learning with an actor and a critic.

    gamma: discount. value_coef, entropy_coef: weights of the value loss and the entropy bonus. learning_rate_schedule:
    `linear` falls to 0 at schedule_env_steps. correction: `vtrace` weighs what older parameters did by how likely the
    present ones would do it.
    """

    gamma: float = Field(0.99, ge=0, le=1)
    value_coef: float = Field(0.5, ge=0)
    entropy_coef: float = Field(0.01, ge=0)
    learning_rate: float = Field(5e-4, gt=0)
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    schedule_env_steps: int | None = Field(None, ge=1)
    correction: Literal["none", "vtrace"] = "none"

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.learning_rate_schedule == "linear" and self.schedule_env_steps is None:
            raise ValueError(
                "learning_rate_schedule: linear needs schedule_env_steps, the env steps at which it reaches 0"
            )
        return self
