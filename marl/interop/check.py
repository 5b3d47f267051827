"""Is somebody's world fit for training? A few episodes at random, and what is wrong with them in words.

Importing this imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marl.core.errors import MarlError
from marl.interop import worlds
from marl.interop.check_games import Game, GymnasiumGame, ParallelGame, TurnGame, first_line
from marl.interop.check_trial import CHECKS, Trial
from marl.interop.random_play import play

MAX_PROBLEMS = 5  # shown for one check
ADAPTED = 300  # steps of an episode that the adapter plays


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. name: of the check.  ok: nothing is wrong.  detail: what was looked at, or what is
    wrong."""

    name: str
    ok: bool
    detail: str


def check_world(id: str, options: Mapping[str, Any], *, episodes: int = 3, seed: int = 0) -> list[Finding]:
    """Every finding about `pettingzoo:...` or `gymnasium:...`, in the order of `CHECKS`; a check that could not be made
    because of what another one found is left out.

    Raises: UserError if there is no such world or an option is wrong.
    """
    made: list[Any] = []

    def new() -> Game:
        env, _ = worlds.raw(id, options)
        made.append(env)
        return _game(env)

    first, steps = worlds.raw(id, options)
    made.append(first)
    trial = Trial(_game(first), new, steps, episodes, seed)
    trial.run()
    if not trial.broken and not any(trial.problems.values()):
        _through_the_adapter(id, options, trial)
    for env in made:
        _close(env)
    found = []
    for name, words in CHECKS.items():
        problems = list(trial.problems[name].values())
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        if problems:
            found.append(Finding(name, False, "; ".join(problems[:MAX_PROBLEMS] + more)))
        elif name in trial.done:
            found.append(Finding(name, True, words))
    return found


def _game(env: Any) -> Game:
    turns = worlds.takes_turns(env)
    if turns is None:
        return GymnasiumGame(env)
    return TurnGame(env) if turns else ParallelGame(env)


def _close(env: Any) -> None:
    try:
        env.close()
    except Exception:
        return


def _through_the_adapter(id: str, options: Mapping[str, Any], trial: Trial) -> None:
    """What training will see, if all the rest is well."""
    wrong: list[str] = []
    try:
        world = worlds.make_world(id, options)
        try:
            wrong += play(world, trial.seed, limit=ADAPTED)
        finally:
            _close(world)
    except MarlError as error:
        wrong.append(str(error))
    except Exception as error:
        wrong.append(f"raised {type(error).__name__}: {first_line(error)}")
    trial.problems["rows"].update({words: words for words in wrong})
    trial.done.add("rows")
