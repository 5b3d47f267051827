"""`scripts/gpu` on a machine that has Python and a handful of packages.

The subprocess runs without site-packages (`-S`). What it finds instead is a folder of links to the packages that
`PACKAGES` names and to those that these require by their own metadata, and to nothing else: no Ray, PettingZoo,
tensorboardX, matplotlib, imageio or jaxtyping (SciPy is there because JAX requires it).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "PyYAML", "rich", "gymnasium", "pydantic")


def _required() -> set[str]:
    """The names of the distributions that PACKAGES amount to here."""
    found: set[str] = set()
    names = list(PACKAGES)
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        found.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or [])
        names += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def _link(source: Path, target: Path, own: set[Path], depth: int) -> None:
    """Link a package; of a folder that several distributions share (`google`), only what is in `own`."""
    if (source / "__init__.py").exists() or depth == 0 or not source.is_dir():
        if not target.exists():
            target.symlink_to(source)
        return
    target.mkdir(exist_ok=True)
    for part in {path.relative_to(source).parts[0] for path in own if path.is_relative_to(source)}:
        _link(source / part, target / part, own, depth - 1)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of links."""
    folder = tmp_path_factory.mktemp("packages")
    for name in _required():
        distribution = importlib.metadata.distribution(name)
        root = Path(str(distribution.locate_file("")))
        own = {root / str(path) for path in distribution.files or [] if path.parts[0] not in ("..", "__pycache__")}
        for top in {path.relative_to(root).parts[0] for path in own}:
            _link(root / top, folder / top, own, depth=2)
    return folder


def run(repository: Path, packages: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "JAX_COMPILATION_CACHE_DIR") if key in os.environ}
    return subprocess.run(
        [sys.executable, "-S", str(repository / "scripts" / "gpu"), *map(str, arguments)],
        env={**kept, "PYTHONPATH": str(packages), **environment},
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.long
def test_all_checks_pass_on_the_cpu_with_only_the_promised_packages_and_are_not_done_twice(
    repository: Path, packages: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = run(repository, packages, "checks", "--cpu", "--minutes", 6, "--out", first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in first.iterdir()] == ["checks.json"]
    found = json.loads((first / "checks.json").read_text())
    assert found["ok"]
    assert found["complete"]
    assert {"highway_step", "ppo_update", "compilations", "memory", "local"} < set(found["results"])
    assert all(result["ok"] for result in found["results"].values())
    assert not {"ray", "pettingzoo"} & set(found["versions"])

    done = run(repository, packages, "checks", "--cpu", "--minutes", 6, "--out", second, "--resume", first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((second / "checks.json").read_text())["results"] == found["results"]


def test_folders_that_will_not_do_are_refused_in_one_line(repository: Path, packages: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("--out", tmp_path / "file"), ("--out", tmp_path / "new", "--resume", tmp_path / "absent")):
        done = run(repository, packages, "checks", "--cpu", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: --")
        assert done.stderr.count("\n") == 1


def test_without_an_accelerator_it_says_so_and_what_to_do(repository: Path, packages: Path, tmp_path: Path) -> None:
    done = run(repository, packages, "checks", "--out", tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert done.stderr == "error: JAX sees no accelerator on this machine; to try a stage out on the CPU: --cpu\n"
    assert not list(tmp_path.iterdir())
