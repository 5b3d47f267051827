"""Random search: fresh networks in every generation, and the best of them kept.

It is the genetic algorithm of Such et al. 2017 (arXiv 1712.06567) without parents, which they compare it with.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from marl.agents.networks.greedy import GreedyActors
from marl.core.evolution import Evaluation, EvolvedPolicy, Offspring, Round, Shared, mean_fitness, team_return
from marl.core.types import Array, EpisodeResult, Key, LearnerState, Metrics, RoleSpec, Tree

from .config import RandomSearchConfig
from .genome import IMPL, Weights

POPULATION, ELITE = "population", "elite"


class RandomSearch(EvolvedPolicy):
    """Draws `population` networks a generation; the best of them and the elite before play again for the elite's place.

    An individual is the seed that its weights are drawn from. What is published at the end is the elite with the
    highest mean over its own further episodes in any generation, not the first: those of a lucky moment play again.
    """

    Config: ClassVar[type[RandomSearchConfig]] = RandomSearchConfig

    def __init__(self, config: RandomSearchConfig, roles: tuple[RoleSpec, ...], axis: str | None = None) -> None:
        del axis
        self.config = config
        actors = GreedyActors(config, roles)
        self.policy = actors
        self.rounds = (
            Round(POPULATION, config.population, config.episodes),
            Round(ELITE, config.candidates, config.candidate_episodes),
        )
        self.weights = Weights(jax.eval_shape(actors.init, jax.random.key(0)), config.init)

    def init(self, key: Key) -> LearnerState:
        """No elite yet. key: what all seeds' weights are drawn with."""
        nobody = jnp.zeros((), jnp.uint32)
        lowest = jnp.full((), -jnp.inf, jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        return LearnerState(
            params={"root": jax.random.key_data(key), "elite": nobody, "best": nobody, "best_fitness": lowest},
            opt=(),
            aux={"candidates": jnp.zeros((self.config.candidates,), jnp.uint32), "age": zero},
            hyper=(),
            env_steps=jnp.zeros((), jnp.float32),
            updates=zero,
        )

    def publish(self, state: LearnerState) -> Shared:
        return {"root": state.params["root"]}

    def ask(self, state: LearnerState, round: Round, key: Key) -> Offspring:
        """Seeds u32: fresh ones, or the candidates."""
        if round.name == ELITE:
            return {"seed": state.aux["candidates"]}
        return {"seed": jax.random.bits(key, (round.size,), jnp.uint32)}

    def decode(self, shared: Shared, offspring: Offspring) -> Tree:
        return self.weights.initial(jax.random.wrap_key_data(shared["root"], impl=IMPL), offspring["seed"])

    def score(self, episode: EpisodeResult) -> tuple[Array, Array]:
        """The mean return of the agents that it plays; no descriptor."""
        fitness = team_return(episode, self.roles)
        return fitness, jnp.zeros((*fitness.shape, 0), jnp.float32)

    def tell(
        self, state: LearnerState, round: Round, offspring: Offspring, evaluation: Evaluation
    ) -> tuple[LearnerState, Metrics]:
        fitness, seeds = mean_fitness(evaluation), offspring["seed"]
        if round.name == POPULATION:
            return self._choose(state, seeds, fitness), {}
        return self._promote(state, seeds, fitness)

    def _choose(self, state: LearnerState, seeds: Array, fitness: Array) -> LearnerState:
        """The candidates: the best, of equal ones the first; from the second generation on led by the elite."""
        count = self.config.candidates
        best = seeds[jnp.argsort(-fitness, stable=True)[:count]]
        led = jnp.concatenate([state.params["elite"][None], best[: count - 1]])
        candidates = jnp.where(state.updates > 0, led, best)
        return state.replace(aux={**state.aux, "candidates": candidates})  # type: ignore[attr-defined, no-any-return]

    def _promote(self, state: LearnerState, seeds: Array, fitness: Array) -> tuple[LearnerState, Metrics]:
        """The new elite, and the best of all if it is."""
        winner = jnp.argmax(fitness)
        elite, value, params = seeds[winner], fitness[winner], state.params
        better = value > params["best_fitness"]
        stays = (state.updates > 0) & (elite == params["elite"])
        age = jnp.where(stays, state.aux["age"] + 1, 0).astype(jnp.int32)
        best_fitness = jnp.where(better, value, params["best_fitness"])
        new = state.replace(  # type: ignore[attr-defined]
            params={
                **params,
                "elite": elite,
                # Before anything finite was seen, any individual is as good as the next.
                "best": jnp.where(better | (state.updates == 0), elite, params["best"]),
                "best_fitness": best_fitness,
            },
            aux={**state.aux, "age": age},
            updates=state.updates + 1,
        )
        return new, {"ga/elite_age": age.astype(jnp.float32), "ga/best_so_far": best_fitness}

    def best(self, state: LearnerState) -> Tree:
        return self.decode(self.publish(state), {"seed": state.params["best"]})
