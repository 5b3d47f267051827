"""Served inference: the numbers of a server in this process, from one elsewhere, whatever happens to it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from marl.dataflow.link_frames import LinkError
from marl.dataflow.link_server import LinkServer, private_folder
from marl.dataflow.served import InferenceLoop, ServedClient, ServedForms, UnknownVersionError
from marl.dataflow.server import PolicyServer

from .test_server import CAST, LANES, SPEC, request, server

FORMS = ServedForms.of(CAST, ["b", "a"], {}, SPEC, LANES)
PARAMS = {
    (name, version): policy.init(jax.random.key(version)).params
    for name, policy in CAST.items()
    for version in (0, 1, 2)
}
LIMIT_S = 20.0


@pytest.fixture
def made() -> Iterator[Callable[[Any], Any]]:
    """Closes what a test made, in reverse."""
    things: list[Any] = []

    def keep(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield keep
    for thing in reversed(things):
        thing.close()


def loop(*, together: bool = False, **options: Any) -> InferenceLoop:
    """Serves versions 0 and 1 of both policies."""
    own = {name: options.pop(name) for name in ("wait_s", "most") if name in options}
    return InferenceLoop(server(together=together), LinkServer(FORMS.request, FORMS.answer, **options), FORMS, **own)


def client(served: InferenceLoop, wire: str = "ipc", **options: Any) -> ServedClient:
    return ServedClient(served.link.endpoints[wire].plain(), FORMS, **options)


def talk(served: InferenceLoop, asking: ServedClient, wanted: int = 1) -> dict[int, Any]:
    answers: dict[int, Any] = {}
    until = time.monotonic() + LIMIT_S
    while len(answers) < wanted and time.monotonic() < until:
        served.step(0.002)
        answers |= dict(asking.poll(0.002))
    assert len(answers) == wanted
    return answers


def assert_same(one: Any, other: Any) -> None:
    """Trees of the same form, and bit-equal."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert np.asarray(a).dtype == np.asarray(b).dtype


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_served_answers_are_those_of_a_server_in_this_process(made: Any, together: bool, wire: str) -> None:
    served = made(loop(together=together, tcp="127.0.0.1"))
    asking = made(client(served, wire))
    memory, at_home = request(3).memory, server()
    for row in range(3):  # what lanes keep travels with the requests
        asked = {slot: request(10 * row + slot, version=slot % 2) for slot in (0, 1, 5)}
        asked[5] = type(asked[5])(asked[5].versions, memory, asked[5].step)
        asking.ask(list(asked.items()))
        answers = talk(served, asking, wanted=3)
        for slot, own in asked.items():
            assert_same(answers[slot], at_home.act([own])[0])
        memory = answers[5][0]
    assert served.counters()["answered"] == 9


def load(served: Any, version: int) -> Any:
    for name in CAST:
        served.load(name, version, PARAMS[name, version])
    return served


def test_what_is_queued_shares_a_call(made: Any) -> None:
    served = made(loop(together=True, most=4))
    asking = made(client(served))
    asked = {slot: request(slot, version=2) for slot in range(7)}
    asking.ask(list(asked.items()))
    until = time.monotonic() + LIMIT_S
    while served.counters()["waiting"] < 7 and time.monotonic() < until:
        asking.poll(0.0)
        served.step(0.002)
    load(served, 2)
    assert served.step(0.002) == 7
    assert served.calls == 2  # of four, and of three
    at_home = load(PolicyServer(CAST, {}), 2)
    answers = talk(served, asking, wanted=7)
    for slot, own in asked.items():
        assert_same(answers[slot], at_home.act([own])[0])


def test_a_request_waits_for_its_version(made: Any) -> None:
    served = made(loop())
    asking = made(client(served))
    asking.ask([(0, request(0, version=2)), (1, request(1))])
    assert list(talk(served, asking)) == [1]
    for _ in range(3):
        assert served.step(0.002) == 0
    assert served.counters()["waiting"] == 1
    served.load("a", 2, PARAMS["a", 2])
    assert served.step(0.002) == 0  # one of two
    served.load("b", 2, PARAMS["b", 2])
    at_home = load(PolicyServer(CAST, {}), 2)
    assert_same(talk(served, asking)[0], at_home.act([request(0, version=2)])[0])


def test_a_version_that_is_gone_or_never_comes_is_unknown(made: Any) -> None:
    served = made(loop(wait_s=0.05))
    asking = made(client(served))
    served.unload("a", keep={1})
    served.step(0.0)
    asking.ask([(0, request(0, version=0)), (1, request(1, version=7)), (2, request(2, version=1))])
    words, answers = [], {}
    until = time.monotonic() + LIMIT_S
    while len(words) < 2 and time.monotonic() < until:
        served.step(0.01)
        try:
            answers |= dict(asking.poll(0.002))
        except UnknownVersionError as unknown:
            words.append((unknown.slot, str(unknown)))
    assert words[0][0] == 0
    assert "no version 0 of policy a: older than 1" in words[0][1]
    assert words[1][0] == 1
    assert "version 7" in words[1][1]
    assert list(answers or talk(served, asking)) == [2]
    assert asking.link.open == []


def test_what_the_server_has_no_parameters_for_is_answered_here(made: Any) -> None:
    served = made(loop())
    asking = made(client(served, fallback=server()))
    served.unload("a", keep={1})
    served.step(0.0)
    asking.ask([(0, request(0, version=0)), (1, request(1, version=1))])
    answers = talk(served, asking, wanted=2)
    for slot in (0, 1):
        assert_same(answers[slot], server().act([request(slot, version=slot)])[0])
    assert asking.answered_here == 1


def test_what_a_dead_server_took_is_answered_by_the_next_and_two_actors_do_not_mix(made: Any) -> None:
    folder = private_folder()
    first = loop(folder=folder)
    actors = [made(client(first, resend_s=3600.0, probe_s=0.02)) for _ in range(2)]
    for number, actor in enumerate(actors):
        actor.ask([(0, request(number))])
    for actor in actors:
        actor.poll(0.05)
    until = time.monotonic() + LIMIT_S
    taken = 0
    while taken < 2 and time.monotonic() < until:
        for actor in actors:
            actor.poll(0.0)
        taken += len(first.link.receive(0.01))
    assert taken == 2
    first.close()
    second = made(loop(folder=folder))
    at_home = server()
    for number, actor in enumerate(actors):
        assert_same(talk(second, actor)[0], at_home.act([request(number)])[0])
    second.close()
    folder.rmdir()


def test_its_own_thread_answers_and_takes_parameters_meanwhile(made: Any) -> None:
    served = made(loop())
    served.warm_up(4)
    served.start()
    asking = made(client(served))
    asking.ask([(0, request(0, version=2))])
    assert asking.poll(0.02) == []
    load(served, 2)
    assert [slot for slot, _ in asking.poll(LIMIT_S)] == [0]
    served.unload("a", keep={2})
    served.close()
    assert served._thread is None
    served.check()


def test_what_ends_its_thread_is_raised_to_who_looks_after_it(made: Any) -> None:
    served = made(loop())
    served.load("a", 0, {"other": np.zeros(3)})
    served.start()
    asking = made(client(served))
    asking.ask([(0, request(0))])
    until = time.monotonic() + LIMIT_S
    while served.failure is None and time.monotonic() < until:
        asking.poll(0.01)
    with pytest.raises(KeyError):
        served.counters()


def test_a_server_that_stays_silent_is_named(made: Any) -> None:
    served = loop()
    asking = made(client(served, patience_s=0.05))
    served.close()
    asking.ask([(0, request(0))])
    assert asking.poll(0.0) == []
    with pytest.raises(LinkError, match=r"ipc://.* has been silent"):
        asking.poll(0.1)


def test_the_forms_follow_from_the_policies_and_the_world_alone() -> None:
    again = ServedForms.of(CAST, ["a", "b"], {}, SPEC, LANES)
    assert (again.request.schema, again.answer.schema) == (FORMS.request.schema, FORMS.answer.schema)
    other = ServedForms.of(CAST, ["a"], {"b": PARAMS["b", 0]}, SPEC, LANES)
    assert other.request.schema != FORMS.request.schema
    assert other.answer.schema == FORMS.answer.schema
    assert ServedForms.of(CAST, ["a", "b"], {}, SPEC, LANES + 1).answer.schema != FORMS.answer.schema
