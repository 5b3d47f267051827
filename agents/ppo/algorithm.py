"""PPO: act, then improve the policy on what was seen, a few epochs at a time.

IPPO (`PPO`) gives every agent its own actor and critic; MAPPO gives all agents one critic on the world's global state.
Schulman et al. 2017; de Witt et al. 2020 (IPPO); Yu et al. 2022 (MAPPO).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from marl.agents.networks.actor_critic import ActorCritic, Critic
from marl.agents.networks.encoders import find_pictures
from marl.agents.networks.groups import from_groups, spread, to_groups
from marl.agents.networks.network import make_network
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
from .values import denormalise, normalise, rescale_head

HYPER = ("learning_rate", "gamma", "gae_lambda", "clip", "entropy_coef")
RETURN_DECAY = 0.99  # weight of the older returns in the running moments, an update


class PPO(ActorCritic):
    """Independent PPO: every agent learns from its own observation and reward with its own critic."""

    Config: ClassVar[type[PPOConfig]] = PPOConfig
    config: PPOConfig

    def __init__(self, config: PPOConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        super().__init__(config, roles, axis)
        self._optimiser = optimiser(config)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=self.config.rollout, max_staleness=self.max_staleness)

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        """A new learner. `hyper`: numbers by name (of `HYPER`) that replace the config's, for populations."""
        params = self.init_networks(key)
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
        rate = state.hyper["learning_rate"] * self.schedule(state.env_steps)
        losses = self._losses(state.hyper)
        params, opt, metrics = optimise(
            self.config, self._optimiser, losses, params, state.opt, rows, rate, key, self.axis
        )
        metrics |= measured | {"optim/learning_rate": rate}
        if self.axis is not None:
            metrics = jax.lax.pmean(metrics, self.axis)
        new = state.replace(params=params, opt=opt, aux=aux, updates=state.updates + 1)  # type: ignore[attr-defined]
        return new, metrics

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
        log_prob = {n: batch.extras[n]["log_prob"] for n in self.actors}
        log_ratio: dict[str, Array | None] = dict.fromkeys(self.actors)
        if self.config.correction == "vtrace":
            now = {n: self._log_prob(n, state.params["actor"][n], batch, inputs[n], raw[n]) for n in self.actors}
            log_ratio, log_prob = {n: now[n] - log_prob[n] for n in self.actors}, now
        for n in self.actors:
            counts[n] = returns.valid(step, n)
            advantage[n], target[n] = returns.advantages(
                step, n, reward[n], by_role[n], hyper["gamma"], hyper["gae_lambda"], log_ratio[n]
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
            "actor": {
                n: self._policy_rows(n, batch, inputs[n], raw[n], counts[n], log_prob[n], advantage[n])
                for n in self.actors
            },
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

    def _log_prob(self, role: str, params: Tree, batch: Trajectory, x: Array, raw: Array) -> Array:
        """How likely an actor with these parameters does what was done, `[T, B, n]`."""
        actor = self.actors[role]
        log_prob = self._policy(role, params, batch, x).log_prob(to_groups(raw, actor.groups))
        return from_groups(log_prob, actor.spec.size)

    def _policy_rows(
        self, role: str, batch: Trajectory, x: Array, raw: Array, valid: Array, log_prob: Array, advantage: Array
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
            log_prob=to_groups(log_prob, groups),
            advantage=to_groups(jnp.where(valid, advantage, 0.0), groups),
            action_mask=None if mask is None else to_groups(mask[:-1], groups),
            hidden=hidden,
        )

    def _update_moments(self, moments: stats.RunningMoments, target: Array, mask: Array) -> stats.RunningMoments:
        return stats.update_moments(moments, target, mask, (1, 2), self.axis, decay=RETURN_DECAY)


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
        return DataNeeds(rollout=self.config.rollout, max_staleness=self.max_staleness, global_state=True)

    def _critics(self) -> dict[str, Critic]:
        agents, space = sum(spec.size for spec in self.specs), self.specs[0].state_space
        assert space is not None
        recurrent = self.config.recurrent and self.config.critic_recurrent
        pictures = find_pictures(space, self.config)
        network = make_network(self.config, agents, 1.0, recurrent, pictures=pictures)
        return {"central": Critic(network, 1, flat_size(space))}

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
