"""Nothing that is read is ever executed, and training pulls in no more than it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

UNSAFE_WORDS = re.compile(
    r"\b(c?pickle|cloudpickle|allow_pickle|dill|joblib|shelve|marshal|unsafe_load|full_load)\b", re.I
)
UNSAFE_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader"}
FUSED_PATH = ("marl.dataflow.fused", "marl.envs.heterogeneous_highway.env", "marl.agents.ppo.algorithm")
NOT_FOR_TRAINING = (
    "ray",
    "torch",
    "matplotlib",
    "pandas",
    "tensorflow",
    "pettingzoo",
    "gymnasium",
    "pygame",
    "highway_env",
)


def program_files(repository: Path) -> list[Path]:
    files = [path for folder in ("envs", "agents") for path in (repository / folder).rglob("*.py")]
    files += [
        path
        for path in (repository / "marl").rglob("*.py")
        if path.relative_to(repository).parts[1] not in ("envs", "agents", "experiments")
    ]
    files += [
        path for path in (repository / "scripts").rglob("*") if path.is_file() and path.suffix in ("", ".py", ".sh")
    ]
    return sorted(files)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a Python file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_file_mentions_a_format_that_can_run_code(repository: Path) -> None:
    for path in program_files(repository):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not UNSAFE_WORDS.search(line), f"{path.relative_to(repository)}:{number}: {line.strip()}"


def test_yaml_is_read_by_a_safe_loader(repository: Path) -> None:
    for path in program_files(repository):
        if path.suffix != ".py":
            continue
        for name, call in calls(path):
            if name.split(".")[-1] in ("load", "load_all") and name.split(".")[0] == "yaml":
                loader = next((ast.unparse(word.value) for word in call.keywords if word.arg == "Loader"), "")
                assert loader.split(".")[-1] not in {"", *UNSAFE_LOADERS}, f"{path}:{call.lineno}"


def test_nothing_is_evaluated_or_run_through_a_shell(repository: Path) -> None:
    for path in program_files(repository):
        if path.suffix != ".py":
            continue
        for name, call in calls(path):
            assert name not in ("eval", "exec", "os.system", "os.popen"), f"{path}:{call.lineno}"
            assert not any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords), (
                f"{path}:{call.lineno}"
            )


def test_fused_training_path_imports_no_ray_torch_or_plotting(tmp_path: Path) -> None:
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {FUSED_PATH!r}];"
        f"print(*sorted(set({NOT_FOR_TRAINING!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("word", ["pickle", "cloudpickle", "np.load(f, allow_pickle=True)", "yaml.unsafe_load(x)"])
def test_the_search_finds_what_it_is_for(word: str) -> None:
    assert UNSAFE_WORDS.search(word)
