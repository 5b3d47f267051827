"""Agents that take turns learn what their own moves bring, though it arrives at somebody else's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from marl.agents.a3c.algorithm import A3C
from marl.agents.ppo.algorithm import PPO
from marl.core.collect import collect, init_lanes
from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import RoleSpec, TimeStep
from marl.dataflow.fused import Fused
from marl.dataflow.learning import trajectory_of

pytestmark = [pytest.mark.learn, pytest.mark.long]
GAMMA = 0.5


@struct.dataclass
class Moves:
    made: jax.Array
    t: jax.Array


class InTurn:
    """Agent 0 moves, agent 1 moves, and the game is over: each is paid 1 if its move was 1. Waiting agents' actions
    are ignored. Under the best policies V = 1 at one's own move, though agent 0 is paid two rows later."""

    Config = EnvConfig
    lane_axis = 0
    max_steps: int | None = 2
    default_params = ()

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("player", 2, Box((2,), 0.0, 1.0), Discrete(2)),)

    def reset(self, key: jax.Array, params: Any) -> tuple[Moves, TimeStep]:
        state = Moves(made=jnp.zeros(2, jnp.int32), t=jnp.zeros((), jnp.int32))
        return state, self.row(state)

    def step(self, key: jax.Array, state: Moves, actions: Any, params: Any) -> tuple[Moves, TimeStep]:
        mine = jnp.arange(2, dtype=jnp.int32) == state.t
        after = Moves(made=jnp.where(mine, actions["player"], state.made), t=state.t + 1)
        return after, self.row(after)

    def row(self, state: Moves) -> TimeStep:
        over = state.t == 2
        turn = jnp.arange(2, dtype=jnp.int32) == state.t
        return TimeStep(
            obs={"player": jnp.broadcast_to(turn.astype(jnp.float32), (2, 2))},
            reward={"player": jnp.where(over, state.made, 0).astype(jnp.float32)},
            terminated={"player": jnp.broadcast_to(over, (2,))},
            truncated={"player": jnp.zeros(2, bool)},
            alive={"player": jnp.broadcast_to(~over, (2,))},
            first=state.t == 0,
            last=over,
            acting={"player": turn},
        )

    def render(self, state: Moves, params: Any) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


SMALL = {"hidden_sizes": (16,), "gamma": GAMMA}
LEARNERS = {
    "ppo": lambda roles: PPO(PPO.Config(**SMALL, rollout=12, minibatches=2, learning_rate=5e-3), roles),
    "a3c": lambda roles: A3C(A3C.Config(**SMALL, rollout=12, learning_rate=1e-2, rmsprop_eps=1e-3), roles),
}


@pytest.mark.parametrize("name", ["ppo", pytest.param("a3c", marks=pytest.mark.slow)])
def test_a_move_is_worth_what_arrives_at_the_opponents_turn(name: str) -> None:
    world: Any = InTurn()
    policy: Any = LEARNERS[name](world.roles)
    fused = Fused(world, {"all": policy}, ["all"], {}, num_envs=16, seeds=(0,), updates_per_dispatch=150)
    state, _ = fused.dispatch(fused.init(), [0])
    params = fused.published(state, 0)
    lanes = init_lanes(world, {"all": policy}, params, jax.random.split(jax.random.key(0), 4))
    _, rollout = collect(world, {"all": policy}, params, lanes, 12, record=("all",))
    learner = jax.tree.map(lambda x: x[0], state.learners["all"])
    value = np.asarray(policy.values(learner, trajectory_of(policy, "all", rollout, learner.updates))["player"])
    acts = np.asarray(rollout.step.acting["player"])
    assert (np.asarray(rollout.action["player"])[acts[:-1]] == 1).mean() > 0.9
    for agent in (0, 1):
        np.testing.assert_allclose(value[..., agent][acts[..., agent]], 1.0, atol=0.1)
