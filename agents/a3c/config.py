"""Options of A3C."""

from __future__ import annotations

from pydantic import Field

from marl.agents.networks.config import ActorCriticConfig


class A3CConfig(ActorCriticConfig):
    """Options of A3C (Mnih et al. 2016); those of the networks are in `NetworkConfig`.

    rollout: t_max, env steps of a segment. gamma: discount of the returns to the segment's end. value_coef: weight of
    (R - V)^2 / 2. entropy_coef: weight of the entropy bonus. correction: `vtrace` where the trajectories themselves are
    stale (a gradient that arrives late needs none).
    Optimiser. RMSProp that all workers share: learning_rate, rmsprop_decay, rmsprop_eps (inside the root, the paper's
    0.1; smaller ones make larger steps). max_grad_norm: limit of an arriving gradient, None = off.
    learning_rate_schedule: `linear` falls to 0 at schedule_env_steps.
    critic_recurrent: the critic of a recurrent policy has a GRU too; actors carry its state.
    """

    rollout: int = Field(20, ge=1)
    value_coef: float = Field(1.0, ge=0)
    learning_rate: float = Field(7e-4, gt=0)
    rmsprop_decay: float = Field(0.99, ge=0, lt=1)
    rmsprop_eps: float = Field(0.1, gt=0)
    max_grad_norm: float | None = Field(40.0, gt=0)
