"""The usual preprocessing of Atari games, straight on the emulator. Importing this imports no JAX.

Machado et al. 2018 (Revisiting the Arcade Learning Environment) and Mnih et al. 2015: up to 30 no-ops at the start, an
action repeated for four frames, the pixelwise maximum of the last two, grey, 84 x 84 by area, the last four of these,
the sign of the reward. Frames are stacked as channels, the newest last.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from marl.core.errors import UserError
from marl.interop.pictures import weights


class AtariOptions(Protocol):
    """The options of `worlds.WorldConfig` that are read here."""

    @property
    def frame_skip(self) -> int: ...
    @property
    def frame_stack(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def noops(self) -> int: ...
    @property
    def sticky(self) -> float: ...
    @property
    def life_loss(self) -> bool: ...
    @property
    def clip_reward(self) -> bool: ...


def arguments() -> dict[str, Any]:
    """What the game itself has to be made with: single grey frames. That actions stick is done here, as the emulator
    takes a seed only with its game, which takes a tenth of a second to load."""
    return {"frameskip": 1, "obs_type": "grayscale", "repeat_action_probability": 0.0}


class AtariGame(gymnasium.Env[NDArray[np.uint8], int]):
    """A game as networks see it, uint8 `[size, size, frame_stack]`.

    env: of ale-py, made with `arguments`. The episode ends with the game, or with the first life if `life_loss`.
    Raises: UserError for games whose actions are continuous.
    """

    def __init__(self, env: Any, options: AtariOptions) -> None:
        self.env = env
        self.options = options
        self.render_mode = env.render_mode
        game = env.unwrapped
        if not isinstance(game.action_space, gymnasium.spaces.Discrete):
            raise UserError("the preprocessing of Atari games needs Discrete actions; expected continuous: false")
        self._ale = game.ale
        self._actions = list(game._action_set)
        height, width = self._ale.getScreenDims()
        self._rows, self._columns = weights((height, width), (options.size, options.size))
        self._frames = np.zeros((2, height, width), np.uint8)  # the last two
        self._stack = np.zeros((options.size, options.size, options.frame_stack), np.uint8)
        self.action_space = game.action_space
        self.observation_space = gymnasium.spaces.Box(0, 255, self._stack.shape, np.uint8)
        self._lives = 0
        self._random = np.random.default_rng()
        self._held = self._actions[0]  # the action that the emulator last got
        env.reset()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new game, some no-ops in."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        ale, most, self._held = self._ale, self.options.noops, self._actions[0]
        ale.reset_game()
        for _ in range(int(self._random.integers(1, most + 1)) if most else 0):
            ale.act(self._held)
            if ale.game_over():
                ale.reset_game()
        self._lives = ale.lives()
        ale.getScreenGrayscale(self._frames[0])
        self._stack[...] = self._shrunk(self._frames[0])[..., None]
        return self._stack, {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One action, for several frames."""
        ale, skip, chosen = self._ale, self.options.frame_skip, self._actions[action]
        reward, seen, sticky = 0.0, 0, self.options.sticky
        for frame in range(skip):
            if not sticky or self._random.random() >= sticky:
                self._held = chosen
            reward += ale.act(self._held)
            over = ale.game_over()
            if frame >= skip - 2 or over:
                ale.getScreenGrayscale(self._frames[seen % 2])
                seen += 1
            if over:
                break
        newest = self._frames[0] if seen == 1 else np.maximum(self._frames[0], self._frames[1])
        self._stack[..., :-1] = self._stack[..., 1:]
        self._stack[..., -1] = self._shrunk(newest)
        terminated = bool(ale.game_over(with_truncation=False)) or (
            self.options.life_loss and ale.lives() < self._lives
        )
        if self.options.clip_reward:
            reward = float(np.sign(reward))
        return self._stack, reward, terminated, bool(ale.game_truncated()), {}

    def render(self) -> Any:
        """The screen in colour, as it is."""
        return self.env.render()

    def close(self) -> None:
        """Let go of the emulator."""
        self.env.close()

    def _shrunk(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        shrunk: NDArray[np.float32] = np.rint(self._rows @ frame.astype(np.float32) @ self._columns)
        return shrunk
