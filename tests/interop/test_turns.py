"""Worlds of turns made up at random: what every agent gets through the rows is what PettingZoo says it got."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo import AECEnv

from marl.core.host_rows import RowBlock, RowSpec
from marl.interop.host_aec import TurnWorld

SEEN, DONE = spaces.Box(-1e6, 1e6, (1,), np.float32), spaces.Discrete(2)


class Turns(AECEnv):
    """Agents in turn, rewards and ends by a table drawn beforehand.

    table: of turns, by agent a reward in quarters (so that sums are exact).  ends: by agent the turn that ends it, and
    whether it dies or is cut off.  tidy: gives those that ended the turn at once, as most worlds do; else they get it
    when it comes to them, and may earn something until then.  clears: forgets no reward from turn to turn.
    """

    metadata: dict[str, Any] = {"name": "turns"}  # noqa: RUF012
    render_mode = None

    def __init__(self, table: list[list[int]], ends: list[tuple[int, bool]], tidy: bool, clears: bool) -> None:
        self.table, self.ends, self.tidy, self.clears = table, ends, tidy, clears
        self.possible_agents = [f"p_{i}" for i in range(len(ends))]

    def observation_space(self, agent: str) -> Any:
        return SEEN

    def action_space(self, agent: str) -> Any:
        return DONE

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection, self.turn = self.agents[0], 0

    def observe(self, agent: str) -> Any:
        return np.asarray([self.turn], np.float32)

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        following = self.agents[(self.agents.index(agent) + 1) % len(self.agents)]
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            if not self.tidy and self.agents:
                self.agent_selection = following
            return
        self._cumulative_rewards[agent] = 0.0
        row = self.table[self.turn % len(self.table)]
        paid = {a: row[int(a[2:])] / 4 for a in self.agents}
        # A world that does not clear pays what was new, and leaves the rest standing in `rewards`.
        new = {a: r for a, r in paid.items() if r or self.clears}
        self.rewards = new if self.clears else {**self.rewards, **new}
        self.turn += 1
        for a in self.agents:
            when, dies = self.ends[int(a[2:])]
            if self.turn >= when:
                (self.terminations if dies else self.truncations)[a] = True
        if self.tidy:
            order = self.agents[self.agents.index(agent) + 1 :] + self.agents[: self.agents.index(agent) + 1]
            left = [a for a in order if not self.terminations[a] and not self.truncations[a]]
            following = left[0] if left else agent
        self.agent_selection = following
        for a, reward in new.items():
            self._cumulative_rewards[a] += reward
        if self.tidy:
            self._deads_step_first()


def official(env: Turns) -> dict[str, float]:
    """`last()` at every agent's own turns."""
    total = dict.fromkeys(env.possible_agents, 0.0)
    env.reset(seed=0)
    for agent in env.agent_iter():
        _, reward, terminated, truncated, _ = env.last()
        total[agent] += reward
        env.step(None if terminated or truncated else 0)
    return total


@given(
    agents=st.integers(1, 4),
    rows=st.lists(st.lists(st.integers(-8, 8), min_size=4, max_size=4), min_size=1, max_size=12),
    ends=st.lists(st.tuples(st.integers(1, 14), st.booleans()), min_size=4, max_size=4),
    tidy=st.booleans(),
    clears=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_rewards_add_up_and_everybody_ends_once(
    agents: int, rows: list[list[int]], ends: list[tuple[int, bool]], tidy: bool, clears: bool
) -> None:
    world = TurnWorld("turns", Turns(rows, ends[:agents], tidy, clears), None, None, None)
    block = RowBlock(RowSpec.of(world), 1)
    row, action = block.host_row(0), block.lane_actions(0)
    world.reset(0, row)
    assert row.acting is not None
    total, ended, turns, last = np.zeros(agents), np.zeros(agents, int), 0, False
    while not last:
        assert row.acting["p"].sum() == 1
        assert not (row.acting["p"] & ~row.alive["p"]).any()
        before = row.alive["p"].copy()
        last = world.step(action, row)
        turns += 1
        total += row.reward["p"]
        ended += row.terminated["p"].astype(int) + row.truncated["p"]
        assert not row.reward["p"][~before].any(), "nothing after its end"
    assert not row.acting["p"].any()
    assert ended.tolist() == [1] * agents
    assert not (row.alive["p"] & row.terminated["p"]).any()
    assert total.tolist() == list(official(Turns(rows, ends[:agents], tidy, clears)).values())
