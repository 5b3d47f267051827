"""The networks of PPO, stacked over agents, and how trajectories are laid out for them.

A *group* is a set of agents that share one network: every agent is one of its own, or (`sharing: role`) a role is one.
Parameters have the group axis in front, and so have a learner's arrays: `[T, B, n, ...]` becomes `[G, T, L, ...]` with
L = B n / G sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from marl.agents.networks.heads import ActionHead
from marl.agents.networks.observations import flat_size, flatten
from marl.agents.networks.recurrent import GRU
from marl.agents.networks.torsos import MLP, Activation, dense, layer_norm
from marl.core.types import Array, Key, RoleSpec, Tree

from .config import PPOConfig


class Network(nn.Module):
    """Torso, optional GRU (then LayerNorm if the torso has it), linear head. `log_std`: also a vector for Gaussians."""

    outputs: int
    head_gain: float
    hidden_sizes: tuple[int, ...]
    activation: Activation
    normalise: bool
    gru_size: int = 0
    log_std: bool = False

    def setup(self) -> None:
        self.torso = MLP(self.hidden_sizes, self.activation, self.normalise)
        if self.gru_size:
            self.gru = GRU(self.gru_size)
        if self.gru_size and self.normalise:
            self.norm = layer_norm()
        self.head = dense(self.outputs, self.head_gain)
        if self.log_std:
            self.param("log_std", nn.initializers.zeros_init(), (self.outputs,))

    def step(self, x: Array, hidden: Array | None) -> tuple[Array, Array | None]:
        """Outputs `[..., outputs]` and the next hidden state for one row of inputs `[..., d]`."""
        x = self.torso(x)
        if hidden is not None:
            hidden = x = self.gru(hidden, x)
            x = self.norm(x) if self.normalise else x
        return self.head(x), hidden

    def unroll(self, x: Array, hidden: Array | None, first: Array) -> Array:
        """Outputs `[T, B, outputs]` for inputs `[T, B, d]`; the state is reset where `first` (bool `[T, B]`).

        Without a GRU the leading axes are free.
        """
        lead = x.shape[:-1]
        x = self.torso(x.reshape(-1, x.shape[-1]))  # one row axis: gradients of weights are then plain matrix products
        if hidden is not None:
            x = self.gru.unroll(hidden, x.reshape(*lead, -1), first).reshape(-1, self.gru_size)
            x = self.norm(x) if self.normalise else x
        output: Array = self.head(x)
        return output.reshape(*lead, self.outputs)


def make_network(config: PPOConfig, outputs: int, head_gain: float, recurrent: bool, log_std: bool = False) -> Network:
    """A network as the options say."""
    return Network(
        outputs=outputs,
        head_gain=head_gain,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        normalise=config.layer_norm,
        gru_size=config.gru_size if recurrent else 0,
        log_std=log_std,
    )


def map_groups(f: Callable[..., Any], *args: Any) -> Any:
    """`f` for every group: `vmap` over the leading axis, or a plain call where that axis is 1.

    The plain call is worth its line: on a CPU the gradient of a 64-64 network costs a tenth less without that axis.
    """
    if jax.tree.leaves(args)[0].shape[0] > 1:
        return jax.vmap(f)(*args)
    return jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))


def init_groups(network: Network, key: Key, groups: int, inputs: int) -> Tree:
    """Parameters of `groups` independently drawn networks, group axis in front."""

    def one(k: Key) -> Tree:
        hidden = jnp.zeros((network.gru_size,), jnp.float32) if network.gru_size else None
        return network.init(k, jnp.zeros((inputs,), jnp.float32), hidden, method="step")["params"]

    return jax.vmap(one)(jax.random.split(key, groups))


def unroll_groups(network: Network, params: Tree, x: Array, hidden: Array | None, first: Array) -> Array:
    """Outputs `[G, T, L, k]` of each group's network on x `[G, T, L, d]`, hidden `[G, L, H]`, first `[G, T, L]`."""

    def one(p: Tree, *inputs: Any) -> Any:
        return network.apply({"params": p}, *inputs, method="unroll")

    outputs: Array = map_groups(one, params, x, hidden, first)
    return outputs


def to_groups(x: Array, groups: int) -> Array:
    """`[T, B, n, ...]` to `[G, T, B * n / G, ...]`; G is n (one agent a group) or 1."""
    if groups == 1:
        return x.reshape(1, x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)


def from_groups(x: Array, agents: int) -> Array:
    """`[G, T, L, ...]` back to `[T, B, n, ...]`."""
    if x.shape[0] == 1:
        return x.reshape(x.shape[1], x.shape[2] // agents, agents, *x.shape[3:])
    return jnp.moveaxis(x, 0, 2)


def spread(first: Array, like: Array) -> Array:
    """A bool of the lane, `[T, B]`, for each group and sequence of `like` `[G, T, L, ...]`."""
    groups, sequences = like.shape[0], like.shape[2]
    each = jnp.repeat(first, sequences // first.shape[1], axis=1)
    return jnp.broadcast_to(each, (groups, *each.shape))


class Critic(NamedTuple):
    """A value network of `groups` groups; its outputs are the values of the agents that it serves."""

    network: Network
    groups: int
    inputs_size: int


class Actor:
    """What one role's agents act with: spaces, network and inputs. Holds no parameters."""

    def __init__(self, spec: RoleSpec, config: PPOConfig) -> None:
        self.spec = spec
        self.config = config
        self.head = ActionHead(spec.action_space, config.squash)
        self.groups = 1 if config.sharing == "role" else spec.size
        self.inputs_size = flat_size(spec.observation_space)
        self.inputs_size += self.head.outputs * config.last_action + spec.size * config.agent_id
        self.network = make_network(config, self.head.outputs, 0.01, config.recurrent, self.head.continuous)

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

    def step(self, params: Tree, x: Array, hidden: Array | None) -> tuple[Array, Array | None]:
        """Outputs `[n, outputs]` and hidden states of one lane's agents, each by its own group's network."""
        size = self.spec.size

        def one(p: Tree, *inputs: Any) -> Any:
            return self.network.apply({"params": p}, *inputs, method="step")

        def grouped(a: Array) -> Array:
            return a.reshape(self.groups, size // self.groups, -1)

        output, hidden = map_groups(one, params, grouped(x), None if hidden is None else grouped(hidden))
        return output.reshape(size, -1), None if hidden is None else hidden.reshape(size, -1)

    def log_std(self, params: Tree) -> Array | None:
        """The Gaussian parameter by agent `[n, d]`; None for discrete actions."""
        if not self.head.continuous:
            return None
        per_group = params["log_std"]
        return jnp.repeat(per_group, self.spec.size // self.groups, axis=0)
