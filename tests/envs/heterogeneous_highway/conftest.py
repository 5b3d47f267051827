"""Scenes for the tests of the highway: built by hand, in float64, with the lane axis last."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.envs.heterogeneous_highway.params import NORMAL, HighwayConfig, default_params
from marl.envs.heterogeneous_highway.state import HighwayState


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The plain Python road of `oracle.py`."""
    return neighbour("oracle")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """highway-env's road, by `reference.py`."""
    return neighbour("reference")


def neighbour(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"highway_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 while the test runs."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def scene() -> Callable[..., HighwayState]:
    """A function that builds a state from leaves `[n]` or `[n, lanes]`; what is not given is as at the start of a
    drive.
    """

    def build(x: Any, y: Any, *, agents: int = 1, dtype: Any = np.float64, **leaves: Any) -> HighwayState:
        def array(value: Any, kind: Any = dtype) -> jax.Array:
            value = np.asarray(value, kind)
            value = value[:, None] if value.ndim == 1 else value
            return jnp.asarray(np.broadcast_to(value, shape).copy())

        shape = np.asarray(x)[:, None].shape if np.ndim(x) == 1 else np.shape(x)
        lane = np.clip(np.ceil(np.asarray(y, float) / 4 - 0.5), 0, 7)
        speed = leaves.pop("speed", np.full(shape, 25.0))
        given = {
            "heading": array(leaves.pop("heading", np.zeros(shape))),
            "speed": array(speed),
            "target_speed": array(leaves.pop("target_speed", speed)),
            "target_lane": array(leaves.pop("target_lane", lane), np.int32),
            "timer": array(leaves.pop("timer", np.zeros(shape))),
            "exponent": array(leaves.pop("exponent", np.full(shape, 4.0))),
            "kind": array(leaves.pop("kind", np.full(shape, NORMAL)), np.int32),
            "crashed": array(leaves.pop("crashed", np.zeros(shape)), bool),
            "struck": array(leaves.pop("struck", np.zeros(shape)), bool),
            "push_x": array(leaves.pop("push_x", np.zeros(shape))),
            "push_y": array(leaves.pop("push_y", np.zeros(shape))),
        }
        assert not leaves, f"no such leaves: {leaves}"
        lanes = shape[1]
        return HighwayState(
            x=array(x),
            y=array(y),
            time=jnp.zeros(lanes, jnp.int32),
            ended=jnp.zeros((agents, lanes), bool),
            driven=jnp.zeros((agents, lanes), jnp.int32),
            driven_distance=jnp.zeros((agents, lanes), dtype),
            **given,
        )

    return build


@pytest.fixture
def drivers_of() -> Callable[..., Any]:
    """A function that gives the table of temperaments by vehicle, in float64, as the published code writes it."""

    def table(state: HighwayState, **options: Any) -> Any:
        params = default_params(HighwayConfig(**options))
        return jax.tree.map(lambda leaf: jnp.asarray(exact(leaf))[state.kind], params.drivers)

    return table


def exact(leaf: jax.Array) -> np.ndarray:
    """The decimal number that a float32 stands for (0.2 for float32(0.2)), in float64."""
    return np.asarray([float(str(value)) for value in np.ravel(np.asarray(leaf))]).reshape(leaf.shape)


@pytest.fixture
def exact_params() -> Callable[..., Any]:
    """A function that gives the default parameters in float64 for a batch of one lane (axis last)."""

    def build(**options: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(exact(leaf))[..., None], default_params(HighwayConfig(**options)))

    return build
