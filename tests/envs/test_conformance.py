"""Every registered world conforms, and every check can fail: a world broken in one place is caught by its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from marl.core.config import EnvConfig
from marl.core.conformance import CHECKS, check_environment
from marl.core.errors import UnknownNameError
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete
from marl.core.types import RoleSpec, TimeStep
from marl.envs import REGISTRY

pytestmark = pytest.mark.env


@pytest.mark.parametrize("name", REGISTRY.names())
def test_registered_world_conforms(name: str) -> None:
    findings = check_environment(REGISTRY.resolve(name)())
    assert [finding for finding in findings if not finding.ok] == []
    assert [finding.name for finding in findings] == list(CHECKS)
    assert all(finding.detail for finding in findings)


Change = Callable[["WalkState", TimeStep], dict[str, Any]]
ONES = jnp.ones(2, jnp.float32)
YES, NO = jnp.ones((), bool), jnp.zeros((), bool)


def both(value: Any) -> dict[str, Any]:
    return {"walker": value}


@struct.dataclass
class WalkState:
    place: jax.Array
    alive: jax.Array
    t: jax.Array


class Walk:
    """A sound world: two walkers go left, stay or go right for 4 steps; walker 1 ends after 2. Subclasses break it."""

    Config = EnvConfig
    lane_axis = 0
    max_steps: int | None = 4

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("walker", 2, Box((1,), -9.0, 9.0), Discrete(3), Box((2,), -9.0, 9.0), 4),)

    @property
    def default_params(self) -> jax.Array:
        return jnp.asarray(1.0, jnp.float32)

    def reset(self, key: jax.Array, params: jax.Array) -> tuple[WalkState, TimeStep]:
        place = jax.random.uniform(key, (2,), jnp.float32)
        state = WalkState(place=place, alive=jnp.ones(2, bool), t=jnp.zeros((), jnp.int32))
        nobody = jnp.zeros(2, bool)
        row = self.row(state, jnp.zeros(2, jnp.float32), nobody, nobody).replace(first=jnp.ones((), bool))
        return self.break_reset(state, row)

    def step(self, key: jax.Array, state: WalkState, actions: Any, params: jax.Array) -> tuple[WalkState, TimeStep]:
        t = state.t + 1
        move = jnp.where(state.alive, actions["walker"].astype(jnp.float32) - 1.0, 0.0) * params
        ends = jnp.asarray([4, 2], jnp.int32)
        terminated = state.alive & (t == ends) & jnp.asarray([False, True])
        truncated = state.alive & (t == ends) & jnp.asarray([True, False])
        now = WalkState(place=state.place + move, alive=state.alive & ~terminated, t=t)
        return self.break_step(now, self.row(now, move, terminated, truncated), key)

    def row(self, state: WalkState, reward: Any, terminated: Any, truncated: Any) -> TimeStep:
        mask = jnp.ones((2, 3), bool).at[:, 0].set(state.t > 0)
        return TimeStep(
            obs={"walker": state.place[:, None]},
            reward={"walker": reward},
            terminated={"walker": terminated},
            truncated={"walker": truncated},
            alive={"walker": state.alive},
            first=jnp.zeros((), bool),
            last=state.t == 4,
            action_mask={"walker": mask},
            state=state.place,
            info={"reward/walker/move": reward.mean(), "place_m": state.place.mean()},
        )

    def render(self, state: WalkState, params: Any) -> Any:
        return np.zeros((8, 8, 3), np.uint8)

    def break_reset(self, state: WalkState, row: TimeStep) -> tuple[WalkState, TimeStep]:
        return state, row

    def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
        return state, row


def failing(world: Walk, check: str) -> str:
    (finding,) = check_environment(world, episodes=1, only=[check])
    assert not finding.ok
    return finding.detail


def test_the_world_that_is_broken_below_conforms_itself() -> None:
    assert [finding for finding in check_environment(Walk()) if not finding.ok] == []


class Dictionaries(Walk):
    """The same world, seen through a dictionary in a dictionary."""

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        inner = Dict.of({"place": Box((1,), -9.0, 9.0), "time": Discrete(5)})
        return (RoleSpec("walker", 2, Dict.of({"own": inner, "first": Discrete(2)}), Discrete(3), inner, 4),)

    def row(self, state: WalkState, reward: Any, terminated: Any, truncated: Any) -> TimeStep:
        row = super().row(state, reward, terminated, truncated)
        own = {"place": state.place[:, None], "time": jnp.broadcast_to(state.t, (2,))}
        seen = {"own": own, "first": jnp.arange(2, dtype=jnp.int32)}
        return row.replace(obs=both(seen), state=jax.tree.map(lambda leaf: leaf[0], own))


def test_a_world_of_dictionaries_conforms() -> None:
    assert [finding for finding in check_environment(Dictionaries(), episodes=1) if not finding.ok] == []


@pytest.mark.parametrize(
    ("check", "words", "change"),
    [
        ("shapes", "obs of walker 'own' 'time' is a NoneType", lambda obs: {**obs, "own": {"place": obs["first"]}}),
        ("shapes", "obs of walker 'first' is a NoneType", lambda obs: obs["first"]),
        ("shapes", "obs of walker 'first' is float32", lambda obs: {**obs, "first": ONES}),
        ("bounds", "obs of walker 'first' leaves its space", lambda obs: {**obs, "first": obs["first"] + 1}),
    ],
)
def test_a_broken_dictionary_is_caught(check: str, words: str, change: Callable[[Any], Any]) -> None:
    class Broken(Dictionaries):
        def row(self, *args: Any) -> TimeStep:
            row = super().row(*args)
            return row.replace(obs=both(change(row.obs["walker"])))

    assert words in failing(Broken(), check)


def test_an_unknown_check_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'masks'"):
        check_environment(Walk(), only=["mask"])


def test_a_world_that_raises_is_a_finding() -> None:
    class Raises(Walk):
        def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
            raise KeyError("wheel")

    (finding,) = check_environment(Raises(), only=["bounds"])
    assert not finding.ok
    assert finding.detail == "KeyError: 'wheel'"


# (check that must fail, words of its detail, what is put in the place of fields of the row)
ROWS_OF_STEP: list[tuple[str, str, Change]] = [
    ("types", "weakly typed", lambda s, r: {"last": r.last, "info": {**r.info, "place_m": jnp.asarray(1.0)}}),
    ("types", "after reset", lambda s, r: {"action_mask": None}),
    ("types", "after reset", lambda s, r: {"info": {**r.info, "late": jnp.zeros((), jnp.float32)}}),
    ("types", "after reset", lambda s, r: {"reward": both(r.reward["walker"].astype(jnp.float16))}),
    ("bounds", "leaves its space", lambda s, r: {"obs": both(r.obs["walker"] + 20.0)}),
    ("bounds", "not finite", lambda s, r: {"obs": both(r.obs["walker"] / 0.0)}),
    ("bounds", "state leaves", lambda s, r: {"state": r.state - 20.0}),
    ("bounds", "reward of walker", lambda s, r: {"reward": both(ONES * jnp.nan)}),
    ("bounds", "info 'place_m'", lambda s, r: {"info": {**r.info, "place_m": jnp.asarray(jnp.inf, jnp.float32)}}),
    ("episodes", "never resets itself", lambda s, r: {"first": s.t == 2}),
    ("episodes", "no `last`", lambda s, r: {"last": NO}),
    ("ends", "both terminated and truncated", lambda s, r: {"truncated": r.terminated}),
    ("ends", "without having been alive", lambda s, r: {"terminated": both((s.t >= 2) & jnp.asarray([False, True]))}),
    ("ends", "alive though terminated", lambda s, r: {"alive": both(jnp.ones(2, bool))}),
    ("ends", "alive though truncated", lambda s, r: {"truncated": both((s.t == 1) & jnp.asarray([True, False]))}),
    ("ends", "gone without having ended", lambda s, r: {"terminated": both(jnp.zeros(2, bool))}),
    ("ends", "neither terminates nor", lambda s, r: {"truncated": both(jnp.zeros(2, bool))}),
    (
        "ends",
        "everybody has ended",
        lambda s, r: {"terminated": both(s.t == jnp.asarray([1, 2])), "alive": both(s.t < jnp.asarray([1, 2]))},
    ),
    ("ends", "acts though not alive", lambda s, r: {"acting": both(jnp.ones(2, bool))}),
    ("rewards", "after its end", lambda s, r: {"reward": both(ONES), "info": {"reward/walker/move": ONES[0]}}),
    ("rewards", "add up", lambda s, r: {"info": {"reward/walker/move": r.info["reward/walker/move"] + 1.0}}),
    ("rewards", "has no term", lambda s, r: {"info": None}),
    ("rewards", "not of the form", lambda s, r: {"info": {**r.info, "reward/runner/move": jnp.zeros(())}}),
    ("masks", "forbids everything", lambda s, r: {"action_mask": both(r.action_mask["walker"] & ~(s.t == 3))}),
]


@pytest.mark.parametrize(("check", "words", "change"), ROWS_OF_STEP)
def test_a_broken_row_of_step_is_caught(check: str, words: str, change: Change) -> None:
    class Broken(Walk):
        def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
            return state, row.replace(**change(state, row))

    (finding,) = check_environment(Broken(), episodes=1, only=[check])
    assert not finding.ok
    assert words in finding.detail


ROWS_OF_RESET: list[tuple[str, str, Change]] = [
    ("shapes", "obs of walker", lambda s, r: {"obs": both(s.place)}),
    ("shapes", "reward of walker", lambda s, r: {"reward": both(jnp.zeros(2, jnp.int32))}),
    ("shapes", "alive of walker", lambda s, r: {"alive": both(jnp.ones((), bool))}),
    ("shapes", "has roles", lambda s, r: {"reward": {"runner": r.reward["walker"]}}),
    ("shapes", "action_mask of walker", lambda s, r: {"action_mask": both(jnp.ones((2, 4), bool))}),
    ("shapes", "which there is not", lambda s, r: {"action_mask": {"runner": jnp.ones((2, 3), bool)}}),
    ("shapes", "state", lambda s, r: {"state": s.place[:1]}),
    ("shapes", "state is a NoneType", lambda s, r: {"state": None}),
    ("shapes", "acting of walker", lambda s, r: {"acting": both(jnp.ones((), bool))}),
    ("shapes", "first is", lambda s, r: {"first": jnp.ones(2, bool)}),
    ("shapes", "info 'place_m'", lambda s, r: {"info": {"place_m": s.place}}),
    ("episodes", "does not have `first`", lambda s, r: {"first": NO}),
    ("episodes", "the row of reset has `last`", lambda s, r: {"last": YES}),
    ("episodes", "expected 0", lambda s, r: {"reward": both(ONES)}),
    ("episodes", "nobody is alive", lambda s, r: {"alive": both(jnp.zeros(2, bool))}),
    ("episodes", "has ended at the first", lambda s, r: {"truncated": both(jnp.ones(2, bool))}),
]


@pytest.mark.parametrize(("check", "words", "change"), ROWS_OF_RESET)
def test_a_broken_row_of_reset_is_caught(check: str, words: str, change: Change) -> None:
    class Broken(Walk):
        def break_reset(self, state: WalkState, row: TimeStep) -> tuple[WalkState, TimeStep]:
            return state, row.replace(**change(state, row))

    (finding,) = check_environment(Broken(), episodes=1, only=[check])
    assert not finding.ok
    assert words in finding.detail


ROLES: list[tuple[str, tuple[RoleSpec, ...]]] = [
    ("at least one", ()),
    ("no name twice", (RoleSpec("a", 1, Box((1,)), Discrete(2)), RoleSpec("a", 1, Box((1,)), Discrete(2)))),
    ("no identifier", (RoleSpec("fast car", 1, Box((1,)), Discrete(2)),)),
    ("size 0", (RoleSpec("a", 0, Box((1,)), Discrete(2)),)),
    ("is empty", (RoleSpec("a", 1, Box((1,), 1.0, 1.0), Discrete(2)),)),
    ("needs finite bounds", (RoleSpec("a", 1, Box((1,), dtype="uint8"), Discrete(2)),)),
    ("action space is a Dict", (RoleSpec("a", 1, Box((1,)), Dict(())),)),  # type: ignore[arg-type]
    ("observation 'b' space is empty", (RoleSpec("a", 1, Dict.of({"b": Box((1,), 1.0, 1.0)}), Discrete(2)),)),
    ("action space is a int", (RoleSpec("a", 1, Box((1,)), 2),)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("words", "wrong"), ROLES)
def test_broken_roles_are_caught(words: str, wrong: tuple[RoleSpec, ...]) -> None:
    class Broken(Walk):
        roles = wrong  # type: ignore[assignment]

    assert words in failing(Broken(), "roles")


def test_a_wrong_lane_axis_and_max_steps_are_caught() -> None:
    class Broken(Walk):
        lane_axis = 1
        max_steps = 0

    detail = failing(Broken(), "roles")
    assert "lane_axis is 1" in detail
    assert "max_steps is 0" in detail


def test_a_weakly_typed_parameter_is_caught() -> None:
    class Broken(Walk):
        default_params = jnp.asarray(1.0)

    assert "default_params is weakly typed" in failing(Broken(), "types")


def test_hidden_memory_is_caught_as_lost_determinism() -> None:
    class Broken(Walk):
        calls = 0

        def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
            def count() -> np.ndarray[Any, Any]:
                Broken.calls += 1
                return np.float32(Broken.calls)

            noise = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32))
            return state, row.replace(state=row.state + noise)

    assert "state differs" in failing(Broken(), "determinism")
    assert "calls back into Python" in failing(Broken(), "jit")


def test_a_world_that_knows_whether_it_is_compiled_is_caught() -> None:
    class Broken(Walk):
        def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
            compiled = isinstance(state.t, jax.core.Tracer)
            return state, row.replace(obs=both(row.obs["walker"] + (0.1 if compiled else 0.0)))

    assert "step: [1].obs['walker'] differs" in failing(Broken(), "jit")


def test_a_parameter_turned_into_a_python_number_is_caught() -> None:
    class Broken(Walk):
        def reset(self, key: jax.Array, params: jax.Array) -> tuple[WalkState, TimeStep]:
            return super().reset(key, jnp.asarray(float(params), jnp.float32))

    assert "ConcretizationTypeError" in failing(Broken(), "vmap")


def test_a_batch_whose_copies_touch_each_other_is_caught() -> None:
    @jax.custom_batching.custom_vmap
    def mixed(place: jax.Array) -> jax.Array:
        return place

    @mixed.def_vmap
    def _(axis_size: int, in_batched: Any, place: jax.Array) -> tuple[jax.Array, bool]:
        return place[::-1], True

    class Broken(Walk):
        def break_step(self, state: WalkState, row: TimeStep, key: jax.Array) -> tuple[WalkState, TimeStep]:
            return state, row.replace(state=mixed(row.state))

    assert "row 1: [1].state differs" in failing(Broken(), "vmap")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "expected a NumPy array of uint8"),
        (np.zeros((8, 8), np.uint8), "expected (H, W, 3)"),
        (None, "NoneType"),
    ],
)
def test_a_broken_picture_is_caught(picture: Any, words: str) -> None:
    class Broken(Walk):
        def render(self, state: WalkState, params: Any) -> Any:
            return picture

    assert words in failing(Broken(), "render")


def test_a_picture_that_changes_its_size_is_caught() -> None:
    class Broken(Walk):
        def render(self, state: WalkState, params: Any) -> Any:
            return np.zeros((8 + int(state.t), 8, 3), np.uint8)

    assert "change their size" in failing(Broken(), "render")


def test_a_world_with_its_lanes_last_and_a_key_in_its_state_conforms() -> None:
    @struct.dataclass
    class Keyed:
        walk: WalkState
        key: jax.Array

    class Last(Walk):
        lane_axis = -1

        def reset(self, key: jax.Array, params: jax.Array) -> tuple[Any, TimeStep]:
            state, row = super().reset(key, params)
            return Keyed(walk=state, key=key), row

        def step(self, key: jax.Array, state: Any, actions: Any, params: jax.Array) -> tuple[Any, TimeStep]:
            walk, row = super().step(state.key, state.walk, actions, params)
            return Keyed(walk=walk, key=jax.random.split(state.key)[0]), row

    assert [finding for finding in check_environment(Last(), episodes=1) if not finding.ok] == []


def test_all_three_kinds_of_action_are_played() -> None:
    class Kinds(Walk):
        space: Any = Box((2,), -1.0, 1.0)

        @property
        def roles(self) -> tuple[RoleSpec, ...]:
            return (RoleSpec("walker", 2, Box((1,), -9.0, 9.0), self.space, Box((2,), -9.0, 9.0), 4),)

        def step(self, key: Any, state: Any, actions: Any, params: Any) -> tuple[WalkState, TimeStep]:
            assert actions["walker"].shape == (2, *self.space.shape)
            return super().step(key, state, both(actions["walker"][:, 0].astype(jnp.int32)), params)

        def row(self, *args: Any) -> TimeStep:
            return super().row(*args).replace(action_mask=None)

    class Many(Kinds):
        space = MultiDiscrete((2, 4))

    for world in (Kinds(), Many()):
        findings = check_environment(world, episodes=1, only=["types", "shapes", "ends"])
        assert [finding for finding in findings if not finding.ok] == []
