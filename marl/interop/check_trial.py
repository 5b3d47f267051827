"""Whole episodes of somebody's world, played at random, with an eye on every row. Importing this imports no JAX."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.core.errors import UserError
from marl.interop import host_spaces
from marl.interop.check_games import BrokenError, Game, Moment, TurnGame, first_line
from marl.interop.check_values import (
    difference,
    flag_problem,
    frozen_value,
    mask_problem,
    observation_problems,
    reward_problem,
    same,
    shown,
)

LONGEST = 2000  # steps (turns) of an episode that are waited for where nothing limits it
BUDGET_S = 30.0  # then what has been seen must do, once more for playing it again

CHECKS = {
    "agents": "possible_agents holds all agents, by name, and stays as it is",
    "spaces": "every agent has its spaces, the same objects at every call, and ours can hold them",
    "reset": "reset takes seed and options and returns what it should",
    "step": "legal actions are taken, and a step returns what it should",
    "observations": "every agent that is there has one, of its space",
    "masks": "action masks fit the actions, and allow one to whoever acts",
    "rewards": "every agent that acted gets a finite number, and nobody after its end",
    "ends": "agents end, once, and episodes do",
    "seeds": "the same seed and actions give the same episode",
    "rows": "the adapter plays whole episodes",
}


class Trial:
    """Plays a world and keeps what is wrong, by check.

    renew: makes another copy.  problems: in the order found, by what is wrong, with when it was first.  done: checks
    that have seen all.  broken: the world could not be played on.
    """

    def __init__(self, game: Game, renew: Callable[[], Game], steps: int | None, episodes: int, seed: int) -> None:
        self.game = game
        self.renew = renew
        self.steps = steps
        self.episodes = episodes
        self.seed = seed
        self.problems: dict[str, dict[str, str]] = {name: {} for name in CHECKS}
        self.done: set[str] = set()
        self.broken = False
        self.stop_at = time.monotonic() + BUDGET_S
        self._spaces: dict[str, tuple[Any, Any]] = {}
        self._masked: dict[str, str] = {}
        self._absent: set[str] = set()  # agents that ended and were gone for a row or more
        self._where = ""

    def run(self) -> None:
        """Make all checks but the adapter's."""
        try:
            first = self._first_reset()
            if not self._look_at_spaces(first):
                return
            self._say_masks(first)
            first_played = self._episode(self.seed)
            for index in range(1, self.episodes):
                self._episode(self.seed + index)
            self._again(first_played)
            self.done.update(CHECKS.keys() - {"rows"})
        except BrokenError as error:
            self.broken = True
            self._wrong(error.check, str(error))

    def _wrong(self, check: str, words: str) -> None:
        """Keep a problem, unless the same one was there before with other numbers in it."""
        parts = words.split("'")  # what is quoted names somebody
        parts[::2] = [re.sub(r"-?\d[\d.]*(e[-+]?\d+)?", "#", part) for part in parts[::2]]
        self.problems[check].setdefault("'".join(parts), f"{self._where}{words}")

    def _first_reset(self) -> Moment:
        possible = self.game.possible
        if not possible:
            self._wrong("agents", "possible_agents is missing or empty, expected the names of all that may ever appear")
        first = self.game.reset(self.seed)
        if self.game.possible != possible:
            now = ", ".join(map(str, self.game.possible))
            self._wrong("agents", f"possible_agents became {now} with reset, expected it to stay as it is")
        if not first.agents:
            raise BrokenError("agents", "nobody is there after reset: `agents` is empty")
        for agent in possible or first.agents:
            if not isinstance(agent, str):
                raise BrokenError("agents", f"agent {agent!r} is no name, expected text such as 'agent_0'")
        self.done.add("reset")
        return first

    def _look_at_spaces(self, first: Moment) -> bool:
        """Whether everybody's spaces can be played with."""
        game = self.game
        fresh: set[str] = set()  # methods that make new spaces
        for agent in game.possible or first.agents:
            pair = []
            for method in (game.observation_space, game.action_space):
                name = method.__name__
                try:
                    space = method(agent)
                    again = method(agent)
                except Exception as error:
                    self._wrong("spaces", f"{name}('{agent}') raised {type(error).__name__}: {first_line(error)}")
                    continue
                if not isinstance(space, spaces.Space):
                    self._wrong("spaces", f"{name} of agent '{agent}' is {shown(space)}, expected a Gymnasium space")
                    continue
                if again is not space and name not in fresh:
                    fresh.add(name)
                    words = "gives another object at every call, expected the same one, or seeding it has no effect"
                    self._wrong("spaces", f"{name}('{agent}') {words}")
                pair.append(space)
            if len(pair) == 2:
                self._usable(agent, pair[0], pair[1])
        self.done.update({"agents", "spaces"})
        return len(self._spaces) == len(game.possible or first.agents)

    def _usable(self, agent: str, observation: Any, action: Any) -> None:
        kept, masked = host_spaces.split_mask(observation, action)
        try:
            host_spaces.observation_space(kept, agent)
            host_spaces.action_space(action, agent)
        except UserError as error:
            self._wrong("spaces", str(error))
            return
        if masked:
            self._masked[agent] = "observation"
        self._spaces[agent] = observation, copy.deepcopy(action)

    def _say_masks(self, first: Moment) -> None:
        for agent in first.agents:
            info = first.infos.get(agent)
            action = self._spaces.get(agent, (None, None))[1]
            if isinstance(info, dict) and "action_mask" in info and isinstance(action, spaces.Discrete):
                self._masked.setdefault(agent, "info")

    # ---- one episode ---------------------------------------------------------------------------------------------

    def _episode(self, seed: int) -> list[tuple[Moment, dict[str, Any]]]:
        """Play one and look at every row of it. What happened, with the actions that led to the next row."""
        random = np.random.default_rng(seed)
        for _, action in self._spaces.values():  # each its own, or all agents would move in step
            action.seed(int(random.integers(2**31)))
        self._where = f"seed {seed}, reset: "
        moment = self.game.reset(seed)
        ended: dict[str, int] = {}
        self._absent.clear()
        happened: list[tuple[Moment, dict[str, Any]]] = []
        limit = self.steps or LONGEST
        for step in range(limit + 1):
            self._where = f"seed {seed}, step {step}: " if step else f"seed {seed}, reset: "
            self._look(moment, ended, step)
            acting = [agent for agent in moment.acting if agent in self._spaces]
            if not acting or time.monotonic() > self.stop_at:
                break
            if step == limit:
                self._endless(limit)
                break
            actions = {agent: self._legal(agent, moment, random) for agent in acting}
            happened.append((frozen(moment), actions))
            moment = self.game.step(frozen_value(actions))
        happened.append((frozen(moment), {}))
        self._where = ""
        return happened

    def _endless(self, limit: int) -> None:
        if self.steps is None:
            self._where = ""
            self._wrong(
                "ends",
                f"an episode has not ended after {limit} steps: truncate it, or cut it with the option max_steps",
            )

    def _legal(self, agent: str, moment: Moment, random: np.random.Generator) -> Any:
        """A random action of the agent's space that its mask allows."""
        space = self._spaces[agent][1]
        mask = self._mask(agent, moment)
        if mask is not None and mask_problem(mask, int(space.n)) is None:
            return int(random.choice(np.flatnonzero(mask))) + int(space.start)
        action = space.sample()
        return int(action) if isinstance(space, spaces.Discrete) else action

    def _mask(self, agent: str, moment: Moment) -> Any:
        source = self._masked.get(agent)
        found = moment.observations.get(agent) if source == "observation" else moment.infos.get(agent)
        return found.get("action_mask") if source and isinstance(found, dict) else None

    # ---- one row -------------------------------------------------------------------------------------------------

    def _look(self, moment: Moment, ended: dict[str, int], step: int) -> None:
        for agent in moment.agents:
            if agent not in self._spaces:
                known = "possible_agents" if self.game.possible else "the agents of the first reset"
                self._wrong("agents", f"agent {agent!r} is there, but not among {known}: {', '.join(self._spaces)}")
        self._look_at_rewards(moment, ended)
        self._look_at_ends(moment, ended, step)
        for agent in moment.agents:
            if agent in self._spaces:
                self._look_at_agent(agent, moment)
        for agent in moment.expected or []:
            cut = agent in ended and bool(moment.truncations.get(agent)) and not bool(moment.terminations.get(agent))
            if cut and self.game.kind != TurnGame.kind and moment.observations.get(agent) is None:
                self._wrong(
                    "observations",
                    f"agent '{agent}' is truncated and has no observation; expected its last one, from which the value "
                    "of what would have followed is estimated",
                )

    def _look_at_agent(self, agent: str, moment: Moment) -> None:
        if moment.observations.get(agent) is None:
            there = ", ".join(map(str, moment.observations)) or "nobody"
            self._wrong("observations", f"agent '{agent}' is there and has no observation; there are some for: {there}")
            return
        for words in observation_problems(self._spaces[agent][0], moment.observations[agent]):
            self._wrong("observations", f"agent '{agent}': {words}")
        if agent in self._masked and agent in moment.acting:
            words_or_none = mask_problem(self._mask(agent, moment), int(self._spaces[agent][1].n))
            if self._mask(agent, moment) is None:
                words_or_none = f"there is no action_mask in its {self._masked[agent]}, as there was at first"
            if words_or_none:
                self._wrong("masks", f"agent '{agent}': {words_or_none}")

    def _look_at_rewards(self, moment: Moment, ended: Mapping[str, int]) -> None:
        for agent in moment.expected or []:
            if agent not in moment.rewards:
                there = ", ".join(map(str, moment.rewards)) or "nobody"
                self._wrong("rewards", f"agent '{agent}' acted and has no reward; there are some for: {there}")
                continue
            words = reward_problem(moment.rewards[agent])
            if words:
                self._wrong("rewards", f"agent '{agent}': {words}")
        for agent, reward in moment.rewards.items():
            acted = moment.expected is None or agent in moment.expected
            if agent in ended and not acted and reward_problem(reward) is None and float(reward):
                self._wrong(
                    "rewards",
                    f"agent '{agent}' ended at step {ended[agent]} and still gets a reward of {float(reward):g}",
                )

    def _look_at_ends(self, moment: Moment, ended: dict[str, int], step: int) -> None:
        now = []
        for agent in moment.expected or []:
            for what, flags in (("termination", moment.terminations), ("truncation", moment.truncations)):
                if agent not in flags:
                    self._wrong("ends", f"agent '{agent}' acted and has no {what}; expected True or False")
                    continue
                words = flag_problem(what, flags[agent])
                if words:
                    self._wrong("ends", f"agent '{agent}': {words}")
            if any(_true(flags.get(agent)) for flags in (moment.terminations, moment.truncations)):
                now.append(agent)
            elif agent not in moment.agents:
                self._wrong("ends", f"agent '{agent}' left `agents`, but is neither terminated nor truncated")
        for agent in [agent for agent in ended if ended[agent] < step - 1 and agent in moment.agents]:
            if agent in self._absent:  # it comes back
                del ended[agent]
                self._absent.discard(agent)
        for agent in now:
            ended.setdefault(agent, step)
        self._absent.update(agent for agent in ended if agent not in moment.agents)
        if all(agent in ended for agent in moment.agents):
            # All that are left have ended: that the world has not emptied `agents` harms nobody.
            moment.acting = []
            return
        for agent in moment.agents:
            if agent in ended:
                self._wrong(
                    "ends", f"agent '{agent}' ended at step {ended[agent]} and is still in `agents`: it would act on"
                )

    # ---- the same again ------------------------------------------------------------------------------------------

    def _again(self, before: list[tuple[Moment, dict[str, Any]]]) -> None:
        """The first episode once more, with its seed and actions, after the others and in a new copy."""
        if self.problems["agents"]:
            return
        differs = self._replay(self.game, before)
        if differs is None:
            return
        new = self.renew()
        new.reset(self.seed)
        alike = self._replay(new, before) is None
        why = "; a new copy plays it alike, so earlier episodes leave something behind" if alike else ""
        self._wrong("seeds", f"seed {self.seed} played again with the same actions differs at {differs}{why}")

    def _replay(self, game: Game, before: list[tuple[Moment, dict[str, Any]]]) -> str | None:
        """Where an episode first differs from what it was, or None."""
        stop_at = time.monotonic() + BUDGET_S
        moment = game.reset(self.seed)
        for step, (was, actions) in enumerate(before):
            for words in _differences(was, frozen(moment)):
                return f"{f'step {step}' if step else 'reset'}: {words}"
            if not actions or time.monotonic() > stop_at:
                return None
            moment = game.step(frozen_value(actions))
        return None


def frozen(moment: Moment) -> Moment:
    """A moment that does not change when the world writes over its arrays, and stays small."""
    seen = {agent: frozen_value(value) for agent, value in moment.observations.items()}
    return dataclasses.replace(moment, observations=seen, rewards=dict(moment.rewards), agents=list(moment.agents))


def _differences(was: Moment, now: Moment) -> Iterator[str]:
    if was.agents != now.agents:
        yield f"agents are {', '.join(now.agents)}, were {', '.join(was.agents)}"
        return
    for what in ("observations", "rewards", "terminations", "truncations"):
        one, other = getattr(was, what), getattr(now, what)
        for agent in one:
            if not same(one[agent], other.get(agent)):
                yield difference(f"{what.removesuffix('s')} of agent '{agent}'", one[agent], other.get(agent))
                return


def _true(flag: Any) -> bool:
    return flag is not None and np.ndim(flag) == 0 and bool(flag)
