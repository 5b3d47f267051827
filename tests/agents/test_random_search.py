"""Random search: what a seed means, who becomes the elite, what is published."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from marl.agents.deep_ga.config import RandomSearchConfig
from marl.agents.deep_ga.genome import BLOCK, INITIAL, Weights, noise
from marl.agents.deep_ga.random_search import RandomSearch
from marl.core.evolution import Evaluation, Evolution
from marl.core.spaces import Box, Discrete
from marl.core.types import EpisodeResult, LearnerState, RoleSpec, TimeStep

ROLE = RoleSpec("hider", 2, Box((3,)), Discrete(4))
SEARCH = RandomSearch(
    RandomSearchConfig(population=6, episodes=2, candidates=3, candidate_episodes=2, hidden_sizes=(5,)), (ROLE,)
)
POPULATION, ELITE = SEARCH.rounds
ROOT = jax.random.key(7, impl="threefry2x32")
BEGIN = jax.jit(SEARCH.init)(ROOT)
best = jax.jit(SEARCH.best)
tell = jax.jit(SEARCH.tell, static_argnums=1)


def told(state: LearnerState, round: Any, seeds: list[int], fitness: list[float]) -> tuple[LearnerState, Any]:
    """After both episodes of every individual gave its fitness."""
    values = jnp.broadcast_to(jnp.array(fitness, jnp.float32)[:, None], (len(fitness), 2))
    nothing = EpisodeResult({}, jnp.zeros(()), jnp.zeros(()), {})
    evaluation = Evaluation(values, jnp.zeros((*values.shape, 0)), nothing)
    new: tuple[LearnerState, Any] = tell(state, round, {"seed": jnp.array(seeds, jnp.uint32)}, evaluation)
    return new


def generation(state: LearnerState, fitness: list[float], again: list[float]) -> tuple[LearnerState, Any, list[int]]:
    """A generation in which the seeds are 10, 11, ...; `again`: what the candidates get in their own episodes."""
    state, _ = told(state, POPULATION, list(range(10, 16)), fitness)
    candidates = state.aux["candidates"].tolist()
    state, metrics = told(state, ELITE, candidates, again)
    return state, metrics, candidates


def test_it_is_what_the_dataflow_asks_for() -> None:
    assert isinstance(SEARCH, Evolution)
    assert (POPULATION.size, POPULATION.episodes, ELITE.size, ELITE.episodes) == (6, 2, 3, 2)


# ---- seeds and weights ---------------------------------------------------------------------------------------------


def test_a_seed_means_the_same_weights_alone_and_among_others() -> None:
    shared = SEARCH.publish(BEGIN)
    seeds = jnp.array([3, 2**32 - 1, 3], jnp.uint32)
    together = jax.jit(jax.vmap(SEARCH.decode, in_axes=(None, 0)))(shared, {"seed": seeds})
    alone = best(BEGIN.replace(params={**BEGIN.params, "best": seeds[1]}))  # type: ignore[attr-defined]
    for every, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(every[1], one)
        np.testing.assert_array_equal(every[0], every[2])
    assert not np.allclose(together["hider"]["head"]["kernel"][0], together["hider"]["head"]["kernel"][1])


def test_noise_is_drawn_in_blocks_of_which_the_last_is_the_beginning_of_a_whole_one() -> None:
    drawn = jax.jit(noise, static_argnums=(1, 3))(ROOT, INITIAL, np.uint32(4), BLOCK + 50)
    assert drawn.shape == (BLOCK + 50,)
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1.0) < 0.02
    # They are part of what a stored seed means. The first ones were drawn in a block of 100.
    np.testing.assert_allclose(drawn[:3], GOLDEN, rtol=1e-6)
    np.testing.assert_allclose(drawn[-2:], GOLDEN_LAST, rtol=1e-6)


GOLDEN_LAST = [-0.42757007, 0.65896255]
GOLDEN = [-0.34228325, -1.17900264, -1.1787194]


@pytest.mark.parametrize("init", ["fan_in", "glorot"])
def test_weights_are_as_wide_as_their_layer_is_narrow(init: Any) -> None:
    shapes = {
        "torso": {"kernel": (1, 60, 50), "bias": (1, 50)},
        "norm": {"scale": (1, 50), "bias": (1, 50)},
        "head": {"kernel": (1, 50, 40), "bias": (1, 40)},
    }
    template = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=_is_shape)
    weights = Weights(template, init)
    assert weights.size == 60 * 50 + 3 * 50 + 50 * 40 + 40
    drawn = jax.jit(weights.initial)(ROOT, jnp.uint32(1))
    first = math.sqrt(1 / 60) if init == "fan_in" else math.sqrt(2 / 110)
    last = 0.1 * (math.sqrt(1 / 50) if init == "fan_in" else math.sqrt(2 / 90))
    assert float(drawn["torso"]["kernel"].std()) == pytest.approx(first, rel=0.05)
    assert float(drawn["head"]["kernel"].std()) == pytest.approx(last, rel=0.05)
    assert not drawn["torso"]["bias"].any()
    assert (drawn["norm"]["scale"] == 1.0).all()


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def test_a_policy_takes_the_best_allowed_action_without_noise() -> None:
    params = best(BEGIN)
    flat = jnp.zeros((2,), jnp.float32)
    flags = jnp.zeros((2,), bool)
    step = TimeStep(
        obs={"hider": jnp.ones((2, 3), jnp.float32)},
        reward={"hider": flat},
        terminated={"hider": flags},
        truncated={"hider": flags},
        alive={"hider": ~flags},
        first=jnp.array(True),
        last=jnp.array(False),
    )
    act = jax.jit(SEARCH.act, static_argnames="explore")
    acted = [act(params, (), step, jax.random.key(k), explore=k < 3)[1]["hider"] for k in range(4)]
    assert all((other == acted[0]).all() for other in acted)
    forbidden = jnp.ones((2, 4), bool).at[jnp.arange(2), acted[0]].set(False)
    masked = act(params, (), step.replace(action_mask={"hider": forbidden}), jax.random.key(0), explore=True)  # type: ignore[attr-defined]
    assert (masked[1]["hider"] != acted[0]).all()


# ---- who is the elite ----------------------------------------------------------------------------------------------


def test_the_first_candidates_are_the_best_and_later_ones_are_led_by_the_elite() -> None:
    state, _, candidates = generation(BEGIN, [1, 5, 3, 9, 5, 0], [4, 6, 2])
    assert candidates == [13, 11, 14]  # of equal ones the first
    assert int(state.params["elite"]) == 11
    _, _, candidates = generation(state, [7, 8, 0, 0, 0, 0], [0, 0, 0])
    assert candidates == [11, 11, 10]


def test_only_a_candidates_own_episodes_make_it_the_elite() -> None:
    state, metrics, _ = generation(BEGIN, [100, 1, 2, 3, 4, 5], [0.0, 1.0, 2.0])
    assert int(state.params["elite"]) == 14  # the lucky one lost
    assert float(metrics["ga/best_so_far"]) == 2.0
    assert int(metrics["ga/elite_age"]) == 0


def test_the_best_of_all_generations_is_published() -> None:
    state, _, _ = generation(BEGIN, [6, 5, 4, 3, 2, 1], [3, 9, 1])
    first = best(state)
    state, metrics, _ = generation(state, [6, 5, 4, 3, 2, 1], [4, 5, 1])  # the elite's next try is worse
    assert int(state.params["elite"]) == 10
    assert float(metrics["ga/best_so_far"]) == 9.0
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(best(state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_elite_that_stays_grows_old() -> None:
    state, _, _ = generation(BEGIN, [6, 5, 4, 3, 2, 1], [3, 9, 1])
    for age in (1, 2):
        state, metrics, _ = generation(state, [0, 0, 0, 0, 0, 0], [7, 1, 1])
        assert int(metrics["ga/elite_age"]) == age


def test_who_gives_no_number_is_never_chosen() -> None:
    nan = float("nan")
    state, _, candidates = generation(BEGIN, [nan, nan, 4, 3, 2, nan], [nan, 1, nan])
    assert candidates == [12, 13, 14]
    assert int(state.params["elite"]) == 13
    state, _, _ = generation(BEGIN, [nan] * 6, [nan] * 3)
    assert int(state.params["best"]) == 10  # somebody, as long as there is nobody better


def test_fitness_enters_by_rank_only() -> None:
    fitness = [1.0, 5.0, 3.0, 9.0, 4.0, 0.0]
    one, _ = told(BEGIN, POPULATION, list(range(6)), fitness)
    other, _ = told(BEGIN, POPULATION, list(range(6)), [math.exp(x) - 50 for x in fitness])
    np.testing.assert_array_equal(one.aux["candidates"], other.aux["candidates"])


def test_asking_is_pure_and_fresh_in_every_generation() -> None:
    state = BEGIN
    once = SEARCH.ask(state, POPULATION, jax.random.key(1))["seed"]
    np.testing.assert_array_equal(SEARCH.ask(state, POPULATION, jax.random.key(1))["seed"], once)
    assert not np.isin(SEARCH.ask(state, POPULATION, jax.random.key(2))["seed"], once).any()


def test_a_state_keeps_its_kinds_of_numbers_so_that_nothing_is_compiled_twice() -> None:
    def kinds(state: Any) -> list[Any]:
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]

    begin = jax.eval_shape(SEARCH.init, ROOT)
    state = begin
    for round in SEARCH.rounds:
        offspring = jax.eval_shape(partial(SEARCH.ask, round=round), state, key=jax.random.key(0))
        values = jax.ShapeDtypeStruct((round.size, round.episodes), jnp.float32)
        evaluation = Evaluation(values, values, EpisodeResult({}, values, values, {}))  # type: ignore[arg-type]
        state, _ = jax.eval_shape(partial(SEARCH.tell, round=round), state, offspring=offspring, evaluation=evaluation)
    assert kinds(state) == kinds(begin)


# ---- options -------------------------------------------------------------------------------------------------------


def test_the_papers_sizes_are_a_preset_and_keys_beside_it_win() -> None:
    paper = RandomSearchConfig.model_validate({"preset": "paper", "candidates": 5})
    assert (paper.population, paper.candidates, paper.candidate_episodes) == (1000, 5, 30)


def test_a_small_population_has_fewer_candidates() -> None:
    assert RandomSearchConfig(population=4).candidates == 4
    assert RandomSearchConfig.model_validate({"preset": "paper", "population": 5}).candidates == 5


def test_more_candidates_than_individuals_are_refused() -> None:
    with pytest.raises(ValidationError, match="20 candidates of 10 individuals"):
        RandomSearchConfig(population=10, candidates=20)
