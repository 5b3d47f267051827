"""What algorithms with an actor and a critic have in common: who acts with which network, and what it is shown."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from marl.core.errors import UserError
from marl.core.types import Array, ByRole, Key, RoleSpec, TimeStep, Trajectory, Tree

from .config import ActorCriticConfig, NetworkConfig
from .encoders import find_pictures
from .groups import from_groups, init_groups, spread, step_groups, to_groups, unroll_groups
from .heads import ActionDistribution, ActionHead
from .network import Network, make_network
from .observations import flat_size, flatten

STALENESS_WITH_VTRACE = 64  # versions; without a correction, trajectories must come from the present parameters


class Critic(NamedTuple):
    """A value network of `groups` groups; its outputs are the values of the agents that it serves."""

    network: Network
    groups: int
    inputs_size: int


class Actor:
    """What one role's agents act with: spaces, network and inputs. Holds no parameters."""

    def __init__(self, spec: RoleSpec, config: NetworkConfig) -> None:
        self.spec = spec
        self.config = config
        self.head = ActionHead(spec.action_space, config.squash)
        self.groups = 1 if config.sharing == "role" else spec.size
        self.inputs_size = flat_size(spec.observation_space)
        self.inputs_size += self.head.outputs * config.last_action + spec.size * config.agent_id
        self.pictures = find_pictures(spec.observation_space, config)
        if config.encoder == "cnn" and not self.pictures:
            raise UserError(
                f"encoder: cnn needs a Box of two or three axes, but role '{spec.name}' sees {spec.observation_space}"
            )
        outputs, gaussian = self.head.outputs, self.head.continuous
        self.network = make_network(config, outputs, 0.01, config.recurrent, gaussian, self.pictures)

    def init(self, key: Key) -> Tree:
        """Stacked parameters, leaves `[G, ...]`."""
        return init_groups(self.network, key, self.groups, self.inputs_size)

    def initial_carry(self) -> dict[str, Array]:
        """What one lane remembers: `hidden` `[n, H]` and `last_action` `[n, ...]`, as far as they are used."""
        carry = {}
        if self.config.recurrent:
            carry["hidden"] = jnp.zeros((self.spec.size, self.config.gru_size), jnp.float32)
        if self.config.last_action:
            carry["last_action"] = self.head.none(self.spec.size)
        return carry

    def inputs(self, obs: Tree, last_raw: Array | None) -> Array:
        """Network inputs f32 `[..., n, d]`: the flat observation, the agent's last action, the agent's index."""
        x = flatten(self.spec.observation_space, obs)
        parts = [x]
        if self.config.last_action and last_raw is not None:
            parts.append(self.head.features(last_raw))
        if self.config.agent_id:
            parts.append(jnp.broadcast_to(jnp.eye(self.spec.size, dtype=jnp.float32), (*x.shape[:-1], self.spec.size)))
        return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else x

    def log_std(self, params: Tree) -> Array | None:
        """The Gaussian parameter by agent `[n, d]`; None for discrete actions."""
        if not self.head.continuous:
            return None
        per_group = params["log_std"]
        return jnp.repeat(per_group, self.spec.size // self.groups, axis=0)


class Actors:
    """Acts with one actor a role."""

    def __init__(self, config: NetworkConfig, roles: tuple[RoleSpec, ...]) -> None:
        self.specs = roles
        self.actors = {spec.name: Actor(spec, config) for spec in roles}

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.actors)

    def initial_carry(self) -> Tree:
        """By role what its agents remember: GRU state, last action; `()` if nothing."""
        carry = {name: actor.initial_carry() for name, actor in self.actors.items()}
        return carry if any(carry.values()) else ()

    def act(
        self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool
    ) -> tuple[Tree, ByRole, dict[str, Any]]:
        """Sampled or most likely actions of one lane; extras: by role `log_prob` `[n]`, and `raw` for Box actions.

        params: the actors', by role.
        """
        keys = jax.random.split(key, len(self.actors)) if len(self.actors) > 1 else [key]
        new_carry, actions, extras = {}, {}, {}
        for (name, actor), k in zip(self.actors.items(), keys, strict=True):
            memory = carry[name] if carry else {}
            x = actor.inputs(step.obs[name], memory.get("last_action"))
            output, hidden = step_groups(actor.network, actor.groups, params[name], x, memory.get("hidden"))
            mask = None if step.action_mask is None else step.action_mask.get(name)
            policy = actor.head.distribution(output, actor.log_std(params[name]), mask)
            raw = policy.sample(k) if explore else policy.mode()
            actions[name] = actor.head.action(raw)
            extras[name] = {"log_prob": policy.log_prob(raw)} | ({"raw": raw} if actor.head.continuous else {})
            last = raw
            if step.acting is not None and "last_action" in memory:  # who waits has not done what was drawn for it
                last = _where(step.acting[name], raw, memory["last_action"])
            known = {"hidden": hidden, "last_action": last}
            new_carry[name] = {part: known[part] for part in memory if part in known}
        return new_carry if carry else (), actions, extras


class ActorCritic(Actors):
    """Acts with one actor a role, and shows actors and critics the same inputs in a learner as while acting.

    A critic is one a group of a role, on what the actor sees; a subclass may put others in their place
    (`_critics`, `_critic_inputs`, `_by_critic`, `_by_role`).
    """

    Config: ClassVar[type[ActorCriticConfig]] = ActorCriticConfig

    def __init__(self, config: ActorCriticConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        super().__init__(config, roles)
        self.config = config
        self.axis = axis
        self.critics = self._critics()

    @property
    def max_staleness(self) -> int:
        """How many versions old a trajectory may be."""
        return STALENESS_WITH_VTRACE if self.config.correction == "vtrace" else 0

    def init_networks(self, key: Key) -> dict[str, dict[str, Tree]]:
        """Parameters of all networks: `{"actor": {role: ...}, "critic": {name: ...}}`, leaves `[G, ...]`."""
        actor_key, critic_key = jax.random.split(key)
        return {
            "actor": {n: a.init(jax.random.fold_in(actor_key, i)) for i, (n, a) in enumerate(self.actors.items())},
            "critic": {
                n: init_groups(c.network, jax.random.fold_in(critic_key, i), c.groups, c.inputs_size)
                for i, (n, c) in enumerate(self.critics.items())
            },
        }

    def schedule(self, env_steps: Array) -> Array:
        """The share of the learning rate that is left, f32."""
        if self.config.learning_rate_schedule == "constant" or self.config.schedule_env_steps is None:
            return jnp.ones((), jnp.float32)
        return jnp.maximum(1.0 - env_steps / self.config.schedule_env_steps, 0.0)

    def _all_inputs(self, batch: Trajectory) -> tuple[ByRole, ByRole]:
        """By role the actions as drawn `[T, B, n, ...]` and the actor's inputs `[T+1, B, n, d]`."""
        raw = {n: batch.extras[n]["raw"] if a.head.continuous else batch.action[n] for n, a in self.actors.items()}
        return raw, {n: self._inputs(n, batch, raw[n]) for n in self.actors}

    def _inputs(self, role: str, batch: Trajectory, raw: Array) -> Array:
        """The actor's inputs at T+1 rows, `[T+1, B, n, d]`; the last action is forgotten at `first`, as in acting."""
        actor, step = self.actors[role], batch.step
        if not self.config.last_action:
            return actor.inputs(step.obs[role], None)
        before, none = batch.carry[role]["last_action"], actor.head.none(actor.spec.size)
        if step.acting is None:
            last = jnp.concatenate([before[None], raw])
            return actor.inputs(step.obs[role], _where(step.first, none, last))

        def remember(last: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            first, acting, drawn = row
            last = _where(first, none, last)
            return _where(acting, drawn, last), last

        after, last = jax.lax.scan(remember, before, (step.first[:-1], step.acting[role][:-1], raw))
        return actor.inputs(step.obs[role], jnp.concatenate([last, _where(step.first[-1], none, after)[None]]))

    def _predict(self, name: str, params: Tree, x: Array, first: Array, hidden: Array | None = None) -> Array:
        """A critic's outputs `[G, T+1, L, K]`, from `hidden` `[G, L, H]` or zeros if it is recurrent."""
        network = self.critics[name].network
        if network.gru_size and hidden is None:
            hidden = jnp.zeros((x.shape[0], x.shape[2], network.gru_size), jnp.float32)
        return unroll_groups(network, params, x, hidden, spread(first, x))

    def _policy(self, role: str, params: Tree, batch: Trajectory, x: Array) -> ActionDistribution:
        """What a role's actor with these parameters would do on the T rows that were acted on, `[G, T, L]`.

        It starts from the hidden state that acted. x: the actor's inputs `[T+1, B, n, d]`.
        """
        actor, step = self.actors[role], batch.step
        hidden = to_groups(batch.carry[role]["hidden"][None], actor.groups)[:, 0] if self.config.recurrent else None
        rows = to_groups(x[:-1], actor.groups)
        output = unroll_groups(actor.network, params, rows, hidden, spread(step.first[:-1], rows))
        mask = None if step.action_mask is None else step.action_mask.get(role)
        log_std = params["log_std"][:, None, None] if actor.head.continuous else None
        return actor.head.distribution(output, log_std, None if mask is None else to_groups(mask[:-1], actor.groups))

    def _critics(self) -> dict[str, Critic]:
        """By role one critic a group, on the actor's inputs."""
        recurrent = self.config.recurrent and self.config.critic_recurrent
        return {
            n: Critic(make_network(self.config, 1, 1.0, recurrent, pictures=a.pictures), a.groups, a.inputs_size)
            for n, a in self.actors.items()
        }

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


def _where(condition: Array, yes: Array, no: Array) -> Array:
    """`jnp.where` with a condition that lacks the trailing axes of `no` or `yes`."""
    axes = max(yes.ndim, no.ndim) - condition.ndim
    return jnp.where(condition.reshape(*condition.shape, *([1] * axes)), yes, no)
