"""The cart and pole of Barto, Sutton & Anderson (1983), as in Gymnasium's CartPole-v1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import NDArray
from pydantic import Field

from marl.core.config import EnvConfig
from marl.core.spaces import Box, Discrete
from marl.core.types import ByRole, Key, RoleSpec, TimeStep

if TYPE_CHECKING:  # an accelerator machine may lack it
    from jaxtyping import Float, Int

STEP_S = 0.02  # time between two rows [s]
MAX_POSITION_M = 2.4  # the episode terminates beyond this distance from the centre
MAX_ANGLE_RAD = 12 * 2 * math.pi / 360  # and beyond this angle from the vertical
START = 0.05  # every number of the first state is uniform in [-START, START)


class CartPoleConfig(EnvConfig):
    """steps: length at which an episode is truncated [steps]."""

    steps: int = Field(default=500, ge=1, le=1_000_000)


@struct.dataclass
class CartPoleParams:
    """gravity_mps2, cart_kg, pole_kg, half_pole_m (pivot to centre of mass), force_n: f32 scalars."""

    gravity_mps2: jax.Array
    cart_kg: jax.Array
    pole_kg: jax.Array
    half_pole_m: jax.Array
    force_n: jax.Array


@struct.dataclass
class CartPoleState:
    """motion: position [m], speed [m/s], angle [rad], spin [rad/s], f32 `[4]`.  t: steps made, i32 scalar."""

    motion: jax.Array
    t: jax.Array


def advance(
    motion: Float[jax.Array, " 4"], action: Int[jax.Array, ""], params: CartPoleParams
) -> Float[jax.Array, " 4"]:
    """The motion one step later, in the dtype of `motion`. action: 0 pushes left, 1 pushes right.

    Accelerations from Florian (2007), "Correct equations for the dynamics of the cart-pole system", without friction;
    explicit Euler: positions move with the velocities from before the step.
    """
    _, speed, angle, spin = motion
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    total = params.cart_kg + params.pole_kg
    moment = params.pole_kg * params.half_pole_m
    push = (jnp.where(action == 1, params.force_n, -params.force_n) + moment * spin * spin * sin) / total
    turn = (params.gravity_mps2 * sin - cos * push) / (
        params.half_pole_m * (4.0 / 3.0 - params.pole_kg * cos * cos / total)
    )
    pull = push - moment * turn * cos / total
    return motion + STEP_S * jnp.stack([speed, pull, spin, turn])


class CartPole:
    """Keep a pole upright by pushing its cart left or right; 1 is paid for every step, the one that falls included.

    Role `cart` of size 1; observation `[4]` is the motion. Terminates out of bounds, is truncated after `steps`. Known
    answers: best return `steps` (500); a uniformly random policy has about 22.
    """

    Config: ClassVar[type[EnvConfig]] = CartPoleConfig
    lane_axis: ClassVar[int] = 0
    render_fps: ClassVar[int] = round(1 / STEP_S)

    def __init__(self, **options: Any) -> None:
        self.config = CartPoleConfig(**options)

    @property
    def max_steps(self) -> int | None:
        return self.config.steps

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("cart", 1, Box((4,)), Discrete(2), max_steps=self.config.steps),)

    @property
    def default_params(self) -> CartPoleParams:
        return CartPoleParams(
            gravity_mps2=jnp.asarray(9.8, jnp.float32),
            cart_kg=jnp.asarray(1.0, jnp.float32),
            pole_kg=jnp.asarray(0.1, jnp.float32),
            half_pole_m=jnp.asarray(0.5, jnp.float32),
            force_n=jnp.asarray(10.0, jnp.float32),
        )

    def reset(self, key: Key, params: CartPoleParams) -> tuple[CartPoleState, TimeStep]:
        motion = jax.random.uniform(key, (4,), jnp.float32, -START, START)
        no, yes = jnp.zeros(1, bool), jnp.ones(1, bool)
        row = TimeStep(
            obs={"cart": motion[None]},
            reward={"cart": jnp.zeros(1, jnp.float32)},
            terminated={"cart": no},
            truncated={"cart": no},
            alive={"cart": yes},
            first=yes[0],
            last=no[0],
            info={"reward/cart/upright": jnp.zeros((), jnp.float32)},
        )
        return CartPoleState(motion=motion, t=jnp.zeros((), jnp.int32)), row

    def step(
        self, key: Key, state: CartPoleState, actions: ByRole, params: CartPoleParams
    ) -> tuple[CartPoleState, TimeStep]:
        motion = advance(state.motion, actions["cart"][0], params)
        t = state.t + 1
        fell = (jnp.abs(motion[0]) > MAX_POSITION_M) | (jnp.abs(motion[2]) > MAX_ANGLE_RAD)
        out_of_time = (t >= self.config.steps) & ~fell
        row = TimeStep(
            obs={"cart": motion[None]},
            reward={"cart": jnp.ones(1, jnp.float32)},
            terminated={"cart": fell[None]},
            truncated={"cart": out_of_time[None]},
            alive={"cart": ~fell[None]},
            first=jnp.zeros((), bool),
            last=fell | out_of_time,
            info={"reward/cart/upright": jnp.ones((), jnp.float32)},
        )
        return CartPoleState(motion=motion, t=t), row

    def render(self, state: CartPoleState, params: CartPoleParams) -> NDArray[np.uint8]:
        """The cart on its track and the pole in its whole length, drawn to scale: 2.4 m are 200 pixels."""
        x, _, angle, _ = np.asarray(state.motion, np.float64)
        picture = np.full((160, 440, 3), 245, np.uint8)
        picture[128:130] = (120, 124, 132)
        scale = 200 / MAX_POSITION_M
        centre = 220 + x * scale
        rows, columns = np.mgrid[0:160, 0:440].astype(np.float64)
        picture[(np.abs(columns - centre) <= 22) & (np.abs(rows - 122) <= 9)] = (40, 44, 52)
        length = 2 * float(params.half_pole_m) * scale
        along = (columns - centre) * np.sin(angle) - (rows - 116) * np.cos(angle)
        across = (columns - centre) * np.cos(angle) + (rows - 116) * np.sin(angle)
        picture[(np.abs(across) <= 3) & (along >= 0) & (along <= length)] = (200, 130, 60)
        return picture
