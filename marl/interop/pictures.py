"""Pictures made smaller on their way into the rows. Importing this imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
GREY = np.asarray([0.299, 0.587, 0.114], np.float32)  # how bright red, green and blue look (ITU-R BT.601)
CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is done to pictures. size: rows and columns, None leaves them.  grey: one channel instead of three."""

    size: tuple[int, int] | None = None
    grey: bool = False

    def changes(self, space: object) -> bool:
        """Whether a space is of pictures that are changed: bytes `[rows, columns]` or `[rows, columns, channels]`."""
        if not isinstance(space, gymnasium.spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
            return False
        channels = space.shape[2] if len(space.shape) == 3 else 1
        return channels in CHANNELS and (self.size is not None or (self.grey and channels > 1))

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """Of a picture that is changed, afterwards."""
        rows, columns = self.size or before[:2]
        if len(before) == 2:
            return rows, columns
        return rows, columns, 1 if self.grey else before[2]

    def shrink(self, before: tuple[int, ...]) -> Callable[[Picture], NDArray[np.float32]]:
        """A function from pictures of a shape to what is left of them, whole numbers from 0 to 255."""
        grey = self.grey and len(before) == 3 and before[2] > 1
        pair = None if self.size is None else weights(before[:2], self.size)

        def smaller(channel: NDArray[Any]) -> Any:
            return channel if pair is None else pair[0] @ channel.astype(np.float32) @ pair[1]

        def shrunk(picture: NDArray[Any]) -> NDArray[np.float32]:
            if grey:
                picture = (picture[:, :, :3] @ GREY)[:, :, None]
            if picture.ndim == 2:
                return np.asarray(np.rint(smaller(picture)), np.float32)
            channels = [smaller(picture[:, :, channel]) for channel in range(picture.shape[2])]
            return np.asarray(np.rint(np.stack(channels, axis=-1)), np.float32)

        return shrunk


def weights(before: tuple[int, ...], after: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices to multiply a channel `[rows, columns]` with, from the left and from the right, to average by area."""
    return area_weights(before[0], after[0]), np.ascontiguousarray(area_weights(before[1], after[1]).T)


def area_weights(before: int, after: int) -> NDArray[np.float32]:
    """The matrix `[after, before]` that averages pixels by the area that a new pixel covers of them."""
    edges = np.arange(after + 1) * (before / after)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(before)[None, :]
    covered = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0.0, None)
    share: NDArray[np.float32] = (covered / (before / after)).astype(np.float32)
    return share
