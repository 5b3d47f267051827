"""One writer a run folder: a lock file naming host and process, with a heartbeat, taken over when its owner is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from marl.core.errors import RunError, UserError
from marl.io.files import write_failure

LOCK_NAME = "run.lock"
HEARTBEAT_S = 5.0
STALE_AFTER_S = 120.0  # without a heartbeat, for an owner that cannot be looked up (another machine)


class RunLock:
    """Holds `<run_dir>/run.lock` while it is entered.

    The lock is live while its process runs, if that can be looked up (same machine, same boot, same process
    namespace), else while its heartbeat is younger than `STALE_AFTER_S`. A stale lock is taken over and `notice`
    gets one line about it. `lost` turns true, at a heartbeat or at a look, if another machine took the lock over
    (this one was suspended for long, say); `check` raises then.

    Raises (on entry): UserError if another process holds the lock, or the folder cannot be written; RunError if the
    disk is full.
    """

    def __init__(self, run_dir: Path, notice: Callable[[str], None] | None = None) -> None:
        self.path = run_dir / LOCK_NAME
        self.lost = False
        self._notice = notice or (lambda line: None)
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        try:
            with _alone(self.path.parent):
                taken_over = self._acquire()
        except OSError as error:
            raise write_failure(self.path, error) from error
        if taken_over:
            self._notice(taken_over)
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError), _alone(self.path.parent):
            if _read(self.path).get("token") == self._token:
                self.path.unlink()

    def check(self, *, look: bool = False) -> None:
        """Go on only while the folder is ours. look: read the lock now, do not wait for the next heartbeat.

        Raises: RunError if another process has taken the lock over.
        """
        if look:
            with contextlib.suppress(OSError):  # a file server that is away for a moment
                self.lost = self.lost or _read(self.path).get("token") != self._token
        if self.lost:
            raise RunError(f"{self.path} was taken over by another process; this one stops writing")

    def _acquire(self) -> str | None:
        """Create the lock, or replace a stale one; returns the notice of a take-over."""
        mine = self.path.with_name(f".{LOCK_NAME}.{self._token}")
        try:
            mine.write_text(json.dumps({**_identity(), "pid": os.getpid(), "token": self._token, "since": time.time()}))
            if _create(mine, self.path):
                return None
            owner = _read(self.path)
            # Both times come from the file system, so the clocks of two machines need not agree.
            age_s = max(0.0, mine.stat().st_mtime - self.path.stat().st_mtime)
            who = f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"
            if _is_live(owner, age_s):
                raise UserError(
                    f"the run folder {self.path.parent} is in use by {who} (last heartbeat {age_s:.0f} s ago); "
                    "wait for it, stop it, or start another run"
                )
            os.replace(mine, self.path)
            return f"took over the stale lock of {who} (last heartbeat {age_s:.0f} s ago)"
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise
            return self._acquire()  # the owner released it between our two looks
        finally:
            with contextlib.suppress(OSError):
                mine.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if _read(self.path).get("token") != self._token:
                    self.lost = True
                    self._notice(f"{self.path} was taken over by another process")
                    return
                os.utime(self.path)
            except OSError:
                continue  # a file server that is away for a moment


def lock_owner(run_dir: Path) -> dict[str, Any] | None:
    """Who holds a run folder at this moment (`host`, `pid`, `since`), or None if nobody does. Takes nothing."""
    path = run_dir / LOCK_NAME
    try:
        owner = _read(path)
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return None
    return owner if _is_live(owner, age_s) else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time among those of this machine; a kill releases it.

    File systems without flock go unguarded.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _create(mine: Path, lock: Path) -> bool:
    """Give the finished file the lock's name if that is free: atomic, so nobody reads half a lock."""
    try:
        os.link(mine, lock)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
    try:  # a file system without hard links
        fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as file:
        file.write(mine.read_bytes())
    return True


def _read(path: Path) -> dict[str, Any]:
    """The content of a lock file; an unreadable one counts as a lock of nobody known."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _identity() -> dict[str, str]:
    """Host name, what makes process ids comparable (this boot, this process namespace), and this process's start."""
    return {"host": socket.gethostname(), "realm": _realm(), "started": _started(os.getpid())}


def _realm() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process started, in the machine's own words; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()  # the name in brackets may hold anything
    return "" if state in "ZX" else fields[18]  # field 22, start time in clock ticks since boot


def _is_live(owner: dict[str, Any], age_s: float) -> bool:
    if owner.get("realm") == _realm() and isinstance(owner.get("pid"), int):
        started = _started(owner["pid"])
        return bool(started) and started == owner.get("started")
    return age_s < STALE_AFTER_S
