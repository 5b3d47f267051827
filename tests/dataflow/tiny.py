"""The smallest learner that uses every part of the contract: it compiles in a moment."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from marl.core.config import AgentConfig
from marl.core.returns import valid
from marl.core.types import ByRole, DataNeeds, Key, LearnerState, Metrics, Replay, RoleSpec, TimeStep, Trajectory, Tree


class Tiny:
    """A linear softmax policy an agent, a policy-gradient step on the next reward; the carry counts rows."""

    Config: ClassVar[type[AgentConfig]] = AgentConfig

    def __init__(self, roles: tuple[RoleSpec, ...], rollout: int = 4, learning_rate: float = 0.1) -> None:
        self.specs = roles
        self.roles = tuple(spec.name for spec in roles)
        self.needs = DataNeeds(rollout=rollout)
        self.learning_rate = learning_rate

    def initial_carry(self) -> Tree:
        return jnp.zeros((), jnp.int32)

    def _logits(self, params: Tree, obs: ByRole) -> ByRole:
        return {s.name: jnp.einsum("...nd,nda->...na", obs[s.name], params[s.name]) for s in self.specs}

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        logits = self._logits(params, step.obs)
        for role, mask in (step.action_mask or {}).items():
            logits[role] = jnp.where(mask, logits[role], -1e9)
        actions = {}
        for number, spec in enumerate(self.specs):
            drawn = jax.random.categorical(jax.random.fold_in(key, number), logits[spec.name])
            actions[spec.name] = (drawn if explore else logits[spec.name].argmax(-1)).astype(jnp.int32)
        return carry + 1, actions, {"rows": carry}

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        params = {}
        for number, s in enumerate(self.specs):
            shape = (s.size, s.observation_space.shape[0], s.action_space.n)  # type: ignore[union-attr]
            params[s.name] = 0.1 * jax.random.normal(jax.random.fold_in(key, number), shape)
        zero = jnp.zeros((), jnp.float32)
        return LearnerState(params, (), {"seen": zero}, (), zero, jnp.zeros((), jnp.int32))

    def publish(self, state: LearnerState) -> Tree:
        return state.params

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        grads, metrics = self._grads(state.params, batch)
        noise = 1.0 + 1e-3 * jax.random.normal(key)  # the update's own key must matter
        params = jax.tree.map(lambda p, g: p - self.learning_rate * noise * g, state.params, grads)
        aux = {"seen": state.aux["seen"] + batch.extras["rows"].sum()}
        return LearnerState(params, (), aux, (), state.env_steps, state.updates + 1), metrics

    def _grads(self, params: Tree, batch: Trajectory) -> tuple[Tree, Metrics]:
        def loss(params: Tree) -> Any:
            logits = self._logits(params, {r: o[:-1] for r, o in batch.step.obs.items()})
            total = jnp.zeros((), jnp.float32)
            for role in self.roles:
                chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[role]), batch.action[role][..., None], -1)[
                    ..., 0
                ]
                total -= jnp.mean(jnp.where(valid(batch.step, role), chosen * batch.step.reward[role][1:], 0.0))
            return total

        value, grads = jax.value_and_grad(loss)(params)
        return grads, {"loss/policy": value}


class TinyGradient(Tiny):
    """The same with gradients that may come from elsewhere."""

    def __init__(self, roles: tuple[RoleSpec, ...]) -> None:
        super().__init__(roles)
        self.needs = DataNeeds(rollout=4, gradients=True)

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        return self._grads(params, batch)

    def apply(self, state: LearnerState, grads: Tree) -> LearnerState:
        params = jax.tree.map(lambda p, g: p - self.learning_rate * g, state.params, grads)
        return LearnerState(params, (), state.aux, (), state.env_steps, state.updates + 1)

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        grads, metrics = self.gradient(self.publish(state), batch, key)
        return self.apply(state, grads), metrics


class TinyReplay(Tiny):
    """The same from replay, with the mean reward as priority."""

    def __init__(self, roles: tuple[RoleSpec, ...], alpha: float | None = None) -> None:
        super().__init__(roles)
        replay = Replay(capacity=16, batch=4, min_size=8, updates_per_add=2, alpha=alpha)
        self.needs = DataNeeds(rollout=4, replay=replay)

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        assert batch.weight is not None
        new, metrics = super().update(state, batch, key)
        priority = sum(batch.step.reward[role].mean((0, 2)) for role in self.roles) * batch.weight
        return new, metrics | ({"priority": priority} if self.needs.replay.alpha is not None else {})
