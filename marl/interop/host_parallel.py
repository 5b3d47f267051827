"""A PettingZoo parallel environment as a host world. Importing this imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import WorldError
from marl.core.host import HostRow
from marl.core.roles import RoleSpec
from marl.interop import host_spaces
from marl.interop.cast import Cast, cast_of
from marl.interop.host_gymnasium import picture
from marl.interop.host_rows import PLAIN, number, unpacked, write_mask
from marl.interop.host_spaces import AS_THEY_ARE
from marl.interop.pictures import Pictures

STEP = "(observations, rewards, terminations, truncations, infos)"


class ParallelWorld:
    """One copy: all agents that are there act at every row.

    Agents that end are absent from then on; agents may join or come back. An agent whose name is not among
    `possible_agents` is an error, as the rows have no place for it.

    Raises: UserError if a space or a role cannot be used; WorldError if the first reset goes wrong.
    """

    turn_based = False

    def __init__(
        self,
        name: str,
        env: Any,
        max_steps: int | None,
        roles: Mapping[str, str | Sequence[str]] | None,
        state: bool | None,
        pictures: Pictures = AS_THEY_ARE,
        ends: int | None = None,
    ) -> None:
        self.name = name
        self.env = env
        self.max_steps = max_steps
        _, infos = unpacked(env.reset(seed=0), 2, "reset", "(observations, infos)")
        self.cast: Cast = cast_of(env, list(env.agents), infos, roles, state, max_steps, pictures)
        self.roles: tuple[RoleSpec, ...] = self.cast.roles
        self.masked = self.cast.masked
        self.agent_names = self.cast.members
        self._limit = ends if ends is not None else -1
        self._t = 0
        self._present: list[str] = []
        self._row: HostRow | None = None
        self._decoders = [
            (role, names, host_spaces.decoder(self.cast.action_spaces[names[0]]))
            for role, names in self.cast.members.items()
        ]

    def reset(self, seed: int, row: HostRow) -> None:
        """See `HostWorld`. Raises: WorldError for what does not fit."""
        if row is not self._row:
            self._bind(row)
        self._t = 0
        observations, infos = unpacked(self.env.reset(seed=seed), 2, "reset", "(observations, infos)")
        present = self._agents()
        if not present:
            raise WorldError("nobody is there after reset: `agents` is empty")
        here = set(present)
        for agent in here.difference(self._places):
            raise self.cast.stranger(agent)
        for agent, (put, at, reward, terminated, truncated, alive) in self._places.items():
            reward[at] = 0.0
            terminated[at] = truncated[at] = False
            alive[at] = agent in here
            if agent in here:
                self._observe(agent, put, observations, infos)
            else:
                self.cast.blank(agent, row)
        self._present = list(present)
        self.cast.write_state(self.env, row, self._put_state)

    def step(self, actions: dict[str, NDArray[Any]], row: HostRow) -> bool:
        """See `HostWorld`. Raises: WorldError for what does not fit."""
        if row is not self._row:
            self._bind(row)
        before = self._present
        given: dict[str, Any] = {}
        for role, names, decode in self._decoders:
            given.update(zip(names, decode(actions[role]), strict=True))
        if len(before) != len(given):
            given = {agent: given[agent] for agent in before}
        outcome = self.env.step(given)
        if outcome.__class__ is not tuple or len(outcome) != 5:
            outcome = unpacked(outcome, 5, "step", STEP)
        observations, rewards, terminations, truncations, infos = outcome
        self._t += 1
        cut = self._t == self._limit
        after = self._agents()
        present: list[str] = []
        ended: list[str] = []
        for agent in before:
            put, at, reward, terminated, truncated, alive = self._places[agent]
            try:
                value, died, gone = rewards[agent], bool(terminations[agent]), bool(truncations[agent])
            except (KeyError, TypeError) as error:
                raise self._incomplete(agent, rewards, terminations, truncations) from error
            if value.__class__ not in PLAIN:
                value = number(value, agent)
            reward[at] = value
            terminated[at] = died
            gone = not died and (gone or cut)
            truncated[at] = gone
            alive[at] = here = not died and not gone
            if here:
                present.append(agent)
                self._observe(agent, put, observations, infos)
            else:
                ended.append(agent)
                self._observe_last(agent, put, observations, died)
        if len(before) != len(self._places) or after != present:
            self._come_and_go(before, present, after, observations, infos, row)
        self._present = present
        last = cut or not present
        if last:
            # Whoever the end cuts off is still there at the last row: the value of that row is what follows.
            for agent in ended:
                _, at, _, terminated, _, alive = self._places[agent]
                alive[at] = not terminated[at]
        if self._put_state is not None:
            self.cast.write_state(self.env, row, self._put_state, over=last)
        return last

    def render(self) -> NDArray[np.uint8]:
        """See `HostWorld`. Raises: WorldError if the world gives no picture."""
        return picture(self.env.render())

    def close(self) -> None:
        """Let go of the environment."""
        self.env.close()

    def _bind(self, row: HostRow) -> None:
        self._row = row
        self._places = {
            agent: (
                self.cast.writer(agent, row),
                at,
                row.reward[role],
                row.terminated[role],
                row.truncated[role],
                row.alive[role],
            )
            for role, names in self.cast.members.items()
            for at, agent in enumerate(names)
        }
        self._put_state = self.cast.state_writer(row)

    def _agents(self) -> list[str]:
        agents: list[str] = self.env.agents
        return agents

    def _observe(self, agent: str, put: host_spaces.Write, observations: Any, infos: Any) -> None:
        """The observation of an agent that is there, and its mask."""
        try:
            observation = observations[agent]
        except (KeyError, TypeError, IndexError) as error:
            raise WorldError(_missing(agent, "observation", observations)) from error
        if self.masked and agent in self.cast.mask_from:
            assert self._row is not None
            write_mask(self.cast.mask_of(agent, self._row), self.cast.find_mask(agent, observation, infos), agent)
            observation = self.cast.without_mask(agent, observation)
        put(observation)

    def _observe_last(self, agent: str, put: host_spaces.Write, observations: Any, died: bool) -> None:
        """The observation of an agent that has just ended: of one that died nobody needs it, so it may be missing."""
        assert self._row is not None
        observation = observations.get(agent) if isinstance(observations, dict) else None
        if observation is None and not died:
            raise WorldError(
                f"{_missing(agent, 'observation', observations)}; it was truncated, and the value of its last "
                "observation is what it would still have got"
            )
        self.cast.blank(agent, self._row)
        if observation is not None:
            put(self.cast.without_mask(agent, observation))

    def _come_and_go(
        self,
        before: list[str],
        present: list[str],
        after: list[str],
        observations: Any,
        infos: Any,
        row: HostRow,
    ) -> None:
        """The agents that were not there before: absent still, or joining at this row. `present` gets those."""
        here, were = set(after), set(before)
        for agent in here.difference(self._places):
            raise self.cast.stranger(agent)
        for agent in present:
            if agent not in here:
                raise WorldError(f"agent '{agent}' left `agents`, but is neither terminated nor truncated")
        for agent, (put, at, reward, terminated, truncated, alive) in self._places.items():
            if agent in were:
                continue
            reward[at] = 0.0
            terminated[at] = truncated[at] = False
            alive[at] = agent in here
            if agent in here:
                present.append(agent)
                self._observe(agent, put, observations, infos)
            else:
                self.cast.blank(agent, row)

    def _incomplete(self, agent: str, rewards: Any, terminations: Any, truncations: Any) -> WorldError:
        parts = {"reward": rewards, "termination": terminations, "truncation": truncations}
        for what, values in parts.items():
            if not isinstance(values, dict) or agent not in values:
                return WorldError(_missing(agent, what, values))
        return WorldError(f"agent '{agent}': its termination or truncation is no truth value")


def _missing(agent: str, what: str, values: Any) -> str:
    if not isinstance(values, dict):
        return f"the {what}s are {type(values).__name__}, expected a dict with one for every agent"
    return f"agent '{agent}' has no {what}; there are some for: {', '.join(map(str, values)) or 'nobody'}"
