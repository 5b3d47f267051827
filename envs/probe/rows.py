"""What the probe worlds share: their one parameter, how a row is put together, and a picture made of tiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike, NDArray

from marl.core.types import ByRole, TimeStep, Tree

TILE = 24  # side of one tile of a picture [pixels]
DARK, GREY, BLUE, RED, GREEN, GOLD = (
    (24, 26, 32),
    (96, 100, 110),
    (70, 130, 230),
    (220, 80, 70),
    (80, 180, 100),
    (235, 190, 60),
)


@struct.dataclass
class Prize:
    """The parameter of every probe but CartPole. prize: what the right answer is paid, f32 scalar."""

    prize: jax.Array


def default_prize() -> Prize:
    """A prize of 1, so that the returns in the docstrings hold."""
    return Prize(prize=jnp.asarray(1.0, jnp.float32))


def mean_terms(reward: ByRole, term: str) -> dict[str, jax.Array]:
    """`reward/<role>/<term>`, the mean over each role's agents: the probes pay one term a role."""
    return {f"reward/{role}/{term}": jnp.mean(value) for role, value in reward.items()}


def first_row(obs: ByRole, term: str, *, action_mask: ByRole | None = None, state: Tree | None = None) -> TimeStep:
    """The row that opens an episode: reward 0, nobody has ended, everybody is alive. obs leaves: `[n_role, ...]`."""
    reward = {role: jnp.zeros(value.shape[0], jnp.float32) for role, value in obs.items()}
    no = {role: jnp.zeros(value.shape[0], bool) for role, value in obs.items()}
    return TimeStep(
        obs=obs,
        reward=reward,
        terminated=no,
        truncated=dict(no),
        alive={role: jnp.ones(value.shape[0], bool) for role, value in obs.items()},
        first=jnp.ones((), bool),
        last=jnp.zeros((), bool),
        action_mask=action_mask,
        state=state,
        info=mean_terms(reward, term),
    )


def next_row(
    obs: ByRole,
    reward: ByRole,
    term: str,
    *,
    last: jax.Array,
    action_mask: ByRole | None = None,
    state: Tree | None = None,
) -> TimeStep:
    """A later row of an episode that ends for everybody at once, by termination. last: bool scalar."""
    ended = {role: jnp.broadcast_to(last, value.shape) for role, value in reward.items()}
    return TimeStep(
        obs=obs,
        reward=reward,
        terminated=ended,
        truncated={role: jnp.zeros(value.shape, bool) for role, value in reward.items()},
        alive={role: ~value for role, value in ended.items()},
        first=jnp.zeros((), bool),
        last=last,
        action_mask=action_mask,
        state=state,
        info=mean_terms(reward, term),
    )


def tiles(colours: ArrayLike) -> NDArray[np.uint8]:
    """Square tiles with a dark edge, uint8 `[H, W, 3]`, from colours `[rows, columns, 3]` in 0..255."""
    grid = np.asarray(colours, np.uint8)
    picture = np.repeat(np.repeat(grid, TILE, axis=0), TILE, axis=1)
    picture[::TILE] = DARK
    picture[:, ::TILE] = DARK
    return picture
