"""The parameter store counts versions, forgets what nobody needs, and draws opponents that can be drawn again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.core.errors import CheckpointError, UnknownNameError, UserError
from marl.dataflow.store import ParameterStore, Past

from .made import through_a_file


def weights(number: int) -> dict[str, Any]:
    return {"car": {"kernel": np.full((2, 3), number, np.float32)}}


def filled(count: int, keep: int = 10) -> ParameterStore:
    """Versions 0 .. count-1 of policy `p`; every third has a score, of the version's number modulo 7."""
    store = ParameterStore(keep)
    for number in range(count):
        metadata = {"score": float(number % 7)} if number % 3 == 0 else {}
        assert store.publish("p", weights(number), metadata) == number
    return store


def value(params: Any) -> float:
    return float(params["car"]["kernel"][0, 0])


def test_versions_count_by_policy_from_zero() -> None:
    store = filled(3)
    assert store.publish("q", weights(9)) == 0
    assert store.publish("p", weights(3)) == 3
    assert store.policies() == ("p", "q")
    version, params = store.latest("p")
    assert (version, value(params)) == (3, 3.0)


def test_a_version_is_found_by_number_name_or_as_the_latest() -> None:
    store = filled(5)
    store.tag("p", 2, "best")
    assert [store.get("p", selector)[0] for selector in (1, "best", "latest")] == [1, 2, 4]
    assert value(store.get("p", "best")[1]) == 2.0
    store.tag("p", 3, "best")
    assert store.tags("p") == {"best": 3}
    assert store.metadata("p", 3) == {"score": 3.0}
    store.annotate("p", 4, {"elo": 1100})
    assert store.metadata("p") == {"elo": 1100}


def test_unknown_names_are_told_with_the_nearest() -> None:
    store = filled(20)
    store.tag("p", 19, "champion")
    with pytest.raises(UnknownNameError, match=r"no version 3; the nearest retained is 10 of \[10, 11"):
        store.get("p", 3)
    with pytest.raises(UnknownNameError, match=r"tag of policy 'p' 'champio'; did you mean 'champion'\?"):
        store.get("p", "champio")
    with pytest.raises(UnknownNameError, match=r"unknown policy 'P'.*known: p"):
        store.latest("P")
    with pytest.raises(UnknownNameError, match=r"metadata key .* 'skore'; did you mean 'score'\?"):
        store.get("p", Past("best", key="skore"))
    with pytest.raises(UnknownNameError, match="nearest retained"):
        store.tag("p", 0, "old")


def test_tagged_pinned_and_the_latest_versions_are_retained() -> None:
    store = filled(1, keep=2)
    store.tag("p", 0, "start")
    store.pin("p", store.publish("p", weights(1)))
    store.pin("p", 1)
    for number in range(2, 8):
        store.publish("p", weights(number))
    assert store.versions("p") == (0, 1, 6, 7)
    store.unpin("p", 1)
    assert 1 in store.versions("p")
    store.unpin("p", 1)
    store.untag("p", "start")
    assert store.versions("p") == (6, 7)
    with pytest.raises(ValueError, match="not pinned"):
        store.unpin("p", 7)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("ppptuin"), st.integers(0, 30)), max_size=60))
def test_the_right_versions_are_retained_under_any_use(keep: int, actions: list[tuple[str, int]]) -> None:
    """p publish, t tag, u untag, i pin, n unpin: against retained = latest, tagged, pinned, newest `keep` untagged."""
    store, tags, pins = filled(1, keep), {}, Counter()
    for action, choice in actions:
        retained = store.versions("p")
        version, name = retained[choice % len(retained)], f"t{choice % 3}"
        if action == "p":
            store.publish("p", weights(0))
        elif action == "t":
            store.tag("p", version, name)
            tags[name] = version
        elif action == "u" and name in tags:
            store.untag("p", name)
            del tags[name]
        elif action == "i":
            store.pin("p", version)
            pins[version] += 1
        elif action == "n" and pins[version]:
            store.unpin("p", version)
            pins[version] -= 1
        after = set(store.versions("p"))
        needed = {store.latest("p")[0], *tags.values(), *(v for v in pins if pins[v])}
        assert needed <= after
        old = sorted(after - set(tags.values()))[:-keep]
        assert set(old) <= needed
        assert after <= {*retained, store.latest("p")[0]}


def test_a_draw_depends_on_its_seed_and_on_what_is_retained_only() -> None:
    store = filled(10)
    first = [store.resolve("p", Past(seed=seed)) for seed in range(50)]
    assert first == [store.resolve("p", Past(seed=seed)) for seed in range(50)]
    assert set(first) == set(range(9))  # not the latest


def test_uniform_draws_are_uniform() -> None:
    store = filled(6)
    counts = Counter(store.resolve("p", Past(seed=seed)) for seed in range(2000))
    assert sum((counts[v] - 400) ** 2 / 400 for v in range(5)) < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_recent_and_best_choose_among_the_last() -> None:
    store = filled(10)
    assert {store.resolve("p", Past("recent", seed, last=3)) for seed in range(60)} == {6, 7, 8}
    store.annotate("p", 7, {"score": float("nan")})
    assert {store.resolve("p", Past("best", seed, last=2, key="score")) for seed in range(60)} == {3, 6}
    assert store.resolve("p", Past("best", key="score")) == 6


def test_the_only_version_is_its_own_past() -> None:
    assert filled(1).resolve("p", Past("recent", 3)) == 0


@pytest.mark.parametrize("fields", [{"how": "newest"}, {"seed": -1}, {"last": 0}, {"how": "best"}])
def test_selectors_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Past(**fields)


@pytest.mark.parametrize("name", ["latest", "", "3", "a/b", "two words"])
def test_names_that_cannot_be_tags_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        filled(1).tag("p", 0, name)


def test_metadata_is_json() -> None:
    with pytest.raises(TypeError):
        filled(1).publish("p", weights(1), {"score": np.float32(1)})


def test_a_snapshot_passes_through_a_file(tmp_path: Path) -> None:
    store = filled(14, keep=3)
    store.tag("p", 12, "best")
    store.pin("p", 11)
    store.publish("q", ())
    after = ParameterStore(keep=3)
    after.restore(through_a_file(store.snapshot(), tmp_path))
    assert after.policies() == ("p", "q")
    assert after.versions("p") == store.versions("p")
    assert after.tags("p") == {"best": 12}
    assert after.metadata("p", 12) == {"score": 5.0}
    assert value(after.get("p", 11)[1]) == 11.0
    assert after.get("q") == (0, ())
    for _ in range(4):
        after.publish("p", weights(0))
    assert after.versions("p") == (11, 12, 15, 16, 17)
    after.unpin("p", 11)
    assert after.versions("p") == (12, 15, 16, 17)


def test_parameters_that_a_file_does_not_give_back_are_told() -> None:
    store = filled(1)
    store.publish("p", {"car": Counter("ab").items()})
    with pytest.raises(CheckpointError, match="policy 'p'"):
        store.snapshot()


def test_keeping_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ParameterStore(keep=0)
