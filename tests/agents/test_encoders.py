"""Pictures in observations: which arrays are taken for one, what reads them, and that both networks learn to see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from marl.agents.networks.config import NetworkConfig
from marl.agents.networks.encoders import Encoder, find_pictures
from marl.agents.networks.observations import flat_size, flatten
from marl.agents.ppo.algorithm import MAPPO, PPO
from marl.agents.ppo.config import MAPPOConfig, PPOConfig
from marl.core.errors import UserError
from marl.core.prng import stream
from marl.core.spaces import Box, Dict, Discrete
from marl.core.types import RoleSpec

BYTES = {"low": 0.0, "high": 255.0, "dtype": "uint8"}
SMALL_CNN: dict[str, Any] = {"cnn_channels": (3,), "cnn_kernels": (4,), "cnn_strides": (4,), "cnn_features": 5}


@pytest.mark.parametrize(
    ("space", "encoder", "found"),
    [
        (Box((84, 84, 3), **BYTES), "auto", [False]),
        (Box((4, 84, 84), **BYTES), "auto", [True]),
        (Box((84, 84), **BYTES), "auto", [False]),
        (Box((3, 16, 16)), "auto", [True]),
        (Box((84, 84)), "auto", []),
        (Box((10, 10, 4)), "auto", []),
        (Box((10, 10, 4)), "cnn", [False]),
        (Box((4, 84, 84), **BYTES), "mlp", []),
        (Box((200,)), "cnn", []),
        (Discrete(3), "cnn", []),
        (
            Dict.of({"eye": Box((16, 16, 1)), "body": Box((4,)), "map": Dict.of({"far": Box((3, 20, 20))})}),
            "auto",
            [False, True],
        ),
    ],
)
def test_what_looks_like_a_picture_is_read_as_one(space: Any, encoder: Any, found: list[bool]) -> None:
    pictures = find_pictures(space, NetworkConfig(encoder=encoder))
    assert [picture.channels_first for picture in pictures] == found


@pytest.mark.parametrize(
    ("side", "channels", "features"), [(84, (32, 64, 64), 512), (32, (16, 32, 32), 256), (10, (16,), 128)]
)
def test_the_size_of_a_picture_chooses_the_convolutions(side: int, channels: tuple[int, ...], features: int) -> None:
    (picture,) = find_pictures(Box((side, side, 2)), NetworkConfig(encoder="cnn"))
    assert tuple(layer.channels for layer in picture.layers) == channels
    assert picture.features == features
    if side == 84:  # Mnih et al. 2015: 7 x 7 x 64 into the linear layer
        shapes = jax.eval_shape(lambda k: Encoder((picture,)).init(k, jnp.zeros((1, 84 * 84 * 2))), stream(0, "init"))
        assert shapes["params"]["CNN_0"]["Dense_0"]["kernel"].shape == (3136, 512)


def test_a_large_picture_is_made_smaller_before_the_wide_layer() -> None:
    """A screen of 210 x 160 gets one more convolution: 10 x 7 x 64 numbers are left instead of 22 x 16 x 64."""
    (picture,) = find_pictures(Box((210, 160, 3), **BYTES), NetworkConfig())
    assert [layer.stride[0] for layer in picture.layers] == [4, 2, 1, 2]
    shapes = jax.eval_shape(lambda k: Encoder((picture,)).init(k, jnp.zeros((1, 210 * 160 * 3))), stream(0, "init"))
    assert shapes["params"]["CNN_0"]["Dense_0"]["kernel"].shape == (10 * 7 * 64, 512)


def test_pictures_are_found_where_the_flat_vector_holds_them() -> None:
    """Both layouts give the same picture, and what is not a picture stays where it is."""
    spaces = {"a": Box((2,)), "b": Box((18, 16, 3), **BYTES), "c": Discrete(3), "d": Box((3, 18, 16), **BYTES)}
    space = Dict.of(spaces)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 18, 16, 3)).astype(np.uint8)
    x = {
        "a": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
        "b": jnp.asarray(pixels),
        "c": jnp.asarray(rng.integers(0, 3, 5), jnp.int32),
        "d": jnp.asarray(np.moveaxis(pixels, -1, 1)),
    }
    pictures = find_pictures(space, NetworkConfig(**SMALL_CNN))
    flat = flatten(space, x)
    assert [picture.start for picture in pictures] == [2, 2 + 18 * 16 * 3 + 3]
    for picture in pictures:
        np.testing.assert_allclose(picture.cut_out(flat), pixels / 255.0, rtol=1e-6)

    tail = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)  # last action and id, behind the observation
    encoder, whole = Encoder(pictures), jnp.concatenate([flat, tail], axis=-1)
    params = encoder.init(stream(0, "init"), whole)
    params["params"]["CNN_1"] = params["params"]["CNN_0"]
    out = np.asarray(encoder.apply(params, whole))
    assert out.shape == (5, 2 + 5 + 3 + 5 + 4)
    np.testing.assert_array_equal(out[:, :2], x["a"])
    np.testing.assert_array_equal(out[:, 7:10], jax.nn.one_hot(x["c"], 3))
    np.testing.assert_array_equal(out[:, -4:], tail)
    np.testing.assert_allclose(out[:, 2:7], out[:, 10:15], rtol=1e-5, atol=1e-6)
    assert out[:, 2:7].any()


SEEING = RoleSpec("eye", 2, Dict.of({"pixels": Box((3, 16, 16), **BYTES), "speed": Box((2,))}), Discrete(3))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("options", [{"recurrent": True}, {"sharing": "role"}], ids=["recurrent", "shared"])
def test_actor_and_critic_learn_to_see(rollout: Any, options: dict[str, Any]) -> None:
    config = PPOConfig(**SMALL_CNN, **options, hidden_sizes=(8,), gru_size=4, rollout=4, epochs=1, minibatches=2)
    algorithm = PPO(config, (SEEING,))
    state = rollout.draw_state(algorithm)
    batch = rollout(algorithm, state, rows=4, lanes=2)
    assert batch.step.obs["eye"]["pixels"].dtype == jnp.uint8
    new, metrics = jax.jit(algorithm.update)(state, batch, stream(0, "update"))
    assert all(np.isfinite(value) for value in metrics.values())
    for kind in ("actor", "critic"):
        before, after = (s.params[kind]["eye"]["encoder"]["CNN_0"] for s in (state, new))
        for layer in ("Conv_0", "Dense_0"):
            moved = np.abs(after[layer]["kernel"] - before[layer]["kernel"]).max(
                axis=(*range(1, before[layer]["kernel"].ndim),)
            )
            assert (moved > 0).all(), (kind, layer)


def test_a_central_critic_sees_a_picture_of_the_world() -> None:
    spec = RoleSpec("car", 2, Box((3,)), Discrete(2), Box((16, 16, 2), **BYTES))
    algorithm = MAPPO(MAPPOConfig(**SMALL_CNN), (spec,))
    params = jax.eval_shape(algorithm.init, stream(0, "init")).params
    assert "encoder" in params["critic"]["central"]
    assert "encoder" not in params["actor"]["car"]
    assert flat_size(spec.state_space) == 512


def test_convolutions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"convolution 2 has a kernel of \(3, 3\), but the picture of \(16, 16\) is \(2, 2\)"
    ):
        find_pictures(Box((16, 16, 1)), NetworkConfig(cnn_channels=(4, 4), cnn_kernels=(8, 3), cnn_strides=(8, 1)))
    with pytest.raises(UserError, match="encoder: cnn needs a Box of two or three axes, but role 'car'"):
        PPO(PPOConfig(encoder="cnn"), (RoleSpec("car", 1, Box((3,)), Discrete(2)),))
    for wrong in ({"cnn_kernels": (3,)}, {"cnn_channels": (8, 8), "cnn_strides": (2,)}, {"cnn_channels": (0,)}):
        with pytest.raises(ValidationError):
            NetworkConfig.model_validate(wrong)
    oblong = NetworkConfig(encoder="cnn", cnn_channels=(8,), cnn_kernels=((5, 3),), cnn_strides=((2, 1),))
    assert find_pictures(Box((41, 5, 6)), oblong)[0].layers[0].kernel == (5, 3)
