"""What holds for every test: which ones need something that may be missing here."""

from __future__ import annotations

import importlib.util
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _missing(item: pytest.Item) -> str | None:
    """Why this test cannot run here, or None."""
    if item.get_closest_marker("parity") and importlib.util.find_spec("highway_env") is None:
        return "needs the reference packages: scripts/test --all, or pip install -e '.[reference]'"
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() == "cpu":
            return "needs an accelerator, and JAX sees none here"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _missing(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def cpu_seconds() -> Callable[[Callable[[], object]], float]:
    """A function that says what the processes started and awaited by an action cost: the same on a busy machine."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def measure(action: Callable[[], object]) -> float:
        before = spent()
        action()
        return spent() - before

    return measure


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children can be interrupted even if the tests run in the background, where a shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
