"""PPO acts: spaces, masks, independence from the batch and from the global state; its options."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from marl.agents.ppo.algorithm import MAPPO, PPO
from marl.agents.ppo.config import MAPPOConfig, PPOConfig
from marl.core.algorithm import Algorithm
from marl.core.errors import UserError
from marl.core.prng import stream
from marl.core.spaces import Box, Discrete, MultiDiscrete
from marl.core.types import RoleSpec, TimeStep

SPECS = (
    RoleSpec("car", 3, Box((2, 2)), Discrete(4), Box((5,))),
    RoleSpec("arm", 2, Discrete(3), Box((2,), low=-2.0, high=6.0), Box((5,))),
    RoleSpec("hand", 1, MultiDiscrete((2, 2)), MultiDiscrete((2, 3)), Box((5,))),
)
SMALL = {"hidden_sizes": (8,), "gru_size": 4}


def time_step(seed: int, **changes: object) -> TimeStep:
    rng = np.random.default_rng(seed)

    def by_role(fill: object) -> dict[str, jax.Array]:
        return {spec.name: jnp.full((spec.size,), fill) for spec in SPECS}

    row = TimeStep(
        obs={
            "car": jnp.asarray(rng.normal(size=(3, 2, 2)), jnp.float32),
            "arm": jnp.asarray(rng.integers(0, 3, 2), jnp.int32),
            "hand": jnp.asarray(rng.integers(0, 2, (1, 2)), jnp.int32),
        },
        reward=by_role(0.0),
        terminated=by_role(False),
        truncated=by_role(False),
        alive=by_role(True),
        first=jnp.asarray(False),
        last=jnp.asarray(False),
        state=jnp.asarray(rng.normal(size=5), jnp.float32),
    )
    return row.replace(**changes)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def recurrent(rollout: Any) -> tuple[PPO, object]:
    algorithm = PPO(PPOConfig(recurrent=True, **SMALL), SPECS)
    return algorithm, algorithm.publish(rollout.draw_state(algorithm))


def test_it_is_an_algorithm_and_asks_for_a_rollout(recurrent: tuple[PPO, object]) -> None:
    algorithm, _ = recurrent
    assert isinstance(algorithm, Algorithm)
    assert algorithm.roles == ("car", "arm", "hand")
    assert (algorithm.needs.rollout, algorithm.needs.global_state) == (128, False)


def test_actions_fit_their_spaces_and_the_carry_keeps_its_shape(recurrent: tuple[PPO, object]) -> None:
    algorithm, params = recurrent
    before = algorithm.initial_carry()
    act = jax.jit(partial(algorithm.act, explore=True))
    after, actions, extras = act(params, before, time_step(0), stream(0, "act"))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert (actions["car"].shape, actions["car"].dtype) == ((3,), jnp.int32)
    assert (actions["arm"].shape, actions["arm"].dtype) == ((2, 2), jnp.float32)
    assert (actions["hand"].shape, actions["hand"].dtype) == ((1, 2), jnp.int32)
    assert {name: extra["log_prob"].shape for name, extra in extras.items()} == {"car": (3,), "arm": (2,), "hand": (1,)}
    assert not any(x.weak_type for x in jax.tree.leaves((after, actions, extras)))


def test_acting_does_not_depend_on_who_shares_the_batch(recurrent: tuple[PPO, object]) -> None:
    algorithm, params = recurrent
    rows = [time_step(seed) for seed in range(3)]
    keys = jax.random.split(stream(0, "act"), 3)
    carry = jax.tree.map(lambda x: jnp.stack([x] * 3), algorithm.initial_carry())

    act = partial(algorithm.act, params, explore=True)
    together = jax.jit(jax.vmap(act))(carry, jax.tree.map(lambda *x: jnp.stack(x), *rows), keys)
    alone = jax.jit(act)(algorithm.initial_carry(), rows[1], keys[1])
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, many[1], rtol=1e-5, atol=1e-6)


def test_acting_does_not_depend_on_the_global_state(recurrent: tuple[PPO, object]) -> None:
    algorithm, params = recurrent
    act = jax.jit(partial(algorithm.act, explore=True))
    with_state = act(params, algorithm.initial_carry(), time_step(0), stream(0, "act"))
    without = act(params, algorithm.initial_carry(), time_step(0, state=None), stream(0, "act"))
    for a, b in zip(jax.tree.leaves(with_state), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("explore", [True, False])
def test_masked_actions_are_never_chosen(recurrent: tuple[PPO, object], explore: bool) -> None:
    algorithm, params = recurrent
    mask = jnp.asarray([[True, False, False, True], [False, True, False, False], [False, False, True, True]])
    row = time_step(0, action_mask={"car": mask})

    def act(key: jax.Array) -> jax.Array:
        return algorithm.act(params, algorithm.initial_carry(), row, key, explore=explore)[1]["car"]

    chosen = np.asarray(jax.jit(jax.vmap(act))(jax.random.split(stream(0, "act"), 200)))
    assert np.take_along_axis(np.asarray(mask)[None], chosen[..., None], axis=-1).all()


def test_without_exploration_the_key_does_not_matter(recurrent: tuple[PPO, object]) -> None:
    algorithm, params = recurrent
    act = jax.jit(partial(algorithm.act, explore=False))
    one, two = (act(params, algorithm.initial_carry(), time_step(0), stream(0, "act", i))[1] for i in (0, 1))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("squash", [False, True])
def test_bounded_box_actions_stay_inside_their_bounds(rollout: Any, squash: bool) -> None:
    spec = RoleSpec("arm", 2, Box((1,)), Box((2,), low=-2.0, high=6.0))
    algorithm = PPO(PPOConfig(squash=squash, **SMALL), (spec,))
    params = algorithm.publish(rollout.draw_state(algorithm))
    params["arm"]["log_std"] += 3.0
    row = time_step(0, obs={"arm": jnp.zeros((2, 1), jnp.float32)})

    def act(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, actions, extras = algorithm.act(params, algorithm.initial_carry(), row, key, explore=True)
        return actions["arm"], extras["arm"]["raw"]

    action, raw = jax.jit(jax.vmap(act))(jax.random.split(stream(0, "act"), 100))
    assert float(action.min()) >= -2.0
    assert float(action.max()) <= 6.0
    assert float(jnp.abs(raw).max()) > 5.0


def test_half_bounded_actions_are_refused() -> None:
    with pytest.raises(UserError, match="both bounds"):
        PPO(PPOConfig(), (RoleSpec("arm", 1, Box((1,)), Box((1,), low=0.0)),))


def test_mappo_has_the_actors_of_ippo_and_one_critic() -> None:
    config = dict(SMALL, last_action=False)
    ippo, mappo = PPO(PPOConfig(**config), SPECS[:1]), MAPPO(MAPPOConfig(**config), SPECS[:1])
    one, other = jax.jit(ippo.init)(stream(0, "init")), jax.jit(mappo.init)(stream(0, "init"))
    for a, b in zip(
        jax.tree_util.tree_leaves_with_path(ippo.publish(one)),
        jax.tree_util.tree_leaves_with_path(mappo.publish(other)),
        strict=True,
    ):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])
    assert list(other.params["critic"]) == ["central"]
    assert other.params["critic"]["central"]["head"]["kernel"].shape == (1, 8, 3)
    assert mappo.needs.global_state


def test_mappo_without_a_global_state_says_so() -> None:
    with pytest.raises(UserError, match="role 'car' has no state_space"):
        MAPPO(MAPPOConfig(), (RoleSpec("car", 2, Box((3,)), Discrete(2)),))


def test_the_plain_variant_is_a_64_64_network() -> None:
    config = PPOConfig(layer_norm=False, activation="tanh", recurrent=False, last_action=False, agent_id=False)
    algorithm = PPO(config, (RoleSpec("cart", 1, Box((4,)), Discrete(2)),))
    state = jax.eval_shape(algorithm.init, stream(0, "init"))
    shapes = sorted(x.shape for x in jax.tree.leaves(algorithm.publish(state)))
    assert shapes == sorted([(1, 4, 64), (1, 64), (1, 64, 64), (1, 64), (1, 64, 2), (1, 2)])
    assert algorithm.initial_carry() == ()


def test_agents_have_networks_of_their_own_or_share_one() -> None:
    spec = (RoleSpec("car", 3, Box((4,)), Discrete(2)),)
    own = PPO(PPOConfig(**SMALL), spec).init(stream(0, "init")).params["actor"]["car"]["head"]["kernel"]
    shared = (
        PPO(PPOConfig(sharing="role", **SMALL), spec).init(stream(0, "init")).params["actor"]["car"]["head"]["kernel"]
    )
    assert (own.shape, shared.shape) == ((3, 8, 2), (1, 8, 2))
    assert not np.allclose(own[0], own[1])


def test_presets_fill_what_the_user_leaves_open() -> None:
    paper = PPOConfig.model_validate({"preset": "paper", "epochs": 3})
    assert (paper.epochs, paper.minibatches, paper.value_loss, paper.value_clip) == (3, 1, "huber", 0.2)
    assert (paper.recurrent, paper.layer_norm, paper.activation, paper.huber_delta) == (True, True, "relu", 10.0)
    assert PPOConfig().epochs == 4
    assert PPOConfig.model_validate(paper.model_dump()) == paper


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in ({"preset": "none"}, {"clip": 0}, {"epochs": 0}, {"hidden_sizes": ()}, {"lerning_rate": 1e-3}):
        with pytest.raises(ValidationError):
            PPOConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match="schedule_env_steps"):
        PPOConfig(learning_rate_schedule="linear")
