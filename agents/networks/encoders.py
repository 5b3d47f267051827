"""Pictures in a flat input vector: where they lie, and the convolutions that read them."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from marl.core.errors import UserError
from marl.core.spaces import Box, Dict, ObservationSpace
from marl.core.types import Array

from .config import NetworkConfig
from .initialisers import orthogonal
from .observations import flat_size

SMALLEST_SIDE = 16  # of what is taken for a picture without being told
WIDEST = 8192  # numbers that convolutions chosen here may leave; the linear layer after them has 512 weights for each

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One layer, without padding. kernel, stride: (rows, columns)."""

    channels: int
    kernel: Pair
    stride: Pair


@dataclasses.dataclass(frozen=True)
class Picture:
    """Elements `start` to `start + size` of a flat vector, a picture of the given shape (as observed), and what reads
    it. channels_first: the shape is (channels, rows, columns)."""

    start: int
    shape: tuple[int, int, int]
    channels_first: bool
    layers: tuple[Convolution, ...]
    features: int

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape)

    def cut_out(self, x: Array) -> Array:
        """From `[..., d]`, the picture `[..., rows, columns, channels]`."""
        picture = x[..., self.start : self.end].reshape(*x.shape[:-1], *self.shape)
        return jnp.moveaxis(picture, -3, -1) if self.channels_first else picture


# By the shorter side, from which on: channels, kernels, strides, width. 64: Mnih et al. 2015; below 16: Young and Tian
# 2019 (MinAtar).
_AUTO: tuple[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int], ...] = (
    (64, (32, 64, 64), (8, 4, 3), (4, 2, 1), 512),
    (SMALLEST_SIDE, (16, 32, 32), (4, 3, 3), (2, 2, 1), 256),
    (0, (16,), (3,), (1,), 128),
)


def find_pictures(space: ObservationSpace, config: NetworkConfig, start: int = 0) -> tuple[Picture, ...]:
    """The pictures in `flatten(space, x)`, whose first element is number `start`, in their order.

    Raises: UserError if the convolutions of the options do not fit on one of them.
    """
    if isinstance(space, Dict):
        found: tuple[Picture, ...] = ()
        for _, part in space.items:
            found += find_pictures(part, config, start)
            start += flat_size(part)
        return found
    if not isinstance(space, Box) or not _is_picture(space, config):
        return ()
    shape = space.shape if len(space.shape) == 3 else (*space.shape, 1)
    channels_first = shape[0] < shape[2]
    rows, columns = shape[1:] if channels_first else shape[:2]
    layers, features = _layers(config, (rows, columns))
    return (Picture(start, (shape[0], shape[1], shape[2]), channels_first, layers, features),)


def _is_picture(space: Box, config: NetworkConfig) -> bool:
    shape = space.shape
    if config.encoder == "mlp" or len(shape) not in (2, 3):
        return False
    if config.encoder == "cnn":
        return True
    return sorted(shape)[-2] >= SMALLEST_SIDE and (len(shape) == 3 or space.dtype == "uint8")


def _layers(config: NetworkConfig, sides: Pair) -> tuple[tuple[Convolution, ...], int]:
    """The convolutions for a picture of these sides, and the width after them."""
    _, channels, kernels, strides, features = next(row for row in _AUTO if min(sides) >= row[0])
    layers = [Convolution(c, (k, k), (s, s)) for c, k, s in zip(channels, kernels, strides, strict=True)]
    if config.cnn_channels is not None:
        count = len(config.cnn_channels)
        sizes, steps = config.cnn_kernels or (3,) * count, config.cnn_strides or (1,) * count
        own = zip(config.cnn_channels, sizes, steps, strict=True)
        layers = [Convolution(c, _pair(k), _pair(s)) for c, k, s in own]
    left = sides
    for number, layer in enumerate(layers, 1):
        if left[0] < layer.kernel[0] or left[1] < layer.kernel[1]:
            raise UserError(
                f"convolution {number} has a kernel of {layer.kernel}, but the picture of {sides} is {left} there; "
                "set cnn_channels, cnn_kernels and cnn_strides"
            )
        left = _left(left, layer)
    more = Convolution(layers[-1].channels, (3, 3), (2, 2))
    while config.cnn_channels is None and math.prod(left) * more.channels > WIDEST and min(left) >= 3:
        layers.append(more)
        left = _left(left, more)
    return tuple(layers), config.cnn_features or features


def _left(sides: Pair, layer: Convolution) -> Pair:
    """The sides after a convolution."""
    (rows, columns), (tall, wide), (down, across) = sides, layer.kernel, layer.stride
    return (rows - tall) // down + 1, (columns - wide) // across + 1


def _pair(sides: int | Pair) -> Pair:
    return (sides, sides) if isinstance(sides, int) else sides


class CNN(nn.Module):
    """Convolutions and a linear layer, each with ReLU: `[N, rows, columns, channels]` to `[N, features]`."""

    layers: tuple[Convolution, ...]
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = nn.relu(
                nn.Conv(
                    layer.channels,
                    layer.kernel,
                    layer.stride,
                    padding="VALID",
                    kernel_init=orthogonal(math.sqrt(2.0)),
                )(x)
            )
        # Some thousand inputs wide: orthogonal weights would take seconds to draw.
        wide = nn.Dense(self.features, kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
        return nn.relu(wide(x.reshape(x.shape[0], -1)))


class Encoder(nn.Module):
    """Every picture in `[..., d]` replaced by its features, the rest as it is."""

    pictures: tuple[Picture, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts, done = [], 0
        for picture in self.pictures:
            pixels = picture.cut_out(x)
            features = CNN(picture.layers, picture.features)(pixels.reshape(-1, *pixels.shape[-3:]))
            parts += [x[..., done : picture.start], features.reshape(*x.shape[:-1], -1)]
            done = picture.end
        return jnp.concatenate([*parts, x[..., done:]], axis=-1)
