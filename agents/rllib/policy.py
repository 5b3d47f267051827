"""The policies that RLlib's PPO and IMPALA train, in JAX: its default network, from its exported weights.

RLlib trains them where `dataflow.kind` is `rllib`; here they only act. So a run is evaluated, filmed and reported, and
its policy set against others, without RLlib and without torch.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from marl.agents.networks.config import NetworkConfig
from marl.agents.networks.encoders import find_pictures
from marl.agents.networks.heads import ActionHead
from marl.agents.networks.observations import flatten
from marl.core.config import AgentConfig
from marl.core.distributions import Categorical, DiagonalGaussian, MultiCategorical
from marl.core.errors import UserError
from marl.core.spaces import Box
from marl.core.types import Array, ByRole, DataNeeds, Key, RoleSpec, TimeStep, Tree

from .config import RllibAgentConfig, RllibIMPALAConfig, RllibPPOConfig

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu}
MAX_LOG_STD = 20.0  # RLlib's `log_std_clip_param`


class RllibPolicy:
    """A fully connected network a role or an agent. params: by role a list of layers, each `{"weight": [G, out, in],
    "bias": [G, out]}`, where G is 1 or the number of agents.

    Raises: UserError for a role that sees pictures, or whose actions RLlib cannot choose.
    """

    trained_by: ClassVar[str] = "rllib"

    def __init__(self, config: RllibAgentConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        del axis
        self.config = config
        self.specs = roles
        self.heads = {spec.name: ActionHead(spec.action_space) for spec in roles}
        for spec in roles:
            if isinstance(spec.action_space, Box) and not spec.action_space.dtype.startswith("float"):
                raise UserError(
                    f"RLlib chooses no actions from a Box of {spec.action_space.dtype}, which role '{spec.name}' has"
                )
            if find_pictures(spec.observation_space, NetworkConfig()):
                raise UserError(
                    f"role '{spec.name}' sees pictures, and the networks that RLlib trains here are fully connected; "
                    "expected a world without pictures, or an algorithm such as ppo"
                )

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=1)

    def initial_carry(self) -> Tree:
        return ()

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        """As RLlib acts: sampled, or the mode; numbers are moved from [-1, 1] to the bounds of the space and clipped.

        Action masks are not read, as RLlib's default network reads none.
        """
        keys = jax.random.split(key, len(self.specs))
        actions = {}
        for spec, own in zip(self.specs, keys, strict=True):
            chosen = self.distribution(spec, params[spec.name], step.obs[spec.name])
            actions[spec.name] = self.heads[spec.name].action(chosen.sample(own) if explore else chosen.mode())
        return carry, actions, ()

    def distribution(
        self, spec: RoleSpec, layers: Tree, obs: Tree
    ) -> Categorical | MultiCategorical | DiagonalGaussian:
        """What a role's agents do, for observations `[n_role, ...]`."""
        x = flatten(spec.observation_space, obs)
        activation = ACTIVATIONS[self.config.activation]
        for number, layer in enumerate(layers):
            x = _linear(layer, x if number == 0 else activation(x))
        head = self.heads[spec.name]
        if not isinstance(spec.action_space, Box):
            return head.distribution(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(log_std, -MAX_LOG_STD, MAX_LOG_STD))


class RllibPPO(RllibPolicy):
    """RLlib's PPO, as a baseline (dataflow.kind rllib)."""

    Config: ClassVar[type[AgentConfig]] = RllibPPOConfig


class RllibIMPALA(RllibPolicy):
    """RLlib's IMPALA, as a baseline (dataflow.kind rllib)."""

    Config: ClassVar[type[AgentConfig]] = RllibIMPALAConfig


def _linear(layer: Tree, x: Array) -> Array:
    """`[n, out]` from `[n, in]`: with the one network, or each agent with its own."""
    weight, bias = layer["weight"], layer["bias"]
    if weight.shape[0] == 1:
        shared: Array = x @ weight[0].T + bias[0]
        return shared
    own: Array = jnp.einsum("ni,noi->no", x, weight) + bias
    return own
