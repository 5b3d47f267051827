"""Test instrumentation: named points at which a test makes the program die or a write fail.

A point does nothing unless the environment variable `MARL_FAULT` names it. The form is `<point>[:<n>|<n>+][:<action>]`:
`checkpoint.rename:2:kill` kills this process at the second time the point is passed, `metrics.flush:3+:enospc` makes
every flush from the third on fail as a full disk does. Without a number the first pass is meant, without an action
`kill`. The actions `int` and `term` send this process the signal of Ctrl-C or of a job scheduler, and go on.

Points: checkpoint.arrays (half of the arrays written), checkpoint.manifest (before the manifest), checkpoint.rename
(before the folder gets its name), checkpoint.latest (before the pointer moves), policy.arrays, metrics.write,
metrics.flush (rows written, not yet on disk), and `<stem>.write` for every JSON file that is replaced whole
(evaluations.write, meta.write).
"""

from __future__ import annotations

import errno
import os
import signal

SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}
ERRORS = {"enospc": errno.ENOSPC, "eacces": errno.EACCES}

_hits: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Pass the point `name`: returns at once unless `MARL_FAULT` asks for a fault here.

    Raises: OSError with ENOSPC or EACCES if the variable says so; ValueError if the variable cannot be read.
    """
    wanted = os.environ.get("MARL_FAULT")
    if not wanted or wanted.partition(":")[0] != name:
        return
    number, repeated, action = parse_fault(wanted)
    _hits[name] = hits = _hits.get(name, 0) + 1
    if hits < number or (hits > number and not repeated):
        return
    if action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
        return
    raise OSError(ERRORS[action], os.strerror(ERRORS[action]), f"<injected at {name}>")


def parse_fault(text: str) -> tuple[int, bool, str]:
    """The pass at which it strikes, whether every later pass fails too, and the action.

    Raises: ValueError if `text` is not of the form `<point>[:<n>|<n>+][:<action>]`.
    """
    number, repeated, action = 1, False, "kill"
    for part in text.split(":")[1:]:
        if part in SIGNALS or part in ERRORS:
            action = part
        else:
            number, repeated = int(part.removesuffix("+")), part.endswith("+")
    return number, repeated, action


def reset_faults() -> None:
    """Forget how often each point was passed."""
    _hits.clear()
