"""Errors a person can act on, and the nearest valid name for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MarlError(Exception):
    """Base of every error this project raises on purpose. The message is one clear statement, shown without
    traceback."""

    exit_code = 1


class UserError(MarlError):
    """Something the user gave is wrong: says what was given, what was expected, where, and the nearest valid name."""

    exit_code = 2


class ConfigError(UserError):
    """An experiment file or an override is wrong."""


class UnknownNameError(UserError):
    """A name that no registry holds."""


class ShapeError(UserError, ValueError):
    """Arrays whose shapes do not fit together."""


class CheckpointError(MarlError):
    """A checkpoint cannot be written, or none that is valid can be read."""


class RunError(MarlError):
    """The run cannot go on: every seed diverged, the disk is full at the final checkpoint, and the like."""


class LostError(RunError):
    """A process of the run died, or its node did, or it did not answer."""


class WorldError(RunError):
    """Somebody's world broke its own promises: names the world, the agent, the step and what was expected."""


class InterruptedRunError(MarlError):
    """The run was asked to stop (SIGINT, SIGTERM) and has saved a checkpoint."""

    exit_code = 130


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A clause `; did you mean 'x'?` naming the nearest choice, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `choices`: says the kind, the name, the nearest one and all of them."""
    known = sorted(choices)
    return UnknownNameError(f"unknown {kind} '{name}'{did_you_mean(name, known)} known: {', '.join(known) or '(none)'}")
