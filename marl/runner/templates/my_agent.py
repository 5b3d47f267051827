"""A small learner to change into your own: a linear policy and a linear value, learned by advantage actor-critic."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from marl.core import returns
from marl.core.config import AgentConfig
from marl.core.distributions import Categorical
from marl.core.errors import ConfigError
from marl.core.spaces import Box, Discrete
from marl.core.types import Array, ByRole, DataNeeds, Key, LearnerState, Metrics, RoleSpec, TimeStep, Trajectory, Tree


class MyAgentConfig(AgentConfig):
    """Options in YAML. rollout: rows between updates.  learning_rate: Adam's.  gamma: discount.  entropy: weight of the
    policy's entropy [nat]."""

    rollout: int = Field(32, ge=1)
    learning_rate: float = Field(0.01, gt=0)
    gamma: float = Field(0.99, ge=0, le=1)
    entropy: float = Field(0.01, ge=0)


class MyAgent:
    """All agents of a role share one policy.

    Everything but `update` is written for one copy of a world: arrays are `[agents, ...]`. `update` gets a batch:
    `[rows, copies, agents, ...]`. Nothing here knows how often or where it is called.

    Raises: ConfigError for roles that it cannot play.
    """

    Config: ClassVar[type[AgentConfig]] = MyAgentConfig

    def __init__(self, config: MyAgentConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        for spec in roles:
            if not isinstance(spec.observation_space, Box) or not isinstance(spec.action_space, Discrete):
                raise ConfigError(f"role '{spec.name}': expected Box observations and Discrete actions")
        self.config, self.specs, self.axis = config, roles, axis
        self.optimiser = optax.adam(config.learning_rate)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def needs(self) -> DataNeeds:
        """What `update` wants to be given."""
        return DataNeeds(rollout=self.config.rollout)

    def initial_carry(self) -> Tree:
        """What the policy remembers from row to row: nothing."""
        return ()

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """Actions for one copy; the last of the three is what `update` shall find beside them in `batch.extras`."""
        actions = {}
        for number, role in enumerate(self.roles):
            policy = self._policy(params, step, role, features(step.obs[role], lead=1))
            actions[role] = policy.sample(jax.random.fold_in(key, number)) if explore else policy.mode()
        return carry, actions, ()

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        params = {}
        for spec in self.specs:
            assert isinstance(spec.observation_space, Box)
            assert isinstance(spec.action_space, Discrete)
            size = 1
            for width in spec.observation_space.shape:
                size *= width
            params[spec.name] = {
                "actor": jnp.zeros((size + 1, spec.action_space.n), jnp.float32),  # at first, all actions alike
                "critic": jnp.zeros((size + 1, 1), jnp.float32),
            }
        return LearnerState(
            params=params,
            opt=self.optimiser.init(params),
            aux=(),
            hyper=(),
            env_steps=jnp.zeros((), jnp.float32),
            updates=jnp.zeros((), jnp.int32),
        )

    def publish(self, state: LearnerState) -> Tree:
        """What `act` needs of a learner."""
        return state.params

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        """One step of Adam. batch: rows 0 to T of every copy, and the T actions between them."""
        grads, metrics = jax.grad(self._loss, has_aux=True)(state.params, batch)
        if self.axis is not None:  # the batch is split over several devices
            grads, metrics = jax.lax.pmean((grads, metrics), self.axis)
        changes, opt = self.optimiser.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, changes)
        return state.replace(params=params, opt=opt, updates=state.updates + 1), metrics  # type: ignore[attr-defined]

    def _loss(self, params: Tree, batch: Trajectory) -> tuple[Array, Metrics]:
        step = batch.step
        metrics: Metrics = {}
        total = jnp.zeros((), jnp.float32)
        for role in self.roles:
            x = features(step.obs[role], lead=3)
            value = (x @ params[role]["critic"])[..., 0]
            # The conventions of time (ends, cuts, turns) are kept in one place; see marl/core/returns.py.
            advantage, target = returns.advantages(step, role, step.reward[role][1:], value, self.config.gamma, 1.0)
            counts = returns.valid(step, role).astype(jnp.float32)
            policy = self._policy(params, jax.tree.map(lambda leaf: leaf[:-1], step), role, x[:-1])

            def mean(each: Array, counts: Array = counts) -> Array:
                return (each * counts).sum() / jnp.maximum(counts.sum(), 1.0)

            losses = {
                f"loss/policy_{role}": -mean(policy.log_prob(batch.action[role]) * advantage),
                f"loss/value_{role}": mean(jnp.square(value[:-1] - target)),
            }
            metrics |= losses | {f"policy/entropy_{role}": mean(policy.entropy())}
            total += sum(losses.values(), jnp.zeros(())) - self.config.entropy * metrics[f"policy/entropy_{role}"]
        return total, metrics

    def _policy(self, params: Tree, step: TimeStep, role: str, x: Array) -> Categorical:
        mask = step.action_mask.get(role) if step.action_mask is not None else None
        return Categorical.masked(x @ params[role]["actor"], mask)


def features(obs: Array, lead: int) -> Array:
    """Observations as one row of numbers an agent, with a 1 at the end. lead: axes up to and with that of agents."""
    flat = obs.reshape(*obs.shape[:lead], -1).astype(jnp.float32)
    return jnp.concatenate([flat, jnp.ones((*flat.shape[:-1], 1), jnp.float32)], axis=-1)
