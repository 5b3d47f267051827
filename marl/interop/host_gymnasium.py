"""A Gymnasium environment as a host world: one role `agent` of one agent. Importing this imports no JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import WorldError
from marl.core.host import HostRow
from marl.core.roles import RoleSpec
from marl.core.spaces import Discrete
from marl.interop import host_spaces
from marl.interop.host_rows import PLAIN, number, unpacked, write_mask
from marl.interop.host_spaces import AS_THEY_ARE
from marl.interop.pictures import Pictures

AGENT = "agent"
STEP = "(observation, reward, terminated, truncated, info)"


class GymnasiumWorld:
    """One copy. env: made, without time limit.  max_steps: where episodes are cut, None for never.  pictures: what is
    done to those.

    Raises: UserError if a space cannot be used; WorldError if the first reset goes wrong.
    """

    turn_based = False

    def __init__(self, name: str, env: Any, max_steps: int | None, pictures: Pictures = AS_THEY_ARE) -> None:
        self.name = name
        self.env = env
        self.max_steps = max_steps
        self._pictures = pictures
        self.agent_names = {AGENT: (AGENT,)}
        masked: Any
        self._space, masked = host_spaces.split_mask(env.observation_space, env.action_space)
        self._mask_in_observation = masked
        action = host_spaces.action_space(env.action_space, AGENT)
        observation = host_spaces.observation_space(self._space, AGENT, pictures)
        self._unwrap = masked and self._space is env.observation_space[host_spaces.INNER]
        _, info = unpacked(env.reset(seed=0), 2, "reset", "(observation, info)")
        if not masked and isinstance(action, Discrete):
            masked = isinstance(info, dict) and host_spaces.MASK in info
        self.masked = frozenset({AGENT} if masked else ())
        self.roles: tuple[RoleSpec, ...] = (RoleSpec(AGENT, 1, observation, action, None, max_steps),)
        self._decode = host_spaces.decoder(env.action_space)
        self._plain = isinstance(action, Discrete) and int(env.action_space.start) == 0
        self._step_env = env.step
        self._limit = max_steps if max_steps is not None else -1
        self._t = 0
        self._row: HostRow | None = None

    def reset(self, seed: int, row: HostRow) -> None:
        """See `HostWorld`. Raises: WorldError for an observation that does not fit."""
        if row is not self._row:
            self._bind(row)
        self._t = 0
        observation, info = unpacked(self.env.reset(seed=seed), 2, "reset", "(observation, info)")
        self._reward[0] = 0.0
        self._terminated[0] = self._truncated[0] = False
        self._alive[0] = True
        self._observe(observation, info)

    def step(self, actions: dict[str, NDArray[Any]], row: HostRow) -> bool:
        """See `HostWorld`. Raises: WorldError for what does not fit."""
        if row is not self._row:
            self._bind(row)
        given = actions[AGENT]
        outcome = self._step_env(given.item() if self._plain else self._decode(given)[0])
        if outcome.__class__ is not tuple or len(outcome) != 5:
            outcome = unpacked(outcome, 5, "step", STEP)
        observation, reward, terminated, truncated, info = outcome
        self._t += 1
        if reward.__class__ not in PLAIN:
            reward = number(reward, AGENT)
        terminated = bool(terminated)
        truncated = not terminated and (bool(truncated) or self._t == self._limit)
        self._reward[0] = reward
        self._terminated[0] = terminated
        self._truncated[0] = truncated
        self._alive[0] = not terminated
        if self.masked:
            self._observe(observation, info)
        else:
            self._write(observation)
        return terminated or truncated

    def render(self) -> NDArray[np.uint8]:
        """See `HostWorld`. Raises: WorldError if the world gives no picture."""
        return picture(self.env.render())

    def close(self) -> None:
        """Let go of the environment."""
        self.env.close()

    def _bind(self, row: HostRow) -> None:
        self._row = row
        self._reward, self._alive = row.reward[AGENT], row.alive[AGENT]
        self._terminated, self._truncated = row.terminated[AGENT], row.truncated[AGENT]
        self._write = host_spaces.writer(
            self._space, host_spaces.place(row.obs[AGENT], 0), AGENT, pictures=self._pictures
        )

    def _observe(self, observation: Any, info: Any) -> None:
        if self.masked:
            assert self._row is not None
            source = observation if self._mask_in_observation else info
            if not isinstance(source, dict) or host_spaces.MASK not in source:
                raise WorldError(f"agent '{AGENT}': there is no action_mask in the {self._where}, as there was before")
            # A mask at the row that ends the episode is of no use, and many worlds leave it empty there.
            ended = self._terminated[0] or self._truncated[0]
            mask = np.ones(self._row.action_mask[AGENT].shape[1], bool) if ended else source[host_spaces.MASK]
            write_mask(self._row.action_mask[AGENT][0], mask, AGENT)
            if self._unwrap:
                observation = observation[host_spaces.INNER]
        self._write(observation)

    @property
    def _where(self) -> str:
        return "observation" if self._mask_in_observation else "info"


def picture(given: Any) -> NDArray[np.uint8]:
    """What `render` returned, as `[H, W, 3]`. Raises: WorldError if it is no picture."""
    image = np.asarray(given)
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise WorldError(f"render returned {type(given).__name__} of shape {image.shape}, expected a picture [H, W, 3]")
    return np.ascontiguousarray(image[:, :, :3], np.uint8)
