"""Policies that do not learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marl.agents.scripted.policies import Constant, ConstantConfig, Random
from marl.core.algorithm import Algorithm, Policy
from marl.core.errors import UserError
from marl.core.prng import stream
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete
from marl.core.types import RoleSpec, TimeStep

SPECS = (
    RoleSpec("car", 2, Box((1,)), Discrete(3)),
    RoleSpec("arm", 1, Box((1,)), Box((2,), low=-1.0, high=3.0)),
    RoleSpec("free", 1, Box((1,)), Box((1,))),
    RoleSpec("hand", 1, Dict.of({"eye": Box((4, 4)), "skin": Discrete(2)}), MultiDiscrete((2, 2))),
)
STEP = TimeStep(
    obs={},
    reward={},
    terminated={},
    truncated={},
    alive={},
    first=jnp.asarray(True),
    last=jnp.asarray(False),
    action_mask={"car": jnp.asarray([[True, False, True], [False, True, False]])},
)


def test_random_draws_uniformly_among_what_is_allowed() -> None:
    policy = Random(Random.Config(), SPECS)
    assert isinstance(policy, Policy)
    assert not isinstance(policy, Algorithm)
    assert not hasattr(Random, "update")

    def act(key: jax.Array) -> dict[str, jax.Array]:
        return policy.act((), (), STEP, key, explore=True)[1]

    drawn = jax.vmap(act)(jax.random.split(stream(0, "act"), 2000))
    share = np.bincount(np.asarray(drawn["car"][:, 0]), minlength=3) / 2000
    np.testing.assert_allclose(share, [0.5, 0, 0.5], atol=0.05)
    assert set(np.asarray(drawn["car"][:, 1]).tolist()) == {1}
    assert float(drawn["arm"].min()) >= -1.0
    assert float(drawn["arm"].max()) <= 3.0
    np.testing.assert_allclose(drawn["arm"].mean(), 1.0, atol=0.1)
    assert float(jnp.abs(drawn["free"]).max()) > 2.0
    np.testing.assert_allclose(drawn["hand"].mean(), 0.5, atol=0.05)


def test_constant_repeats_its_action() -> None:
    policy = Constant(ConstantConfig(action=2), SPECS[:1])
    carry, actions, extras = policy.act((), (), STEP, stream(0, "act"), explore=False)
    assert (carry, extras) == ((), ())
    np.testing.assert_array_equal(actions["car"], [2, 2])
    assert actions["car"].dtype == jnp.int32


def test_constant_refuses_actions_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="0 to 2"):
        Constant(ConstantConfig(action=3), SPECS[:1])
    with pytest.raises(UserError, match="role 'arm'"):
        Constant(ConstantConfig(action=0), SPECS[1:2])
