"""What is wrong with a world is found, and said in words that name agent, step and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl.interop.check import check_world
from marl.interop.check_trial import CHECKS

HERE = Path(__file__).parent


def problems(name: str, file: str = "broken_worlds.py", **options: object) -> dict[str, str]:
    """Details by check of what is wrong."""
    prefix = "gymnasium" if name.startswith(("Alone", "Masked")) else "pettingzoo"
    findings = check_world(f"{prefix}:{HERE / file}:{name}", options)
    return {finding.name: finding.detail for finding in findings if not finding.ok}


@pytest.mark.parametrize("name", ["Sound", "SoundTurns", "Alone"])
def test_a_sound_world_is_found_sound_by_all_checks(name: str) -> None:
    prefix = "gymnasium" if name == "Alone" else "pettingzoo"
    findings = check_world(f"{prefix}:{HERE / 'broken_worlds.py'}:{name}", {})
    assert [(finding.name, finding.ok) for finding in findings] == [(check, True) for check in CHECKS]
    assert all(finding.detail for finding in findings)


@pytest.mark.parametrize("name", ["Meeting", "Party", "Dice", "Masked"])
def test_dying_joining_turns_and_masks_are_nothing_wrong(name: str) -> None:
    assert problems(name, "tiny_worlds.py") == {}


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("BeyondBounds", "observations", ["seed 0, step 2: agent 'agent_0'", "observation[1] is 7.5", "from -1 to 1"]),
        ("WrongShape", "observations", ["reset: agent 'agent_1'", "shape (3,), expected (2,)"]),
        ("WrongType", "observations", ["agent 'agent_0'", "dtype float64, expected float32"]),
        ("NaNObservation", "observations", ["step 1: agent 'agent_0'", "observation[1] is NaN"]),
        ("NaNReward", "rewards", ["step 2: agent 'agent_0'", "reward is nan, expected a finite number"]),
        ("NoReward", "rewards", ["step 1: agent 'agent_0'", "reward is None, expected a number"]),
        ("AgentForgotten", "observations", ["step 2: agent 'agent_1'", "has no observation", "for: agent_0"]),
        ("NeverEnds", "ends", ["has not ended after 2000 steps", "max_steps"]),
        ("NotReproducible", "seeds", ["seed 0 played again", "at reset: observation of agent 'agent_0'[0] is"]),
        ("LeavesTraces", "seeds", ["at step 1: reward of agent 'agent_0' is 1.0, was 0.0; a new copy plays it alike"]),
        ("PaidAfterDeath", "rewards", ["step 4: agent 'agent_1' ended at step 3 and still gets a reward of 1"]),
        ("ActsAfterDeath", "ends", ["step 3: agent 'agent_1' ended at step 3 and is still in `agents`"]),
        ("EmptyMask", "masks", ["step 1: agent 'agent_0'", "all zero"]),
        ("LongMask", "masks", ["agent 'agent_0'", "shape (5,)", "expected 3 zeros and ones"]),
        ("NobodyPossible", "agents", ["possible_agents is missing"]),
        ("PossibleChanges", "agents", ["possible_agents became agent_0, agent_1, agent_2"]),
        ("NewSpaces", "spaces", ["action_space('agent_0') gives another object at every call"]),
        ("Raises", "step", ["legal actions {'agent_0': ", "raised KeyError: 'lost'", "broken_worlds.py, line"]),
        ("NoSeed", "reset", ["reset(seed=0, options={}) raised TypeError", "expected reset to take both"]),
        ("FourParts", "step", ["a tuple of 4, expected (observations, rewards, terminations, truncations, infos)"]),
        ("Leaves", "ends", ["step 2: agent 'agent_1' left `agents`, but is neither terminated nor truncated"]),
        ("TextSpace", "spaces", ["agent 'agent_0': observations of space Text cannot be used; expected Discrete"]),
        ("NeverBuried", "ends", ["'player_0' has ended and was stepped with None, but is still in `agents`"]),
        ("TurnOfNobody", "step", ["the turn of agent 'player_7', which is not in `agents`"]),
        ("TurnBeyondBounds", "observations", ["step 2: agent 'player_0'", "observation[0] is 2, expected from 0 to 1"]),
        ("TurnNaN", "rewards", ["step 3: agent 'player_1': reward is nan"]),
        ("AloneForever", "ends", ["has not ended after 2000 steps"]),
        ("AloneWithoutArray", "observations", ["agent 'agent'", "is [0.0], expected an array of float32"]),
    ],
)
def test_one_thing_wrong_is_found_and_nothing_else(name: str, check: str, words: list[str]) -> None:
    found = problems(name)
    assert list(found) == [check], found
    for part in words:
        assert part in found[check]


def test_an_episode_that_the_option_cuts_may_be_endless() -> None:
    assert problems("NeverEnds", max_steps=20) == {}
    assert problems("AloneForever", max_steps=20) == {}
