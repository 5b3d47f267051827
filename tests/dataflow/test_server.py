"""The policy server: whoever shares a batch, whatever it is padded to, and several policies and versions at hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from marl.core.host_rows import RowBlock, RowSpec
from marl.core.inference import start_lanes, time_step_arrays
from marl.dataflow.server import PolicyServer, Request

from .tiny import Tiny
from .tiny_host import TinyHost

LANES = 2
WORLD: Any = TinyHost()
SPEC = RowSpec.of(WORLD)
CAST = {"a": Tiny(WORLD.roles[:1]), "b": Tiny(WORLD.roles[1:])}


def server(**options: Any) -> PolicyServer:
    made = PolicyServer(CAST, {}, **options)
    for version in (0, 1):
        for name, policy in CAST.items():
            made.load(name, version, policy.init(jax.random.key(version)).params)
    return made


def request(number: int, version: int = 0) -> Request:
    block = RowBlock(SPEC, LANES)
    for lane in range(LANES):
        WORLD.reset(10 * number + lane, block.host_row(lane))
    memory, _ = start_lanes(CAST, jax.random.split(jax.random.key(number), LANES))
    return Request({"a": version, "b": version}, memory, time_step_arrays(block.step))


def actions(answer: Any) -> list[Any]:
    return [np.asarray(x) for x in jax.tree.leaves((answer[1].action, answer[1].seed, answer[0].carry))]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_an_answer_does_not_depend_on_who_else_asks(count: int) -> None:
    asked = [request(number) for number in range(count)]
    alone, together = server(together=False), server(together=True)
    for one, other in zip(alone.act(asked), together.act(asked), strict=True):
        for a, b in zip(actions(one), actions(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert alone.calls == count
    assert together.calls == 1


def test_requests_of_different_versions_are_answered_by_their_own() -> None:
    asked = [request(0, version=0), request(0, version=1), request(1, version=0)]
    made = server(together=True)
    mixed = made.act(asked)
    assert made.calls == 2
    for one, own in zip(mixed, asked, strict=True):
        for a, b in zip(actions(one), actions(server().act([own])[0]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_versions_that_nobody_uses_are_forgotten() -> None:
    made = server()
    made.unload("a", keep={1})
    assert made.held("a") == [1]
    assert made.held("b") == [0, 1]
    with pytest.raises(KeyError):
        made.params({"a": 0})
