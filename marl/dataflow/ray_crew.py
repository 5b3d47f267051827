"""The processes of a run on Ray, and what is done when one is lost: back-off, a fresh one, giving up.

Every Ray actor is a shell of `marl.dataflow.shells` (or the policy server's). Ray itself neither restarts them nor
repeats calls: a call that was lost is lost, so that no chunk is trained on twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import deque
from typing import Any

from marl.core.errors import LostError as LostError
from marl.core.errors import MarlError, RunError

START_LIMIT_S = 180.0  # to start a process and build its parts, on a busy machine
GIVE_UP = (5, 600.0)  # so many losses of one actor within so many seconds, and it is not started again
LOOK_FOR_ROOM_S = 0.5  # between two looks at what a cluster has free
SHOWN_AFTER_S = 2.0  # after a process was started, until that shows in what a cluster has free
BACK_OFF_S = (0.5, 30.0)  # first and longest wait before a lost actor is started again


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """cpus, gpus: Ray resources of the process.  memory_fraction: of a GPU's memory that JAX takes, for those with
    one."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_fraction: float = 0.9
    host_devices: int = 1  # of JAX's, on the CPU; for several learners without accelerators

    def environment(self) -> dict[str, str]:
        """Set before the process begins, hence before JAX is imported. What needs no accelerator must not see one."""
        found = {"JAX_PLATFORMS": "cuda,cpu" if self.gpus else "cpu"}
        if self.gpus:
            found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{self.memory_fraction * min(self.gpus, 1.0):.3f}"
        else:
            found |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if self.host_devices > 1:
            flags = os.environ.get("XLA_FLAGS", "")
            found["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={self.host_devices}".strip()
        return found


class Remote:
    """One Ray actor around an object of `shell`, made in its process."""

    def __init__(self, shell: type, arguments: tuple[Any, ...], options: ProcessOptions, group: Any = None) -> None:
        import ray

        placed: dict[str, Any] = {}
        if group is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            placed["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        else:
            placed["scheduling_strategy"] = "SPREAD"
        self.handle: Any = (
            ray.remote(shell)
            .options(
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": options.environment()},
                **placed,
            )
            .remote(*arguments)
        )

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Begin a call; references to what it returns."""
        return getattr(self.handle, method).options(num_returns=returns).remote(*arguments)

    def ask(self, method: str, *arguments: Any, limit_s: float = START_LIMIT_S) -> Any:
        """Call and wait. Raises: RunError if the process is lost or does not answer; what the method raised."""
        return get(self.call(method, *arguments), limit_s)

    def kill(self) -> None:
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.handle)


class ArgumentLostError(LostError):
    """What a call was given was lost with the node that held it. The process that was called is still there."""


def get(reference: Any, limit_s: float = START_LIMIT_S) -> Any:
    """What a call returned. Raises: LostError if its process is gone or is too late; what the method itself raised."""
    import ray
    from ray import exceptions

    try:
        return ray.get(reference, timeout=limit_s)
    except exceptions.GetTimeoutError as error:
        raise LostError(f"no answer within {limit_s:g} s") from error
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, MarlError) else None
        if cause is not None:
            raise _again(cause) from error
        if isinstance(error.cause, exceptions.ObjectLostError | exceptions.RayActorError):
            raise ArgumentLostError("what it was given is lost") from error
        raise RuntimeError(f"a process of the run failed:\n{error}") from error  # a defect: its traceback is wanted
    except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.RaySystemError) as error:
        raise LostError(_reason(error)) from error


def silent(reference: Any) -> bool:
    """Whether a call has not been answered. This process may have been away for longer than any limit: what waits to be
    heard is not late."""
    import ray

    return not ray.wait([reference], timeout=0, fetch_local=False)[0]


def _again(error: MarlError) -> MarlError:
    """The same error, of this process."""
    try:
        return type(error)(str(error))
    except TypeError:  # it is made of more than words
        return RunError(str(error))


def _reason(error: Exception) -> str:
    words = str(error)
    for sign, meaning in (
        ("node", "its node was lost" if "node died" in words or "node was" in words else ""),
        ("SYSTEM_ERROR", "its process died"),
        ("ray.kill", "it was ended"),
        ("exit code", "its process died"),
    ):
        if sign in words and meaning:
            return meaning
    return "its process died" if "died" in words else f"{type(error).__name__}"


@dataclasses.dataclass
class Losses:
    """How often something was lost lately, and when it may be started again."""

    times: deque[float] = dataclasses.field(default_factory=deque)
    total: int = 0
    limit: tuple[int, float] = GIVE_UP

    def note(self, now: float) -> float | None:
        """One more. Seconds to wait before the next start; None: it is not worth starting again."""
        self.total += 1
        self.times.append(now)
        while self.times and now - self.times[0] > self.limit[1]:
            self.times.popleft()
        if len(self.times) >= self.limit[0]:
            return None
        return float(min(BACK_OFF_S[0] * 2 ** (len(self.times) - 1), BACK_OFF_S[1]))


class Room:
    """Whether the cluster has free CPUs for another process. What was started lately may not show in Ray's numbers yet,
    and is counted twice for a moment rather than not at all."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, float]] = deque()
        self._free, self._looked = 0.0, float("-inf")

    def take(self, cpus: float) -> bool:
        """Whether there is room for a process of so many, which is then taken."""
        import ray

        while self._lately and now() - self._lately[0][0] > SHOWN_AFTER_S:
            self._lately.popleft()
        if now() - self._looked > LOOK_FOR_ROOM_S:
            free: Any = ray.available_resources()  # type: ignore[no-untyped-call]
            self._free, self._looked = float(free.get("CPU", 0.0)), now()
        if self._free - sum(taken for _, taken in self._lately) + 1e-6 < cpus:
            return False
        self._lately.append((now(), cpus))
        return True


class Clock:
    """How long calls usually take, so that one that takes much longer is noticed."""

    def __init__(self, factor: float = 3.0, floor_s: float = 10.0) -> None:
        self.factor, self.floor_s = factor, floor_s
        self._seen: deque[float] = deque(maxlen=200)

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)

    def late_after(self) -> float:
        """Seconds: `factor` times the 99th percentile of recent calls, at least `floor_s`; infinite before there are
        ten of them, since the first ones compile."""
        if len(self._seen) < 10:
            return float("inf")
        ordered = sorted(self._seen)
        return max(self.factor * ordered[int(0.99 * (len(ordered) - 1))], self.floor_s)


def now() -> float:
    return time.monotonic()
