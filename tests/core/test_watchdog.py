"""A call that takes too long is interrupted; what comes too late interrupts nobody."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from marl.core.watchdog import OverdueError, Watchdog


def test_a_call_that_hangs_is_interrupted_and_the_next_one_is_not() -> None:
    dog = Watchdog(0.1)
    with pytest.raises(OverdueError), dog.guard():
        time.sleep(20)
    with dog.guard():
        pass
    dog.close()


def test_every_touch_begins_a_new_limit() -> None:
    dog = Watchdog(0.4)
    with dog.guard():
        for _ in range(4):
            time.sleep(0.15)
            dog.touch()
    dog.close()


def test_a_signal_outside_a_guarded_call_does_nothing() -> None:
    dog = Watchdog(1.0)
    with dog.guard():
        pass
    signal.raise_signal(signal.SIGVTALRM)
    dog.close()


def test_another_thread_is_not_guarded() -> None:
    dog = Watchdog(0.05)
    ended: list[bool] = []

    def work() -> None:
        with dog.guard():
            time.sleep(0.2)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]
