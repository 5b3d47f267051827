"""Interrupts a call into foreign code that takes too long. Importing this imports no JAX.

A thread looks at the clock; a call that is over its time is interrupted by a signal to the main thread, whose handler
raises. So guarding a call costs two assignments, and neither alarms nor timers of others are touched. A call that never
comes back to the interpreter cannot be interrupted; nor can one outside the main thread, which is not guarded.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_SIGNAL = signal.SIGVTALRM  # by default nobody sends it
_TICKS = 8  # looks at the clock within a limit
_guarded: list[float] = []  # limits of the calls that the main thread is in; a signal that comes too late finds none


class OverdueError(BaseException):
    """Passes through a world's own `except Exception`."""


class Watchdog:
    """Guards calls that may take `limit_s` each, measured from the last `touch`."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: float | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    def touch(self) -> None:
        """A new call begins."""
        self._since = time.monotonic()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Raises OverdueError in the block when it is over its time, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._thread is None:
            self._start()
        self.touch()
        _guarded.append(self.limit_s)
        try:
            yield
        finally:
            _guarded.pop()
            self._since = None

    def _start(self) -> None:
        signal.signal(_SIGNAL, _overdue)
        self._thread = threading.Thread(target=self._look, name="marl-watchdog", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._end.wait(min(self.limit_s / _TICKS, 1.0)):
            since = self._since
            if since is not None and time.monotonic() - since > self.limit_s:
                self._since = None
                signal.pthread_kill(main, _SIGNAL)

    def close(self) -> None:
        """Stop looking."""
        self._end.set()


def _overdue(number: int, frame: FrameType | None) -> None:
    if _guarded:
        raise OverdueError
