"""The smallest learners for several devices, and batches whose every lane is different. They compile in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from marl.agents.ppo.algorithm import PPO
from marl.core.types import DataNeeds, Key, LearnerState, Metrics, Replay, TimeStep, Trajectory, Tree
from marl.dataflow.parts import Blueprint, Parts
from marl.envs.probe.credit import Credit

if TYPE_CHECKING or __package__:
    from .tiny import TinyGradient
else:  # processes of Ray import this module alone
    from tiny import TinyGradient

ROLES = Credit().roles
(ROLE,) = ROLES
ROWS = 4
SMALL_PPO = {"rollout": ROWS, "hidden_sizes": (8,), "epochs": 2, "minibatches": 1, "last_action": False}
POISON = 1e6  # a reward from which no finite gradient comes


class TinyMesh(TinyGradient):
    """Averages over a mesh axis; a reward of POISON makes its gradient NaN. With `deaf` it forgets to average."""

    def __init__(self, axis: str | None = None, deaf: bool = False, replay: bool = False) -> None:
        super().__init__(ROLES)
        self.axis, self.deaf = axis, deaf
        if replay:
            self.needs = DataNeeds(rollout=ROWS, replay=Replay(16, 4, 8, alpha=0.6))

    def init(self, key: Key, hyper: Tree = None) -> LearnerState:
        return super().init(key, hyper).replace(aux={"key": key})  # type: ignore[attr-defined]

    def gradient(self, params: Tree, batch: Trajectory, key: Key) -> tuple[Tree, Metrics]:
        grads, metrics = self._grads(params, batch)
        bad = jnp.any(batch.step.reward[ROLE.name] >= POISON)
        grads = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), grads)
        if self.axis is not None and not self.deaf:
            grads = jax.lax.pmean(grads, self.axis)
        return grads, metrics

    def update(self, state: LearnerState, batch: Trajectory, key: Key) -> tuple[LearnerState, Metrics]:
        new, metrics = super().update(state, batch, key)
        if self.needs.replay is not None:
            metrics["priority"] = batch.step.reward[ROLE.name][1:].sum((0, 2))
        return new, metrics


def batch_of(lanes: int, seed: int = 0, poisoned: int | None = None, ppo: bool = False) -> Trajectory:
    """A made-up batch. poisoned: the lane with a reward that no gradient survives.  ppo: as one that PPO acted in."""
    draw, agents, name = np.random.default_rng(seed), ROLE.size, ROLE.name
    width = ROLE.observation_space.shape[0]  # type: ignore[union-attr]
    here: Any = {name: np.ones((ROWS + 1, lanes, agents), np.bool_)}
    edge = np.zeros((ROWS + 1, lanes), np.bool_)
    reward = draw.normal(size=(ROWS + 1, lanes, agents)).astype(np.float32)
    if poisoned is not None:
        reward[1, poisoned] = POISON
    extras: Any = {"rows": np.zeros((ROWS, lanes), np.int32)}
    if ppo:
        extras = {name: {"log_prob": np.full((ROWS, lanes, agents), np.log(0.5), np.float32)}}
    make: Any = TimeStep
    made: Any = Trajectory
    step = make(
        obs={name: draw.normal(size=(ROWS + 1, lanes, agents, width)).astype(np.float32)},
        reward={name: reward},
        terminated={name: ~here[name]},
        truncated={name: ~here[name]},
        alive=here,
        first=edge,
        last=edge,
    )
    return made(  # type: ignore[no-any-return]
        step=step,
        action={name: draw.integers(0, 2, (ROWS, lanes, agents)).astype(np.int32)},
        extras=extras,
        carry=() if ppo else np.zeros((lanes,), np.int32),
        next_action={},
        version=np.zeros((lanes,), np.int32),
    )


def parts(ppo: bool = False, **options: Any) -> Parts:
    """What a rank's process makes of JSON: TinyMesh with options, or a small PPO."""

    def on_axis(name: str, axis: str | None) -> Any:
        del name
        return PPO(PPO.Config(**SMALL_PPO), ROLES, axis) if ppo else TinyMesh(axis, **options)

    return Parts(Credit(), {"all": on_axis("all", None)}, ("all",), {}, on_axis)


def blueprint(**options: Any) -> Blueprint:
    return Blueprint("tiny_mesh:parts", options, (str(Path(__file__).parent),))
