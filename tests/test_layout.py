"""The house: links, wheel, floors, file sizes, and how light `import marl` is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

LINKED = ("envs", "agents", "experiments")
SOURCE_FOLDERS = ("marl", "envs", "agents", "scripts", "tests")
MAX_LINES = 450
LIGHT_MODULES = (
    *("marl.cli", "marl.core", "marl.core.errors", "marl.core.registry", "marl.core.config", "marl.core.spaces"),
    *(
        "marl.envs",
        "marl.agents",
        "marl.runner.schema",
        "marl.runner.load",
        "marl.io",
        "marl.io.console",
        "marl.io.lock",
    ),
)
RAY_ALLOWED = ("marl/dataflow/ray_*.py", "marl/interop/rllib.py", "marl/runner/sweep.py", "marl/runner/jobs.py")


def source_files(repository: Path) -> list[Path]:
    """Every Python file of the project once: what lies behind the links is found in the top folders."""
    found = [path for folder in SOURCE_FOLDERS for path in sorted((repository / folder).rglob("*.py"))]
    links = tuple(f"marl/{name}/" for name in LINKED)
    return [path for path in found if not path.relative_to(repository).as_posix().startswith(links)]


def imported_modules(path: Path) -> set[str]:
    """Absolute modules that a file imports anywhere, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("name", LINKED)
def test_package_folder_is_a_link_to_the_top_folder(repository: Path, name: str) -> None:
    link = repository / "marl" / name
    assert link.is_symlink(), (
        f"marl/{name} is not a link but {'a text file' if link.is_file() else 'something else'}: this checkout was "
        "made without support for symbolic links. On Windows use WSL, or `git config core.symlinks true` in developer "
        "mode, then check out again."
    )
    assert link.resolve() == repository / name


def test_import_name_is_the_link(repository: Path) -> None:
    import marl.agents
    import marl.envs

    assert Path(marl.envs.__file__ or "").resolve() == repository / "envs" / "__init__.py"
    assert marl.agents.REGISTRY.kind == "algorithm"


def build(source: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def assert_wheel_is_complete(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("marl", "*.py"), ("envs", "*.py"), ("agents", "*.py"), ("experiments", "*.yaml")):
        prefix = "" if folder == "marl" else "marl/"
        for path in (repository / folder).rglob(pattern):
            relative = path.relative_to(repository).as_posix()
            if not relative.startswith(tuple(f"marl/{name}/" for name in LINKED)):
                assert prefix + relative in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"marl"}


def test_wheel_holds_worlds_algorithms_and_experiments(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend comes with the extra `dev`")
    assert_wheel_is_complete(build(repository, "wheel", tmp_path / "wheel"), repository)


def test_wheel_built_from_the_source_archive_is_the_same(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend comes with the extra `dev`")
    archive = build(repository, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert_wheel_is_complete(build(source, "wheel", tmp_path / "wheel"), repository)


def test_import_marl_is_quick_and_brings_neither_jax_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys, time; began = time.process_time(); import marl; print(time.process_time() - began);"
        "print(*sorted({'jax', 'ray', 'numpy', 'torch', 'flax'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        took, heavy = done.stdout.split("\n")[:2]
        assert heavy == ""
        seconds.append(float(took))
    assert min(seconds) < 0.3


def test_light_modules_import_no_jax(tmp_path: Path) -> None:
    code = f"import sys; import {', '.join(LIGHT_MODULES)}; print('jax' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_floors_hold(repository: Path) -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(program), "--no-logo"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ray_is_imported_in_its_own_files_only(repository: Path) -> None:
    for path in source_files(repository):
        relative = path.relative_to(repository)
        if relative.parts[0] in ("marl", "envs", "agents") and not any(relative.match(glob) for glob in RAY_ALLOWED):
            assert not {name for name in imported_modules(path) if name.split(".")[0] == "ray"}, relative


def test_no_second_import_name(repository: Path) -> None:
    for path in source_files(repository):
        assert not {name for name in imported_modules(path) if name.split(".")[0] in LINKED}, path


def test_files_stay_short_enough_to_read(repository: Path) -> None:
    long = {}
    for path in source_files(repository):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            long[path.relative_to(repository).as_posix()] = lines
    assert not long, f"split these, none may pass {MAX_LINES} lines: {long}"


def test_constraint_files_are_plain_pins(repository: Path) -> None:
    for name in ("py311.txt", "py312.txt"):
        lines = (repository / "constraints" / name).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert len(pins) > 100
        for pin in pins:
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin), pin
