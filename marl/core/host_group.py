"""Several copies of a world in Python, stepped one after another; what goes wrong in them stays in them.

Importing this imports no JAX: the processes that step worlds run this and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from marl.core.errors import WorldError
from marl.core.host import HostFactory, HostWorld
from marl.core.host_rows import RowBlock
from marl.core.watchdog import OverdueError, Watchdog

RESET_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class FaultPolicy:
    """What worlds may do wrong before a run stops. A copy that fails is made anew and its episode cut at the last good
    row.

    share: of the episodes begun, beyond which the run stops (0: at the first fault).  grace: faults that are forgiven
    before the share counts.  timeout_s: longest that one call of a world may take.
    """

    share: float = 0.05
    grace: int = 3
    timeout_s: float = 60.0


class HostGroup:
    """Copies of a world that write into one `RowBlock`.

    Raises: WorldError at construction if the world cannot be made, and from `start` and `advance` once the fault policy
    says that the run must stop.
    """

    def __init__(self, factory: HostFactory, block: RowBlock, policy: FaultPolicy, *, render: bool = False) -> None:
        self.factory = factory
        self.render = render
        self.block = block
        self.policy = policy
        self.worlds: list[HostWorld] = [factory.make(render=render) for _ in range(block.lanes)]
        self.name = self.worlds[0].name
        self._rows = [block.host_row(lane) for lane in range(block.lanes)]
        self._actions = [block.lane_actions(lane) for lane in range(block.lanes)]
        self._floats = [(path, array) for path, array in block.step.items() if np.issubdtype(array.dtype, np.floating)]
        self.episode_seeds = [0] * block.lanes
        self.steps = [0] * block.lanes
        self.episodes = 0
        self.faults: list[str] = []
        self._reported = 0
        self._watchdog = Watchdog(policy.timeout_s)

    def start(self) -> None:
        """Begin an episode in every copy, from the block's `seed`s."""
        self._each(self._reset)

    def advance(self, *, hold: bool = False) -> None:
        """One row on in every copy: the block's `action`s, or a new episode from its `seed` where the row was the last.

        `fault` is set where the transition failed: that lane's row is then zeros with `last`, and the row before counts
        for nobody.  hold: copies whose episode is over stay as they are, as those do that the block's `hold` names.
        """
        block = self.block
        block.fault[:] = False
        ended, held = block.last.tolist(), block.hold.tolist()

        def visit(lane: int) -> None:
            if not ended[lane]:
                self._step(lane)
            elif not hold and not held[lane]:
                self._reset(lane)

        self._each(visit)

    def _each(self, visit: Callable[[int], None]) -> None:
        """Visit every copy; one that hangs is replaced, and the copies after it still get their turn."""
        lane = 0
        while lane < self.block.lanes:
            try:
                with self._watchdog.guard():
                    while lane < self.block.lanes:
                        visit(lane)
                        lane += 1
                        self._watchdog.touch()
            except OverdueError:
                self._failed(lane, f"did not answer within {self.policy.timeout_s:g} s")
                lane += 1
        self._check_numbers()

    def _step(self, lane: int) -> None:
        block = self.block
        try:
            last = self.worlds[lane].step(self._actions[lane], self._rows[lane])
        except OverdueError:
            raise
        except Exception as error:  # foreign code: whatever it raises is what we report
            self._failed(lane, _words(error))
            return
        self.steps[lane] += 1
        block.first[lane] = False
        block.last[lane] = last

    def _reset(self, lane: int) -> None:
        block = self.block
        seed = int(block.seed[lane] & 0x7FFFFFFF)
        for attempt in range(RESET_ATTEMPTS):
            self.episodes += 1
            self.episode_seeds[lane], self.steps[lane] = seed + attempt, 0
            try:
                self.worlds[lane].reset(seed + attempt, self._rows[lane])
                break
            except OverdueError:
                raise
            except Exception as error:
                self._report(lane, _words(error), "reset")
                if attempt == RESET_ATTEMPTS - 1:
                    raise WorldError(f"{self.faults[-1]}; {RESET_ATTEMPTS} resets in a row failed") from error
                self._renew(lane)
        block.first[lane], block.last[lane] = True, False
        block.seed[lane] = self.episode_seeds[lane]
        for path, array in block.step.items():
            if path[0] in ("reward", "terminated", "truncated"):
                array[lane] = 0

    def replay(self, lane: int, seed: int, actions: dict[str, Any]) -> None:
        """Bring a copy to where an episode stood: its seed, and its actions so far `[L, n, ...]` by role."""
        block = self.block
        block.seed[lane] = seed
        self._reset(lane)
        for t in range(len(next(iter(actions.values())))):
            for role, rows in actions.items():
                block.action[role][lane] = rows[t]
            self._step(lane)

    # ---- faults --------------------------------------------------------------------------------------------------

    def _failed(self, lane: int, words: str, *, landed: bool = False) -> None:
        """Close the lane's episode with an empty last row and put a new copy in its place. landed: its step was
        counted already."""
        self._report(lane, words, f"step {self.steps[lane] + (not landed)}")
        for array in self.block.step.values():
            array[lane] = 0
        for path, array in self.block.step.items():
            if path[0] == "action_mask":
                array[lane] = True
        self.block.last[lane] = True
        self.block.fault[lane] = True
        self._renew(lane)

    def _report(self, lane: int, words: str, where: str) -> None:
        self.faults.append(f"world {self.name}: {words} (episode seed {self.episode_seeds[lane]}, {where})")
        count = len(self.faults)
        if count > self.policy.grace and count > self.policy.share * self.episodes:
            allowed = f"more than {self.policy.share:.0%} of {self.episodes} episodes"
            raise WorldError(f"{self.faults[-1]}; {count} faults so far, {allowed}, so the run stops")

    def _renew(self, lane: int) -> None:
        with contextlib.suppress(Exception):  # a broken world may break in closing as well
            self.worlds[lane].close()
        self.worlds[lane] = self.factory.make(render=self.render)

    def _check_numbers(self) -> None:
        for path, array in self._floats:
            # A sum is finite if all its parts are, and costs less than looking at each; it may overflow, though.
            if math.isfinite(np.add.reduce(array, axis=None)) or np.isfinite(array).all():
                continue
            for lane in range(self.block.lanes):
                bad = np.argwhere(~np.isfinite(array[lane]))
                if len(bad):
                    agent = f"agent {bad[0][0]} of role '{path[1]}'" if len(path) > 1 else "the state"
                    found = f"{array[lane][tuple(bad[0])]} at index {bad[0].tolist()[1:]}"
                    self._failed(lane, f"{path[0]} of {agent} holds {found}; expected finite numbers", landed=True)

    def new_faults(self) -> list[str]:
        """What went wrong since the last call."""
        fresh = self.faults[self._reported :]
        self._reported = len(self.faults)
        return fresh

    def close(self) -> None:
        """Close every copy; what they raise then is nobody's business any more."""
        self._watchdog.close()
        for world in self.worlds:
            with contextlib.suppress(Exception):
                world.close()


def _words(error: Exception) -> str:
    if isinstance(error, WorldError):
        return str(error)
    text = str(error).splitlines()[0] if str(error) else "(no message)"
    return f"raised {type(error).__name__}: {text}"
