"""Is this machine ready to train? One finding a line: what, state, detail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "broken"]
Finding = dict[str, str]

NEEDED = ("numpy", "jax", "jaxlib", "flax", "optax", "pydantic", "PyYAML", "rich", "gymnasium", "orbax-checkpoint")
# package: what is lost without it
OPTIONAL = {
    "pettingzoo": "worlds as PettingZoo environments",
    "tensorboard": "marl tensorboard",
    "tensorboardX": "TensorBoard files in run folders",
    "imageio": "marl render to .gif and .mp4",
    "imageio-ffmpeg": "marl render to .mp4",
    "matplotlib": "plots",
    "scipy": "some statistics",
    "ray": "clusters",
    "mpe2": "the worlds that were PettingZoo's MPE (extra worlds)",
    "ale-py": "Atari games (extra atari)",
    "torch": "RLlib's learners (extra rllib-torch)",
    "highway-env": "parity tests (extra reference)",
}
FREE_GIB = 1.0


def examine(runs_dir: Path) -> list[Finding]:
    """Everything worth knowing, in the order in which a person would look. `broken` keeps training from working."""
    return [
        _finding("python", *_python()),
        _finding("system", "ok", f"{platform.platform()}, {_cores()} cores"),
        *(_package(name, None) for name in NEEDED),
        *(_package(name, loss) for name, loss in OPTIONAL.items()),
        _finding("devices", *_devices()),
        _finding("parts", *_parts()),
        _finding("runs folder", *_writable(runs_dir)),
        _finding("disk", *_disk(runs_dir)),
    ]


def _finding(what: str, state: State, detail: str) -> Finding:
    return {"what": what, "state": state, "detail": detail}


def _python() -> tuple[State, str]:
    right = sys.version_info >= (3, 11)
    return ("ok" if right else "broken"), f"{platform.python_version()} at {sys.executable}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package(name: str, loss: str | None) -> Finding:
    try:
        return _finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        if loss is None:
            return _finding(name, "broken", "not installed, and needed")
        return _finding(name, "note", f"not installed; needed for {loss}")


def _devices() -> tuple[State, str]:
    """Starts JAX and adds two numbers on its default device."""
    try:
        import jax
        import jax.numpy as jnp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            devices = jax.devices()
            right = int(jnp.int32(1) + jnp.int32(1)) == 2
    except (ImportError, RuntimeError) as error:
        return "broken", f"JAX does not start: {str(error).splitlines()[0]}"
    kinds = ", ".join(f"{device.platform}:{device.id} ({device.device_kind})" for device in devices)
    return ("ok" if right else "broken"), kinds


def _parts() -> tuple[State, str]:
    """What `auto` means under `dataflow.devices` here."""
    try:
        import jax

        default = jax.devices()[0]
    except (ImportError, RuntimeError):
        return "broken", "without JAX nothing runs"
    name = f"{default.platform}:{default.id}"
    return "ok", f"auto means: actors (worlds in Python) cpu, actors (worlds in JAX), inference and learner {name}"


def _writable(runs_dir: Path) -> tuple[State, str]:
    place = _existing(runs_dir)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return "broken", f"{runs_dir} cannot be written: {error.strerror}; choose another with --runs-dir"
    return "ok", f"{runs_dir.absolute()} can be written"


def _disk(runs_dir: Path) -> tuple[State, str]:
    try:
        free = shutil.disk_usage(_existing(runs_dir)).free / 2**30
    except OSError as error:
        return "broken", f"cannot be looked at: {error.strerror}"
    return ("ok" if free >= FREE_GIB else "note"), f"{free:.1f} GiB free"


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
