"""The output of a job on a Ray cluster, line by line as it is written, through cut connections and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from marl.core.errors import RunError
from marl.io.console import say
from marl.runner.job_entry import FACTS

RETRIES = 5


class Follower:
    """Shows a job's output as it grows. The first Ctrl-C asks the job to stop, the second leaves it to that."""

    def __init__(self, client: Any, job: str, stop_wait_s: int) -> None:
        self._client, self._job, self._stop_wait_s = client, job, stop_wait_s
        self._shown = 0
        self._rest = ""
        self._asked = 0
        self._leave = asyncio.Event()
        self._stops: list[asyncio.Task[None]] = []

    async def run(self) -> bool:
        """Returns: did the job end? (Or were we told to leave.)"""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        follow = asyncio.create_task(self._follow())
        leave = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait([follow, leave], return_when=asyncio.FIRST_COMPLETED)
            if follow.done():
                follow.result()
            return follow.done()
        finally:
            for task in (follow, leave, *self._stops):
                task.cancel()
            await asyncio.gather(follow, leave, *self._stops, return_exceptions=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            if self._rest:
                self._line(self._rest)

    def _interrupt(self) -> None:
        self._asked += 1
        if self._asked > 1:
            self._leave.set()
            return
        say(f"asking the job to stop; it has {self._stop_wait_s} s to save a checkpoint (again: leave it to that)")
        self._stops.append(asyncio.create_task(self._stop()))

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self._client.stop_job, self._job)
        except Exception as error:  # whatever Ray's client raises; the job goes on
            say(f"the job could not be asked to stop: {' '.join(str(error).split())[:200]}")
            self._asked = 0

    async def _follow(self) -> None:
        import aiohttp

        failures = 0
        while True:
            before = self._shown
            try:
                await self._tail()
                status = await asyncio.to_thread(self._client.get_job_status, self._job)
                if status.is_terminal():
                    return
            except (
                RuntimeError,
                OSError,
                ValueError,
                aiohttp.ClientError,
            ) as error:  # the connection was cut: once more from where it was
                failures = 1 if self._shown > before else failures + 1  # in a row, however long the job takes
                if failures > RETRIES:
                    raise RunError(f"the cluster no longer answers: {error}") from None
            await asyncio.sleep(min(1.0 + failures, 5.0))

    async def _tail(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._job):
            fresh = text[max(0, self._shown - position) :]
            position += len(text)
            self._shown = max(self._shown, position)
            *lines, self._rest = (self._rest + fresh).split("\n")
            for line in lines:
                self._line(line)

    def _line(self, line: str) -> None:
        if not line.startswith(FACTS):
            say(line)
