"""Spaces at the boundary, and actions that come through it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from marl.core.spaces import Box, Discrete, MultiDiscrete
from marl.interop.spaces import ActionError, to_action, to_gymnasium


def test_every_space_has_its_counterpart() -> None:
    assert to_gymnasium(Box((2, 3), -1.0, 2.0)) == gymnasium.spaces.Box(-1.0, 2.0, (2, 3), np.float32)
    assert to_gymnasium(Box((4, 4, 3), 0, 255, "uint8")) == gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    assert to_gymnasium(Discrete(5)) == gymnasium.spaces.Discrete(5)
    assert to_gymnasium(MultiDiscrete((2, 3))) == gymnasium.spaces.MultiDiscrete([2, 3], dtype=np.int32)


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(TypeError, match="is not a space"):
        to_gymnasium(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [Box((2,), -1.0, 1.0), Box((), 0.0, 1.0), Discrete(3), MultiDiscrete((2, 3))])
def test_what_the_counterpart_samples_is_taken(space: Any) -> None:
    outside = to_gymnasium(space)
    outside.seed(0)
    for _ in range(20):
        taken = to_action(space, outside.sample(), "car_0")
        assert taken.shape == space.shape
        assert str(taken.dtype) == space.dtype


@pytest.mark.parametrize("given", [2, np.int32(2), np.int64(2), np.asarray(2), np.asarray([2]), np.uint8(2)])
def test_any_form_of_an_integer_is_taken(given: Any) -> None:
    taken = to_action(Discrete(3), given, "car_0")
    assert taken == 2
    assert taken.dtype == np.int32


def test_a_bound_that_went_through_python_floats_is_still_taken() -> None:
    bound = float(np.float32(0.1))  # a little above 0.1
    assert to_action(Box((1,), -1.0, 0.1), [bound], "car_0") == np.float32(0.1)


@pytest.mark.parametrize(
    ("space", "given", "expected"),
    [
        (Discrete(3), 3, "an integer from 0 to 2"),
        (Discrete(3), -1, "an integer from 0 to 2"),
        (Discrete(3), 1.0, "an integer from 0 to 2"),
        (Discrete(3), True, "an integer from 0 to 2"),
        (Discrete(3), "left", "an integer from 0 to 2"),
        (Discrete(3), [1, 2], "an integer from 0 to 2"),
        (Discrete(3), [[1], [1, 2]], "an integer from 0 to 2"),
        (Discrete(3), 2**70, "an integer from 0 to 2"),
        (Box((2,), -1.0, 1.0), [0.0, 1.5], r"numbers of shape \(2,\) within \[-1, 1\]"),
        (Box((2,), -1.0, 1.0), [0.0, np.nan], r"numbers of shape \(2,\) within \[-1, 1\]"),
        (Box((2,)), [0.0, np.inf], r"numbers of shape \(2,\) within \[-inf, inf\]"),
        (Box((2,), -1.0, 1.0), 0.0, r"numbers of shape \(2,\) within \[-1, 1\]"),
        (MultiDiscrete((2, 3)), [1, 3], r"2 integers, each from 0 to below \[2, 3\]"),
        (MultiDiscrete((2, 3)), [1], r"2 integers, each from 0 to below \[2, 3\]"),
    ],
)
def test_an_action_that_does_not_fit_names_the_agent_and_what_was_expected(
    space: Any, given: Any, expected: str
) -> None:
    with pytest.raises(ActionError, match=rf"agent 'car_7': action .* does not fit, expected {expected}"):
        to_action(space, given, "car_7")


def test_a_long_action_is_not_printed_in_full() -> None:
    with pytest.raises(ActionError) as error:
        to_action(Discrete(3), list(range(1000)), "car_0")
    assert len(str(error.value)) < 200
