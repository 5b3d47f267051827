"""A3C: a worker takes the gradient of a short segment where it was played, a server applies gradients as they arrive.

Mnih et al. 2016; with `correction: vtrace`, Espeholt et al. 2018 (IMPALA).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from marl.agents.networks.actor_critic import ActorCritic
from marl.agents.networks.groups import from_groups, step_groups, to_groups
from marl.core import returns, stats
from marl.core.algorithm import GradientUpdate
from marl.core.losses import policy_gradient, value_loss
from marl.core.types import (
    Array,
    ByRole,
    DataNeeds,
    Key,
    LearnerState,
    Metrics,
    RoleSpec,
    TimeStep,
    Trajectory,
    Tree,
)

from .config import A3CConfig
from .rmsprop import limited, norms, rmsprop

HYPER = ("learning_rate", "gamma", "entropy_coef")


class A3C(GradientUpdate, ActorCritic):
    """Advantage actor-critic with an actor and a critic a group, whose gradients may be applied late.

    The loss of a segment, for one group's networks, is the sum over its T steps and the mean over the L streams (lanes
    x agents of the group) of

        -log pi(a|s) (R - V) + value_coef (R - V)^2 / 2 - entropy_coef H(pi)

    where R sums rewards to the segment's end, or to where the episode or the agent ended before, and goes on with V of
    that row unless the agent terminated. No gradient flows through R, nor through R - V in the first term.
    """

    Config: ClassVar[type[A3CConfig]] = A3CConfig
    config: A3CConfig

    def __init__(self, config: A3CConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        super().__init__(config, roles, axis)
        self._critic_remembers = config.recurrent and config.critic_recurrent

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=self.config.rollout, gradients=True, max_staleness=self.max_staleness)

    def initial_carry(self) -> Tree:
        """By role what its agents remember: GRU states of actor and critic, last action; `()` if nothing."""
        carry = super().initial_carry()
        if self._critic_remembers:
            for name, actor in self.actors.items():
                carry[name]["critic_hidden"] = jnp.zeros((actor.spec.size, self.config.gru_size), jnp.float32)
        return carry

    def act(
        self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool
    ) -> tuple[Tree, ByRole, dict[str, Any]]:
        """Sampled or most likely actions of one lane; extras: by role `log_prob` `[n]`, and `raw` for Box actions."""
        after, actions, extras = super().act(params["actor"], carry, step, key, explore=explore)
        if self._critic_remembers:
            for name, actor in self.actors.items():
                critic, memory = self.critics[name], carry[name]
                x = actor.inputs(step.obs[name], memory.get("last_action"))
                _, hidden = step_groups(
                    critic.network, critic.groups, params["critic"][name], x, memory["critic_hidden"]
                )
                after[name]["critic_hidden"] = hidden
        return after, actions, extras

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        """A new learner. `hyper`: numbers by name (of `HYPER`) that replace the config's, for populations."""
        params = self.init_networks(key)
        numbers = {name: getattr(self.config, name) for name in HYPER} | (hyper or {})
        return LearnerState(
            params=params,
            opt=jax.tree.map(jnp.zeros_like, params),
            aux={},
            hyper={name: jnp.asarray(x, jnp.float32) for name, x in numbers.items()},
            env_steps=jnp.zeros((), jnp.float32),
            updates=jnp.zeros((), jnp.int32),
        )

    def publish(self, state: LearnerState) -> Tree:
        """All networks, as workers take gradients of both, and the numbers in their loss (`hyper`)."""
        hyper = {name: state.hyper[name] for name in ("gamma", "entropy_coef")}
        return {"actor": state.params["actor"], "critic": state.params["critic"], "hyper": hyper}

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        """Gradients of a segment's loss, in the structure of `publish` without `hyper`, before any limit."""
        del key
        networks = {"actor": params["actor"], "critic": params["critic"]}
        grads, metrics = jax.grad(self._loss, has_aux=True)(networks, params["hyper"], batch)
        grads = self._mean(grads)
        lengths = jnp.concatenate([norm.reshape(-1) for norm in norms(grads).values()])
        return grads, metrics | {"optim/grad_norm": jnp.mean(lengths)}

    def apply(self, state: LearnerState, grads: Tree) -> LearnerState:
        """One step of the shared RMSProp by gradients as they are, whatever version they were taken at."""
        if self.config.max_grad_norm is not None:
            grads = limited(grads, self.config.max_grad_norm)
        rate = state.hyper["learning_rate"] * self.schedule(state.env_steps)
        decay, eps = self.config.rmsprop_decay, self.config.rmsprop_eps
        params, opt = rmsprop(state.params, state.opt, grads, rate, decay, eps)
        return state.replace(params=params, opt=opt, updates=state.updates + 1)  # type: ignore[attr-defined, no-any-return]

    def values(self, state: LearnerState, batch: Trajectory) -> ByRole:
        """What the critics expect at all T+1 rows: by role `[T+1, B, n]`."""
        _, inputs = self._all_inputs(batch)
        return self._values(state.params["critic"], inputs, batch)

    def _values(self, params: Tree, inputs: ByRole, batch: Trajectory) -> ByRole:
        x, value = self._critic_inputs(inputs, batch.step), {}
        for n, critic in self.critics.items():
            hidden = None
            if self._critic_remembers:
                hidden = to_groups(batch.carry[n]["critic_hidden"][None], critic.groups)[:, 0]
            value[n] = self._predict(n, params[n], x[n], batch.step.first, hidden)
        return self._by_role(value)

    def _loss(self, networks: Tree, hyper: Tree, batch: Trajectory) -> tuple[Array, Metrics]:
        """The sum of all groups' losses (their parameters have nothing in common), and metrics."""
        step = batch.step
        raw, inputs = self._all_inputs(batch)
        value, reward = self._values(networks["critic"], inputs, batch), self._rewards(step)
        total, seen = jnp.zeros((), jnp.float32), []
        for n, actor in self.actors.items():
            policy = self._policy(n, networks["actor"][n], batch, inputs[n])
            log_prob, entropy = (
                from_groups(x, actor.spec.size)
                for x in (policy.log_prob(to_groups(raw[n], actor.groups)), policy.entropy())
            )
            old = batch.extras[n]["log_prob"]
            log_ratio = jax.lax.stop_gradient(log_prob) - old if self.config.correction == "vtrace" else None
            expected = jax.lax.stop_gradient(value[n])
            advantage, target = returns.advantages(step, n, reward[n], expected, hyper["gamma"], 1.0, log_ratio)
            counts = returns.valid(step, n)
            each = {
                "loss/policy": policy_gradient(log_prob, advantage),
                "loss/value": value_loss(value[n][:-1], target),
                "policy/entropy": entropy,
            }
            loss = each["loss/policy"] + self.config.value_coef * each["loss/value"] - hyper["entropy_coef"] * entropy
            streams = step.last.shape[1] * actor.spec.size // actor.groups
            total += jnp.sum(jnp.where(counts, loss, 0.0)) / streams
            measured = {name: self._masked_mean(x, counts) for name, x in each.items()}
            explained = stats.explained_variance(expected[:-1], target, counts, self.axis)
            seen.append(measured | {"value/explained_variance": explained})
        return total, {name: sum([m[name] for m in seen[1:]], seen[0][name]) / len(seen) for name in seen[0]}

    def _masked_mean(self, x: Array, counts: Array) -> Array:
        sums = jnp.sum(jnp.where(counts, x, 0.0)), jnp.sum(counts, dtype=jnp.float32)
        total, count = self._mean(sums)
        mean: Array = jax.lax.stop_gradient(total / jnp.maximum(count, 1.0))
        return mean

    def _mean(self, tree: Tree) -> Tree:
        """Over the devices that share the batch."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)
