"""PPO: act, then improve the policy on what was seen, a few epochs at a time.

IPPO (`PPO`) gives every agent its own actor and critic; MAPPO gives all agents one critic on the world's global state.
Schulman et al. 2017; de Witt et al. 2020 (IPPO); Yu et al. 2022 (MAPPO).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from marl.agents.networks.observations import flat_size, flatten
from marl.core import returns, stats
from marl.core.errors import UserError
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

from .config import MAPPOConfig, PPOConfig
from .learning import each_network, optimise, optimiser, ravel
from .losses import PolicyRows, ValueRows, critic_loss, policy_loss
from .networks import Actor, Critic, from_groups, init_groups, make_network, spread, to_groups, unroll_groups
from .values import denormalise, normalise, rescale_head

HYPER = ("learning_rate", "gamma", "gae_lambda", "clip", "entropy_coef")
RETURN_DECAY = 0.99  # weight of the older returns in the running moments, an update


class PPO:
    """Independent PPO: every agent learns from its own observation and reward with its own critic."""

    Config: ClassVar[type[PPOConfig]] = PPOConfig

    def __init__(self, config: PPOConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        self.config = config
        self.specs = roles
        self.axis = axis
        self.actors = {spec.name: Actor(spec, config) for spec in roles}
        self.critics = self._critics()
        self._optimiser = optimiser(config, axis)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.actors)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=self.config.rollout)

    def initial_carry(self) -> Tree:
        """By role what its agents remember: GRU state, last action; `()` if nothing."""
        carry = {name: actor.initial_carry() for name, actor in self.actors.items()}
        return carry if any(carry.values()) else ()

    def act(
        self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool
    ) -> tuple[Tree, ByRole, dict[str, Any]]:
        """Sampled or most likely actions of one lane; extras: by role `log_prob` `[n]`, and `raw` for Box actions."""
        keys = jax.random.split(key, len(self.actors)) if len(self.actors) > 1 else [key]
        new_carry, actions, extras = {}, {}, {}
        for (name, actor), k in zip(self.actors.items(), keys, strict=True):
            memory = carry[name] if carry else {}
            x = actor.inputs(step.obs[name], memory.get("last_action"))
            output, hidden = actor.step(params[name], x, memory.get("hidden"))
            mask = None if step.action_mask is None else step.action_mask.get(name)
            policy = actor.head.distribution(output, actor.log_std(params[name]), mask)
            raw = policy.sample(k) if explore else policy.mode()
            actions[name] = actor.head.action(raw)
            extras[name] = {"log_prob": policy.log_prob(raw)} | ({"raw": raw} if actor.head.continuous else {})
            known = {"hidden": hidden, "last_action": raw}
            new_carry[name] = {part: known[part] for part in memory}
        return new_carry if carry else (), actions, extras

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        """A new learner. `hyper`: numbers by name (of `HYPER`) that replace the config's, for populations."""
        actor_key, critic_key = jax.random.split(key)
        params = {
            "actor": {n: a.init(jax.random.fold_in(actor_key, i)) for i, (n, a) in enumerate(self.actors.items())},
            "critic": {
                n: init_groups(c.network, jax.random.fold_in(critic_key, i), c.groups, c.inputs_size)
                for i, (n, c) in enumerate(self.critics.items())
            },
        }
        running = self.config.value_normalisation == "running"
        moments = {n: stats.RunningMoments.zero((c.groups, c.network.outputs)) for n, c in self.critics.items()}
        numbers = {name: getattr(self.config, name) for name in HYPER} | (hyper or {})
        return LearnerState(
            params=params,
            opt=each_network(lambda p: jax.vmap(self._optimiser.init)(ravel(p)), params),
            aux={"returns": moments} if running else {},
            hyper={name: jnp.asarray(x, jnp.float32) for name, x in numbers.items()},
            env_steps=jnp.zeros((), jnp.float32),
            updates=jnp.zeros((), jnp.int32),
        )

    def publish(self, state: LearnerState) -> Tree:
        """The actors' parameters by role, leaves `[G, ...]`."""
        return state.params["actor"]

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        """Targets from the critics as they are, then `epochs` x `minibatches` gradient steps on them."""
        params, aux, rows, measured = self._prepare(state, batch)
        if not self.config.recurrent:  # rows need not stay in sequence: [G, T, L] becomes [G, T * L]
            rows = jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:]), rows)
        rate = state.hyper["learning_rate"] * self._schedule(state.env_steps)
        losses = self._losses(state.hyper)
        params, opt, metrics = optimise(self.config, self._optimiser, losses, params, state.opt, rows, rate, key)
        metrics |= measured | {"optim/learning_rate": rate}
        if self.axis is not None:
            metrics = jax.lax.pmean(metrics, self.axis)
        new = state.replace(params=params, opt=opt, aux=aux, updates=state.updates + 1)  # type: ignore[attr-defined]
        return new, metrics

    def _schedule(self, env_steps: Array) -> Array:
        if self.config.learning_rate_schedule == "constant" or self.config.schedule_env_steps is None:
            return jnp.ones((), jnp.float32)
        return jnp.maximum(1.0 - env_steps / self.config.schedule_env_steps, 0.0)

    def _losses(self, hyper: Tree) -> dict[str, dict[str, Any]]:
        """The loss of each network, a function of one group's parameters and rows."""
        config, axis = self.config, self.axis
        weights = {"entropy_coef": hyper["entropy_coef"], "clip": hyper["clip"]}
        return {
            "actor": {
                n: partial(policy_loss, network=a.network, head=a.head, axis=axis, **weights)
                for n, a in self.actors.items()
            },
            "critic": {
                n: partial(critic_loss, config=config, network=c.network, axis=axis) for n, c in self.critics.items()
            },
        }

    def _prepare(self, state: LearnerState, batch: Trajectory) -> tuple[Tree, Tree, Tree, Metrics]:
        """Parameters (rescaled with the value normaliser), aux, rows by network, and metrics."""
        step, hyper, critic_params = batch.step, state.hyper, state.params["critic"]
        raw, inputs = self._all_inputs(batch)
        critic_x = self._critic_inputs(inputs, step)
        value = self._critic_values(state, critic_x, step.first)
        moments = state.aux.get("returns")

        counts, advantage, target = {}, {}, {}
        reward, by_role = self._rewards(step), self._by_role(value)
        for n in self.actors:
            counts[n] = returns.valid(step, n)
            advantage[n], target[n] = returns.advantages(
                step, n, reward[n], by_role[n], hyper["gamma"], hyper["gae_lambda"]
            )
        explained = [stats.explained_variance(by_role[n][:-1], target[n], counts[n], self.axis) for n in self.actors]
        measured = {"value/explained_variance": sum(explained[1:], explained[0]) / len(explained)}

        targets, masks = self._by_critic(target), self._by_critic(counts)
        old = {n: v[:, :-1] for n, v in value.items()}
        aux = state.aux
        if moments is not None:
            new = {n: self._update_moments(moments[n], targets[n], masks[n]) for n in self.critics}
            critic_params = {n: rescale_head(critic_params[n], moments[n], new[n]) for n in self.critics}
            targets, old = ({n: normalise(new[n], x[n]) for n in self.critics} for x in (targets, old))
            aux = {**state.aux, "returns": new}
        rows = {
            "actor": {n: self._policy_rows(n, batch, inputs[n], raw[n], counts[n], advantage[n]) for n in self.actors},
            "critic": {
                n: ValueRows(
                    x=critic_x[n][:, :-1],
                    first=spread(step.first[:-1], critic_x[n]),
                    valid=masks[n],
                    target=targets[n],
                    old_value=old[n],
                )
                for n in self.critics
            },
        }
        return {**state.params, "critic": critic_params}, aux, rows, measured

    def values(self, state: LearnerState, batch: Trajectory) -> ByRole:
        """What the critics expect at all T+1 rows, in units of return: by role `[T+1, B, n]`."""
        _, inputs = self._all_inputs(batch)
        critic_x = self._critic_inputs(inputs, batch.step)
        return self._by_role(self._critic_values(state, critic_x, batch.step.first))

    def _critic_values(self, state: LearnerState, critic_x: dict[str, Array], first: Array) -> dict[str, Array]:
        """By critic `[G, T+1, L, K]`, in units of return."""
        params, moments = state.params["critic"], state.aux.get("returns")
        value = {n: self._predict(n, params[n], critic_x[n], first) for n in self.critics}
        return value if moments is None else {n: denormalise(moments[n], v) for n, v in value.items()}

    def _all_inputs(self, batch: Trajectory) -> tuple[ByRole, ByRole]:
        """By role the actions as drawn `[T, B, n, ...]` and the actor's inputs `[T+1, B, n, d]`."""
        raw = {n: batch.extras[n]["raw"] if a.head.continuous else batch.action[n] for n, a in self.actors.items()}
        return raw, {n: self._inputs(n, batch, raw[n]) for n in self.actors}

    def _inputs(self, role: str, batch: Trajectory, raw: Array) -> Array:
        """The actor's inputs at T+1 rows, `[T+1, B, n, d]`; the last action is forgotten at `first`, as in acting."""
        actor = self.actors[role]
        if not self.config.last_action:
            return actor.inputs(batch.step.obs[role], None)
        last = jnp.concatenate([batch.carry[role]["last_action"][None], raw])
        first = batch.step.first.reshape(*batch.step.first.shape, *([1] * (last.ndim - 2)))
        return actor.inputs(batch.step.obs[role], jnp.where(first, actor.head.none(actor.spec.size), last))

    def _policy_rows(
        self, role: str, batch: Trajectory, x: Array, raw: Array, valid: Array, advantage: Array
    ) -> PolicyRows:
        groups = self.actors[role].groups
        if self.config.normalise_advantage:
            mean, std = stats.masked_mean_std(advantage, valid, (0, 1), self.axis)
            advantage = (advantage - mean) / (std + 1e-8)
        mask = None if batch.step.action_mask is None else batch.step.action_mask.get(role)
        hidden = to_groups(batch.carry[role]["hidden"][None], groups) if self.config.recurrent else None
        x = to_groups(x[:-1], groups)
        return PolicyRows(
            x=x,
            first=spread(batch.step.first[:-1], x),
            valid=to_groups(valid, groups),
            raw_action=to_groups(raw, groups),
            log_prob=to_groups(batch.extras[role]["log_prob"], groups),
            advantage=to_groups(jnp.where(valid, advantage, 0.0), groups),
            action_mask=None if mask is None else to_groups(mask[:-1], groups),
            hidden=hidden,
        )

    def _predict(self, name: str, params: Tree, x: Array, first: Array) -> Array:
        """A critic's outputs `[G, T+1, L, K]`, from a hidden state of zeros if it is recurrent."""
        network = self.critics[name].network
        hidden = jnp.zeros((x.shape[0], x.shape[2], network.gru_size), jnp.float32) if network.gru_size else None
        return unroll_groups(network, params, x, hidden, spread(first, x))

    def _update_moments(self, moments: stats.RunningMoments, target: Array, mask: Array) -> stats.RunningMoments:
        return stats.update_moments(moments, target, mask, (1, 2), self.axis, decay=RETURN_DECAY)

    def _critics(self) -> dict[str, Critic]:
        """By role one critic a group, on the actor's inputs."""
        network = make_network(self.config, 1, 1.0, self.config.recurrent and self.config.critic_recurrent)
        return {n: Critic(network, a.groups, a.inputs_size) for n, a in self.actors.items()}

    def _critic_inputs(self, inputs: ByRole, step: TimeStep) -> dict[str, Array]:
        """By critic `[G, T+1, L, d]`."""
        return {n: to_groups(x, self.actors[n].groups) for n, x in inputs.items()}

    def _rewards(self, step: TimeStep) -> ByRole:
        """By role the reward of each transition, `[T, B, n]`."""
        return {n: step.reward[n][1:] for n in self.actors}

    def _by_critic(self, by_role: ByRole) -> dict[str, Array]:
        """From `[T, B, n]` by role to `[G, T, L, K]` by critic."""
        return {n: to_groups(x[..., None], self.actors[n].groups) for n, x in by_role.items()}

    def _by_role(self, by_critic: dict[str, Array]) -> ByRole:
        """From `[G, T, L, K]` by critic to `[T, B, n]` by role."""
        return {n: from_groups(x[..., 0], self.actors[n].spec.size) for n, x in by_critic.items()}


class MAPPO(PPO):
    """PPO whose one critic sees the global state and values every agent; the actors are those of IPPO."""

    Config: ClassVar[type[PPOConfig]] = MAPPOConfig
    config: MAPPOConfig

    def __init__(self, config: MAPPOConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        if roles[0].state_space is None:
            raise UserError(
                f"mappo needs a world with a global state, but role '{roles[0].name}' has no state_space; use ppo"
            )
        super().__init__(config, roles, axis)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=self.config.rollout, global_state=True)

    def _critics(self) -> dict[str, Critic]:
        agents = sum(spec.size for spec in self.specs)
        network = make_network(self.config, agents, 1.0, self.config.recurrent and self.config.critic_recurrent)
        return {"central": Critic(network, 1, flat_size(self.specs[0].state_space))}

    def _critic_inputs(self, inputs: ByRole, step: TimeStep) -> dict[str, Array]:
        return {"central": flatten(self.specs[0].state_space, step.state)[None]}

    def _rewards(self, step: TimeStep) -> ByRole:
        own = super()._rewards(step)
        if not self.config.team_reward:
            return own
        team = jnp.sum(jnp.concatenate(list(own.values()), axis=-1), axis=-1, keepdims=True)
        return {n: jnp.broadcast_to(team, r.shape) for n, r in own.items()}

    def _by_critic(self, by_role: ByRole) -> dict[str, Array]:
        return {"central": jnp.concatenate([by_role[n] for n in self.actors], axis=-1)[None]}

    def _by_role(self, by_critic: dict[str, Array]) -> ByRole:
        ends = [sum(spec.size for spec in self.specs[: i + 1]) for i in range(len(self.specs))]
        parts = jnp.split(by_critic["central"][0], ends[:-1], axis=-1)
        return dict(zip(self.actors, parts, strict=True))
