"""A PettingZoo AEC environment as a host world: agents act in turns, a row a turn. Importing this imports no JAX.

Rewards. `env.rewards` is what every agent gets for the last turn, whoever played it, and is written on the next row. At
an agent's own turn PettingZoo also says what it got since its last one (`env.last()`), which is what counts: if that
differs from what was written, because a world forgets to clear or to accumulate, the row of the turn makes up for it.
"""

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
from marl.interop.host_rows import PLAIN, number, write_mask
from marl.interop.host_spaces import AS_THEY_ARE
from marl.interop.pictures import Pictures

MASK = host_spaces.MASK


class TurnWorld:
    """One copy. Every agent that is there observes every row; the one whose turn it is acts.

    An agent that ends is stepped with None in here, at once when PettingZoo gives it the turn for that; it is absent
    from then on. Episodes are counted, and cut by `max_steps`, in turns.

    Raises: UserError if a space or a role cannot be used; WorldError if the first reset goes wrong.
    """

    turn_based = True

    def __init__(
        self,
        name: str,
        env: Any,
        max_steps: int | None,
        roles: Mapping[str, str | Sequence[str]] | None,
        state: bool | None,
        pictures: Pictures = AS_THEY_ARE,
    ) -> None:
        self.name = name
        self.env = env
        self.max_steps = max_steps
        env.reset(seed=0)
        self.cast: Cast = cast_of(env, list(env.agents), env.infos, roles, state, max_steps, pictures)
        self.roles: tuple[RoleSpec, ...] = self.cast.roles
        self.masked = self.cast.masked
        self.agent_names = self.cast.members
        self._limit = max_steps if max_steps is not None else -1
        self._t = 0
        self._row: HostRow | None = None
        self._decode = {
            role: host_spaces.decoder(self.cast.action_spaces[names[0]]) for role, names in self.cast.members.items()
        }
        self._present: list[str] = []
        self._turn: str | None = None
        self._given: dict[str, float] = {}

    def reset(self, seed: int, row: HostRow) -> None:
        """See `HostWorld`. Raises: WorldError for what does not fit."""
        if row is not self._row:
            self._bind(row)
        self.env.reset(seed=seed)
        self._t = 0
        self._given = dict.fromkeys(self.cast.place, 0.0)
        self._present = []
        self._advance(row)
        if self._turn is None:
            raise WorldError("nobody can act after reset: all agents have ended, or `agents` is empty")
        for by_role in (row.reward, row.terminated, row.truncated):
            host_spaces.fill(by_role, 0)
        # What an agent was given before the first turn is paid at its own.
        self._given = dict.fromkeys(self.cast.place, 0.0)

    def step(self, actions: dict[str, NDArray[Any]], row: HostRow) -> bool:
        """See `HostWorld`. Raises: WorldError for what does not fit."""
        if row is not self._row:
            self._bind(row)
        agent = self._turn
        assert agent is not None, "a world is not stepped after its last row"
        role, at = self.cast.place[agent]
        self.env.step(self._decode[role](actions[role][at : at + 1])[0])
        self._t += 1
        for by_role in (row.reward, row.terminated, row.truncated):
            host_spaces.fill(by_role, 0)
        self._given[agent] = 0.0
        rewards = self.env.rewards
        for one in self._present:
            try:
                value = rewards[one]
            except (KeyError, TypeError) as error:
                shown = ", ".join(map(str, rewards)) if isinstance(rewards, dict) else type(rewards).__name__
                raise WorldError(f"agent '{one}' has no reward in env.rewards; there are some for: {shown}") from error
            if value.__class__ not in PLAIN:
                value = number(value, one)
            if value:
                self._pay(one, float(value), row)
        self._advance(row)
        if self._turn is not None and self._t == self._limit:
            self._cut(row)
        return self._turn is None

    def render(self) -> NDArray[np.uint8]:
        """See `HostWorld`. Raises: WorldError if the world gives no picture."""
        return picture(self.env.render())

    def close(self) -> None:
        """Let go of the environment."""
        self.env.close()

    def _bind(self, row: HostRow) -> None:
        assert row.acting is not None, "rows of worlds with turns say who acts"
        self._row = row
        self._acting = row.acting
        self._put = {agent: self.cast.writer(agent, row) for agent in self.cast.place}
        self._put_state = self.cast.state_writer(row)

    def _pay(self, agent: str, reward: float, row: HostRow) -> None:
        role, at = self.cast.place[agent]
        row.reward[role][at] += reward
        self._given[agent] += reward

    def _advance(self, row: HostRow) -> None:
        """Give the turn to the next agent that can act, remove those that have ended, and write who sees what."""
        env = self.env
        before = self._present
        ended: set[str] = set()
        self._turn = None
        for by_role in (row.alive, self._acting):
            host_spaces.fill(by_role, 0)
        while env.agents:
            agent = env.agent_selection
            if agent not in self.cast.place:
                raise self.cast.stranger(agent)
            if agent not in env.agents:
                raise WorldError(
                    f"it is the turn of agent '{agent}', which is not in `agents`: {', '.join(env.agents)}"
                )
            _, total, terminated, truncated, info = env.last(observe=False)
            if total.__class__ not in PLAIN:
                total = number(total, agent)
            if agent in before and total != self._given[agent]:
                self._pay(agent, float(total) - self._given[agent], row)
            if not terminated and not truncated:
                self._turn = agent
                break
            if agent in before:
                self._end(agent, bool(terminated), row)
            ended.add(agent)
            env.step(None)
            if agent in env.agents:
                raise WorldError(f"agent '{agent}' has ended and was stepped with None, but is still in `agents`")
        present = list(env.agents)
        for agent in before:
            if agent not in ended and agent not in present:
                raise WorldError(f"agent '{agent}' left `agents`, but is neither terminated nor truncated")
        self._present = present
        for agent, (role, at) in self.cast.place.items():
            if agent in present:
                row.alive[role][at] = True
                self._observe(agent, role, at, info if agent == self._turn else None, row)
            elif agent not in ended:
                self.cast.blank(agent, row)
        if self._turn is not None:
            role, at = self.cast.place[self._turn]
            self._acting[role][at] = True
        else:
            # Whoever the end cuts off is still there at the last row: the value of that row is what follows.
            for role, alive in row.alive.items():
                alive |= row.truncated[role]
        self.cast.write_state(env, row, self._put_state, over=self._turn is None)

    def _observe(self, agent: str, role: str, at: int, info: Any, row: HostRow) -> None:
        """What an agent sees; its mask if it acts, which is when `info` is given."""
        observation = self.env.observe(agent)
        if agent in self.cast.mask_from:
            if agent == self._turn:
                write_mask(row.action_mask[role][at], self.cast.find_mask(agent, observation, {agent: info}), agent)
            else:
                row.action_mask[role][at] = True
            observation = self.cast.without_mask(agent, observation)
        if observation is None:
            raise WorldError(f"agent '{agent}': observe('{agent}') gave None, expected an observation")
        self._put[agent](observation)

    def _end(self, agent: str, terminated: bool, row: HostRow) -> None:
        """The last row of an agent. What one that died would see nobody needs, so the world need not give it."""
        role, at = self.cast.place[agent]
        (row.terminated if terminated else row.truncated)[role][at] = True
        self.cast.blank(agent, row)
        try:
            observation = self.env.observe(agent)
        except Exception:
            if not terminated:
                raise
            return
        if observation is None and terminated:
            return
        self._put[agent](self.cast.without_mask(agent, observation))

    def _cut(self, row: HostRow) -> None:
        """End the episode for everybody who is there."""
        for agent in self._present:
            role, at = self.cast.place[agent]
            died = bool(self.env.terminations.get(agent))
            row.terminated[role][at], row.truncated[role][at] = died, not died
            row.alive[role][at] = not died
        host_spaces.fill(self._acting, 0)
        for role in self.masked:
            row.action_mask[role][...] = True
        self._turn = None
