"""Pictures on their way into the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.core.host_rows import RowBlock, RowSpec
from marl.core.spaces import Box
from marl.interop.pictures import Pictures
from marl.interop.worlds import make_world

TINY = Path(__file__).with_name("tiny_worlds.py")


@pytest.mark.parametrize(
    ("options", "shape", "means"),
    [
        ({"resize": [3, 4]}, (3, 4, 3), (40.0, 80.0, 120.0)),
        ({"resize": 5, "grey": True}, (5, 5, 1), (73.0,)),
        ({"grey": True}, (12, 8, 1), (73.0,)),
        ({}, (12, 8, 3), (40.0, 80.0, 120.0)),
    ],
)
def test_pictures_are_made_smaller(options: dict[str, Any], shape: tuple[int, ...], means: tuple[float, ...]) -> None:
    world = make_world(f"gymnasium:{TINY}:Painting", options)
    assert world.roles[0].observation_space == Box(shape, 0.0, 255.0, "uint8")
    row = RowBlock(RowSpec.of(world), 1).host_row(0)
    world.reset(0, row)
    picture = row.obs["agent"][0]
    assert picture.shape == shape
    assert picture.mean(axis=(0, 1)) == pytest.approx(means, abs=1.0)


def test_a_picture_is_averaged_by_area() -> None:
    squares = np.kron(np.asarray([[10, 20], [30, 40]], np.uint8), np.ones((6, 9), np.uint8))
    assert Pictures((2, 2)).shrink((12, 18))(squares).tolist() == [[10, 20], [30, 40]]
    assert Pictures((3, 1)).shrink((12, 18))(squares).tolist() == [[15], [25], [35]]
