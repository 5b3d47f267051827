"""What searches without gradients: populations of individuals that are asked for, played and told about.

A generation is a fixed sequence of rounds. In each, `ask` names individuals in few bytes (seeds, genomes), evaluators
turn each into parameters with `decode` and play whole episodes with them, and `tell` takes the results. Nothing else
crosses a process: not the search's state, and no weights but those that `publish` gives once a generation.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from flax import struct

from marl.core.algorithm import Policy
from marl.core.config import AgentConfig
from marl.core.types import Array, ByRole, DataNeeds, EpisodeResult, Key, LearnerState, Metrics, TimeStep, Tree

Shared: TypeAlias = Tree  # what all individuals of a generation are decoded with, such as their parents
Offspring: TypeAlias = Tree  # individuals in few bytes; leaves [individual, ...]


class Round(NamedTuple):
    """One ask and tell of a generation. size: individuals.  episodes: whole ones that each of them plays; episode
    number i starts from the same key for all of them, a fresh one in every generation and round."""

    name: str
    size: int
    episodes: int


@struct.dataclass
class Evaluation:
    """What the individuals of a round did. fitness: f32 `[individual, episode]`, the more the better.

    descriptor: f32 `[individual, episode, dimension]`, how it behaved; no dimension where nobody asks.
    episode: leaves `[individual, episode, ...]`.
    """

    fitness: Array
    descriptor: Array
    episode: EpisodeResult


@runtime_checkable
class Evolution(Policy, Protocol):
    """A search over the parameters of `policy`. It acts as that policy does (`EvolvedPolicy`), so that what it finds is
    evaluated, rendered and served like any other.

    All functions are pure and jit-safe; `round` is static. `state` has the fields of a gradient learner's; `env_steps`
    is written by the dataflow before each `tell`, for schedules only.
    """

    Config: ClassVar[type[AgentConfig]]

    @property
    def policy(self) -> Policy: ...
    @property
    def rounds(self) -> tuple[Round, ...]: ...
    def init(self, key: Key) -> LearnerState: ...
    def publish(self, state: LearnerState) -> Shared:
        """What evaluators need to decode, once a generation, before its first round."""
        ...

    def ask(self, state: LearnerState, round: Round, key: Key) -> Offspring:
        """`round.size` individuals. Pure: a generation that was interrupted is asked for again, never saved."""
        ...

    def decode(self, shared: Shared, offspring: Offspring) -> Tree:
        """Parameters of ONE individual: leaves of `offspring` come without their first axis."""
        ...

    def score(self, episode: EpisodeResult) -> tuple[Array, Array]:
        """Fitness `[...]` and descriptor `[..., dimension]` of episodes, leaves `[..., ...]`."""
        ...

    def tell(
        self, state: LearnerState, round: Round, offspring: Offspring, evaluation: Evaluation
    ) -> tuple[LearnerState, Metrics]: ...
    def best(self, state: LearnerState) -> Tree:
        """Parameters of the best individual so far: what the run's `policy/` holds."""
        ...


class EvolvedPolicy:
    """Gives an Evolution the face of the policy whose parameters it searches."""

    policy: Policy

    @property
    def roles(self) -> tuple[str, ...]:
        return self.policy.roles

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(rollout=1, whole_episodes=True, global_state=self.policy.needs.global_state)

    def initial_carry(self) -> Tree:
        return self.policy.initial_carry()

    def act(self, params: Tree, carry: Tree, step: TimeStep, key: Key, *, explore: bool) -> tuple[Tree, ByRole, Tree]:
        return self.policy.act(params, carry, step, key, explore=explore)


def evolves(policy: Any) -> bool:
    """Whether a policy is an Evolution, which trains by populations instead of updates."""
    return hasattr(policy, "tell")


def team_return(episode: EpisodeResult, roles: tuple[str, ...]) -> Array:
    """The return of an episode, mean over all agents of these roles, `[...]`."""
    every = jnp.concatenate([jnp.asarray(episode.returns[role]) for role in roles], axis=-1)
    return every.mean(axis=-1)


def mean_fitness(evaluation: Evaluation) -> Array:
    """Fitness by individual, mean over its episodes; one that is not a number is the lowest there is, -inf."""
    fitness = evaluation.fitness.mean(axis=-1)
    return jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
