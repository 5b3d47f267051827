"""The gradient bandit, named `tiny_marl.agents:GradientBandit` in an experiment (Sutton & Barto, section 2.8)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from marl.core import returns
from marl.core.config import AgentConfig
from marl.core.distributions import Categorical
from marl.core.types import ByRole, DataNeeds, Key, LearnerState, Metrics, RoleSpec, TimeStep, Trajectory, Tree


class GradientBanditConfig(AgentConfig):
    """learning_rate: of the preferences [1].  rollout: rows between updates."""

    learning_rate: float = 2.0
    rollout: int = 8


class GradientBandit:
    """Preferences over the actions of each agent, moved along (reward - mean reward) * d log p / d preference."""

    Config: ClassVar[type[AgentConfig]] = GradientBanditConfig

    def __init__(self, config: GradientBanditConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        self.config = config
        self.specs = roles
        self.axis = axis

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=self.config.rollout)

    def initial_carry(self) -> Tree:
        return ()

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        actions = {}
        for index, role in enumerate(self.roles):
            policy = Categorical(params[role])
            actions[role] = policy.sample(jax.random.fold_in(key, index)) if explore else policy.mode()
        return carry, actions, ()

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        return LearnerState(
            params={s.name: jnp.zeros((s.size, s.action_space.n), jnp.float32) for s in self.specs},  # type: ignore[union-attr]
            opt=(),
            aux=(),
            hyper=(),
            env_steps=jnp.zeros((), jnp.float32),
            updates=jnp.zeros((), jnp.int32),
        )

    def publish(self, state: LearnerState) -> Tree:
        return state.params

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        moved, metrics = {}, {}
        for role, preferences in state.params.items():
            counts = returns.valid(batch.step, role).astype(jnp.float32)
            total = jnp.maximum(counts.sum((0, 1)), 1.0)
            reward = batch.step.reward[role][1:]
            surprise = (reward - (counts * reward).sum((0, 1)) / total) * counts
            chosen = jax.nn.one_hot(batch.action[role], preferences.shape[-1], dtype=jnp.float32)
            slope = (surprise[..., None] * (chosen - jax.nn.softmax(preferences))).sum((0, 1)) / total[:, None]
            if self.axis is not None:
                slope = jax.lax.pmean(slope, self.axis)
            moved[role] = preferences + self.config.learning_rate * slope
            metrics[f"policy/entropy_{role}"] = Categorical(moved[role]).entropy().mean()
        return state.replace(params=moved, updates=state.updates + 1), metrics  # type: ignore[attr-defined]
