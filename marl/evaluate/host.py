"""The evaluation protocol for worlds in Python: the same held-out episodes for every method, whoever steps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.algorithm import Policy
from marl.core.errors import RunError, WorldError
from marl.core.host_group import FaultPolicy, HostGroup
from marl.core.host_rows import HostWorlds, RowBlock
from marl.core.inference import act_lanes, check_policies, start_lanes, time_step_arrays
from marl.core.types import EpisodeResult, TimeStep, Tree
from marl.evaluate.protocol import Stream, episode_keys

MAX_LANES = 32  # copies played side by side
MAX_STEPS = 1_000_000  # an episode longer than this has no end


class HostEvaluator:
    """Plays whole episodes of a world in Python, several side by side. An episode whose world fails is over at its
    last good row.

    greedy: take the mode instead of sampling.  lanes: copies played side by side, a few dozen at most.
    Raises: WorldError from `run` if too many copies fail.
    """

    def __init__(
        self, worlds: HostWorlds, policies: Mapping[str, Policy], *, greedy: bool, faults: FaultPolicy, lanes: int
    ) -> None:
        check_policies(policies)
        self.worlds, self.policies, self.greedy, self.faults = worlds, dict(policies), greedy, faults
        self.lanes = min(lanes, MAX_LANES)
        self._groups: dict[int, HostGroup] = {}
        self._start = jax.jit(lambda keys: start_lanes(self.policies, keys))
        self._act = jax.jit(
            lambda params, memory, step: act_lanes(self.policies, params, memory, step, explore=not greedy)
        )

    def run(self, params: Mapping[str, Tree], name: Stream, episodes: int, first: int = 0) -> EpisodeResult:
        """Results of `episodes` episodes, leaves numpy `[episodes, ...]`. params: by policy name, as published."""
        lanes = min(self.lanes, episodes)
        parts = [
            self._wave(params, name, first + start, min(lanes, episodes - start)) for start in range(0, episodes, lanes)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)  # type: ignore[no-any-return]

    def _wave(self, params: Mapping[str, Tree], name: Stream, first: int, lanes: int) -> EpisodeResult:
        if lanes not in self._groups:
            block = RowBlock(self.worlds.spec, lanes)
            self._groups[lanes] = HostGroup(self.worlds.factory, block, self.faults)
        return play(self._groups[lanes], self.worlds, self._start, self._act, params, name, first)[0]

    def close(self) -> None:
        """Close the worlds."""
        for group in self._groups.values():
            group.close()


class HostEpisodePlayer:
    """Plays one episode and draws every row of it. Numbers equal those of `HostEvaluator`."""

    def __init__(self, worlds: HostWorlds, policies: Mapping[str, Policy], *, greedy: bool) -> None:
        self.worlds = worlds
        self._evaluator = HostEvaluator(worlds, policies, greedy=greedy, faults=FaultPolicy(), lanes=1)

    def frames(self, params: Mapping[str, Tree], name: Stream, episode: int) -> tuple[list[Any], EpisodeResult]:
        """The frames of a held-out episode (first to last row) and its result."""
        own = self._evaluator
        group = HostGroup(self.worlds.factory, RowBlock(self.worlds.spec, 1), own.faults, render=True)
        try:
            result, frames = play(group, self.worlds, own._start, own._act, params, name, episode, draw=True)
        finally:
            group.close()
        return frames, jax.tree.map(lambda x: x[0], result)


def play(
    group: HostGroup,
    worlds: HostWorlds,
    start: Any,
    act: Any,
    params: Mapping[str, Tree],
    name: Stream,
    first: int,
    *,
    draw: bool = False,
) -> tuple[EpisodeResult, list[NDArray[np.uint8]]]:
    """One episode in every copy of a group. start, act: compiled `start_lanes` and `act_lanes`."""
    block = group.block
    lanes = block.lanes
    memory, seeds = start(episode_keys(name, first, lanes))
    block.seed[:] = np.asarray(seeds)
    group.start()
    step: TimeStep = time_step_arrays(block.step)
    returns = {role.name: np.zeros((lanes, role.size), np.float32) for role in worlds.roles}
    length, agent_steps = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
    frames = [_drawn(group)] if draw else []
    for _ in range(MAX_STEPS):
        going = ~block.last
        if not going.any():
            break
        memory, acted = act(dict(params), memory, step)
        for role, array in block.action.items():
            array[:] = np.asarray(acted.action[role])
        acting = _acting(block)
        group.advance(hold=True)
        counted = going & ~block.fault
        length += counted
        agent_steps += acting * counted
        for role, total in returns.items():
            total += block.step["reward", role] * counted[:, None]
        if draw and not block.fault[0]:
            frames.append(_drawn(group))
    else:
        raise RunError(f"world {group.name}: an episode went on for {MAX_STEPS} steps; give env.max_steps")
    return EpisodeResult(returns, length, agent_steps, {}), frames  # type: ignore[arg-type]


def _drawn(group: HostGroup) -> NDArray[np.uint8]:
    """The picture of the first copy. Raises: WorldError if it has none."""
    try:
        return group.worlds[0].render()
    except WorldError as error:
        raise WorldError(f"world {group.name}: {error}") from error
    except Exception as error:  # foreign code
        why = f"render() raised {type(error).__name__}{f': {error}' if str(error) else ''}".splitlines()[0]
        raise WorldError(
            f"world {group.name} cannot be drawn: {why}; expected a picture for render_mode rgb_array"
        ) from error


def _acting(block: RowBlock) -> NDArray[np.int32]:
    """How many agents act on the present row, `[lanes]`."""
    total = np.zeros(block.lanes, np.int32)
    for path, alive in block.step.items():
        if path[0] == "alive":
            acts = block.step.get(("acting", *path[1:]))
            total += (alive if acts is None else alive & acts).sum(-1, dtype=np.int32)
    return total
