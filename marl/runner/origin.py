"""Where a run comes from: the code's commit, the package versions, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from marl.runner.load import resolved_yaml
from marl.runner.schema import ExperimentConfig

PACKAGES = ("marl-platform", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "pettingzoo", "ray")


@functools.cache
def code_commit() -> str:
    """The git commit of the code, with `+` when tracked files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def config_hash(config: ExperimentConfig) -> str:
    """Twelve hexadecimal digits that change when anything in the resolved config changes."""
    return hashlib.sha256(resolved_yaml(config).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine in the words a result table needs."""
    import jax

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "devices": [str(device.device_kind) for device in jax.devices()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
