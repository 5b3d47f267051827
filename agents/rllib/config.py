"""Options of RLlib's algorithms, under the names that ours have. Defaults are RLlib's own (Ray 2.60)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from marl.core.config import AgentConfig


class RllibAgentConfig(AgentConfig):
    """Options that RLlib's PPO and IMPALA share.

    learning_rate, gamma, value_coef, entropy_coef: as everywhere.  max_grad_norm: global norm of a module's gradient,
    None: no limit.  train_batch_size: env steps of an update.  hidden_sizes, activation: the layers before the last
    one, of the policy and of the value network.  shared_value: the two have these layers in common.  sharing: one
    network a role, or one an agent (`none`).
    """

    learning_rate: float = Field(5e-5, gt=0)
    gamma: float = Field(0.99, ge=0, le=1)
    value_coef: float = Field(1.0, ge=0)
    entropy_coef: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    train_batch_size: int = Field(4000, ge=1)
    hidden_sizes: tuple[PositiveInt, ...] = Field((256, 256), min_length=1)
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    shared_value: bool = False
    sharing: Literal["role", "none"] = "role"


class RllibPPOConfig(RllibAgentConfig):
    """Options of RLlib's PPO.

    epochs: passes over a batch.  minibatch_size: rows of one agent a gradient step.  gae_lambda: advantage mixing.
    clip: of the probability ratio.  value_clip: largest squared error of a value that counts, None: no limit.
    kl_coef: first weight of the penalty on how far a policy moves, 0: none; it is adapted towards kl_target.
    """

    epochs: int = Field(30, ge=1)
    minibatch_size: int = Field(128, ge=1)
    gae_lambda: float = Field(1.0, ge=0, le=1)
    clip: float = Field(0.3, gt=0)
    value_clip: float | None = Field(10.0, gt=0)
    kl_coef: float = Field(0.2, ge=0)
    kl_target: float = Field(0.01, gt=0)

    @model_validator(mode="after")
    def _check_minibatch(self) -> Self:
        if self.minibatch_size > self.train_batch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} is more than train_batch_size {self.train_batch_size}"
            )
        return self


class RllibIMPALAConfig(RllibAgentConfig):
    """Options of RLlib's IMPALA.

    rollout: env steps of one world that a runner hands over at once.  rho_clip, pg_rho_clip: limits of V-trace's
    importance weights in its values and in its policy gradient.
    """

    learning_rate: float = Field(5e-4, gt=0)
    value_coef: float = Field(0.5, ge=0)
    entropy_coef: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(40.0, gt=0)
    train_batch_size: int = Field(500, ge=1)
    shared_value: bool = True
    rollout: int = Field(50, ge=1)
    rho_clip: float = Field(1.0, gt=0)
    pg_rho_clip: float = Field(1.0, gt=0)
