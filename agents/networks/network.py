"""The one network of actors and critics: pictures encoded, torso, memory, linear head."""

from __future__ import annotations

import flax.linen as nn

from marl.core.types import Array

from .config import Activation, NetworkConfig
from .encoders import Encoder, Picture
from .recurrent import GRU
from .torsos import MLP, dense, layer_norm


class Network(nn.Module):
    """Encoder of the pictures in the input, torso, optional GRU (then LayerNorm if the torso has it), linear head.

    log_std: also a vector for Gaussians.
    """

    outputs: int
    head_gain: float
    hidden_sizes: tuple[int, ...]
    activation: Activation
    normalise: bool
    gru_size: int = 0
    log_std: bool = False
    pictures: tuple[Picture, ...] = ()

    def setup(self) -> None:
        if self.pictures:
            self.encoder = Encoder(self.pictures)
        self.torso = MLP(self.hidden_sizes, self.activation, self.normalise)
        if self.gru_size:
            self.gru = GRU(self.gru_size)
        if self.gru_size and self.normalise:
            self.norm = layer_norm()
        self.head = dense(self.outputs, self.head_gain)
        if self.log_std:
            self.param("log_std", nn.initializers.zeros_init(), (self.outputs,))

    def _features(self, x: Array) -> Array:
        features: Array = self.torso(self.encoder(x) if self.pictures else x)
        return features

    def step(self, x: Array, hidden: Array | None) -> tuple[Array, Array | None]:
        """Outputs `[..., outputs]` and the next hidden state for one row of inputs `[..., d]`."""
        x = self._features(x)
        if hidden is not None:
            hidden = x = self.gru(hidden, x)
            x = self.norm(x) if self.normalise else x
        return self.head(x), hidden

    def unroll(self, x: Array, hidden: Array | None, first: Array) -> Array:
        """Outputs `[T, B, outputs]` for inputs `[T, B, d]`; the state is reset where `first` (bool `[T, B]`).

        Without a GRU the leading axes are free.
        """
        lead = x.shape[:-1]
        x = self._features(x.reshape(-1, x.shape[-1]))  # one row axis: gradients of weights are then plain products
        if hidden is not None:
            x = self.gru.unroll(hidden, x.reshape(*lead, -1), first).reshape(-1, self.gru_size)
            x = self.norm(x) if self.normalise else x
        output: Array = self.head(x)
        return output.reshape(*lead, self.outputs)


def make_network(
    config: NetworkConfig,
    outputs: int,
    head_gain: float,
    recurrent: bool,
    log_std: bool = False,
    pictures: tuple[Picture, ...] = (),
) -> Network:
    """A network as the options say. pictures: where they lie in its input (`encoders.find_pictures`)."""
    return Network(
        outputs=outputs,
        head_gain=head_gain,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        normalise=config.layer_norm,
        gru_size=config.gru_size if recurrent else 0,
        log_std=log_std,
        pictures=pictures,
    )
