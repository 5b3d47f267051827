"""A Ray cluster for a run: one of its own on this machine, or one that is there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marl.core.errors import UserError

CONNECT_S = 5.0  # to reach a cluster's head before it counts as dead
_TIDY_S = 8  # after the program has ended, until the last of Ray's processes has
_START_S = "120"  # to start Ray's own processes, on a busy machine


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """address: of a cluster (`auto`, `host:port`); None starts one on this machine, which ends with the run.  cpus: of
    the own cluster.  object_store_bytes: of the own cluster's node; None leaves it to Ray.  dashboard: start Ray's, on
    127.0.0.1."""

    address: str | None = None
    cpus: float = 1
    object_store_bytes: int | None = None
    dashboard: bool = False


class Session:
    """Joined when made. One that was joined before by this process is used as it is, and not left by `close`.

    Raises: UserError, in one sentence, if the cluster cannot be reached, is of another Ray version, or does not let
    this process in.
    """

    def __init__(self, options: SessionOptions) -> None:
        # A job that was submitted to a cluster belongs to that cluster.
        address = options.address or ("auto" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None)
        if address is None:
            _guard()
        ray = _ray()
        self.folder: Path | None = None  # of a cluster of its own
        self._janitor: subprocess.Popen[bytes] | None = None
        self._owner = not ray.is_initialized()
        if not self._owner:
            return
        if address is None:
            self._start(ray, options)
        else:
            _join(ray, address)
        _say_less()

    def _start(self, ray: Any, options: SessionOptions) -> None:
        """A cluster of our own: token authentication, loopback, a folder that goes with it."""
        # Names of sockets are limited to 107 bytes, and Ray adds about 60 to the folder.
        base = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="marl-ray-", dir=base))
        os.environ.setdefault("RAY_raylet_start_wait_time_s", _START_S)
        # Processes that would wait for plain tasks: parts of a run each have an environment, and so their own process.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # The head remembers a hundred thousand calls otherwise, at some kilobytes each.
        os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "1000")
        self._janitor = _janitor(self.folder)
        try:
            with _forks_in_silence(), _own_signals():
                ray.init(
                    address="local",
                    num_cpus=max(options.cpus, 1),
                    object_store_memory=options.object_store_bytes,
                    include_dashboard=options.dashboard,
                    dashboard_host="127.0.0.1",
                    _temp_dir=str(self.folder),
                    _node_ip_address="127.0.0.1",
                    **_QUIET,
                )
        except Exception as error:
            self.close()
            raise UserError(f"cannot start Ray on this machine: {_first_line(error)}") from error

    def note_processes(self) -> None:
        """Have what runs below this process by now ended with it, should it be killed."""
        if self._janitor is None or self._janitor.stdin is None:
            return
        lines = [f"{pid} {begun}\n" for pid, begun in _below(os.getpid()) if pid != self._janitor.pid]
        with contextlib.suppress(OSError):
            self._janitor.stdin.write("".join(lines).encode())
            self._janitor.stdin.flush()

    def close(self) -> None:
        """Leave the cluster; one of our own ends, and its files go."""
        if self._owner:
            with contextlib.suppress(Exception):
                _ray().shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        if self._janitor is not None:
            self._janitor.kill()
            self._janitor.communicate()
            self._janitor = None


_JANITOR = """
noted=$(cat)
sleep 1; rm -rf -- "$1"; sleep "$2"; rm -rf -- "$1"
echo "$noted" | while read -r pid begun; do
    if [ -n "$pid" ] && [ "$(sed 's/.*) //' "/proc/$pid/stat" 2>&- | cut -d' ' -f20)" = "$begun" ]; then
        kill -9 "$pid"
    fi
done
"""


def _janitor(folder: Path) -> subprocess.Popen[bytes]:
    """A process that waits until this one has ended, however it ends, and then removes the folder and ends the
    processes that it was told of: the kernel ends Ray's own with this one, but its agents look for the head for a
    minute first."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _JANITOR, "marl-janitor", str(folder), str(_TIDY_S)],
        stdin=subprocess.PIPE,  # it ends with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _below(pid: int) -> Iterator[tuple[int, str]]:
    """The processes that a process has started, and those that they have: number and, in the kernel's clock, when they
    began."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                yield child, fields[19]
                yield from _below(child)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray ends its processes and the program at SIGTERM, which is for the program to decide."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}


@contextlib.contextmanager
def _forks_in_silence() -> Iterator[None]:
    """JAX warns of forks; Ray's own processes are programs of their own, so nothing of JAX lives on in them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        yield


def _say_less() -> None:
    """Ray prints a paragraph for every process that is lost; a run says it in one line of its own."""
    with contextlib.suppress(Exception):
        from ray._private import worker

        worker.print_to_stdstream = lambda data, ignore_prefix: None


def _guard() -> None:
    """A token of this run's own for the cluster that it starts. Ray reads these once, when it is imported."""
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _ray() -> Any:
    # Whoever needs no accelerator of Ray's must still see those of the machine.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("dataflow.kind ray needs the package ray; expected: pip install 'marl-platform'") from error
    return ray


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"'{address}' is no address of a Ray cluster; expected host:port, such as 10.0.0.1:6379")
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(
                f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}); "
                "expected the address that `ray start --head` printed"
            ) from error
    try:
        with _forks_in_silence():
            ray.init(address=address, **_QUIET)
    except Exception as error:
        raise UserError(explain(error, address)) from error


def explain(error: Exception, address: str) -> str:
    """In one sentence why a cluster did not let this process join."""
    words, kind = str(error), type(error).__name__
    if "ersion mismatch" in words:
        return f"the cluster at {address} runs another version of Ray or Python: {_first_line(error)}"
    if kind == "AuthenticationError" or "nauthenticated" in words or "401" in words or "token" in words.lower():
        return (
            f"the cluster at {address} does not let this process in; "
            "expected RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN"
        )
    if isinstance(error, ConnectionError):
        return f"no Ray cluster is running at {address}; expected one started by `ray start --head`"
    return f"cannot join the Ray cluster at {address}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
