"""Checkpoints under fire: kills inside the write, damaged files, full disks and bad places."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from marl.core.errors import CheckpointError
from marl.io import checkpoint
from marl.io.arrays import json_digest
from marl.io.faults import reset_faults
from marl.io.metrics import Event

pytestmark = pytest.mark.fault

# Saves step 1, then step 2 (where the fault strikes), with arrays whose content tells the step.
SAVE_TWO = """
import sys
from pathlib import Path
import numpy as np
from marl.io.checkpoint import save
for step in (1, 2):
    save(Path(sys.argv[1]), step, {"a": np.full(1000, step), "b": np.full((3, 3), step)}, {"step": step})
"""


def tree(step: int) -> dict[str, object]:
    return {"a": jnp.full(50, step), "b": jnp.int32(step)}


def content(path: Path) -> int:
    loaded, header = checkpoint.load(path, tree(0))
    assert header == {"step": int(loaded["b"])}
    assert loaded["a"].tolist() == [int(loaded["b"])] * 50
    return int(loaded["b"])


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    reset_faults()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(folder, step, tree(step), {"step": step})
    return folder


@pytest.mark.parametrize(
    ("point", "survivor"),
    [
        ("checkpoint.arrays", 1),
        ("checkpoint.manifest", 1),
        ("checkpoint.rename", 1),
        ("checkpoint.latest", 2),
    ],
)
def test_a_kill_inside_the_write_leaves_a_valid_checkpoint(tmp_path: Path, point: str, survivor: int) -> None:
    environment = {**os.environ, "MARL_FAULT": f"{point}:2:kill"}
    killed = subprocess.run([sys.executable, "-c", SAVE_TWO, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "latest").read_text() == "ckpt-000000000001\n"
    events: list[Event] = []
    newest = checkpoint.newest_valid(tmp_path, events.append)
    assert events == []
    assert newest is not None
    assert checkpoint.read_header(newest) == {"step": survivor}
    assert (tmp_path / "latest").read_text() == f"ckpt-{survivor:012d}\n"
    assert {path.name for path in tmp_path.iterdir()} == {
        "latest",
        *(f"ckpt-{step:012d}" for step in range(1, survivor + 1)),
    }


def test_a_kill_between_stepping_aside_and_renaming_brings_the_old_one_back(three: Path) -> None:
    newest = three / "ckpt-000000000003"
    newest.rename(three / "ckpt-000000000003.replaced")
    shutil.copytree(three / "ckpt-000000000002", three / "ckpt-000000000003.tmp")
    assert checkpoint.newest_valid(three, pytest.fail) == newest
    assert content(newest) == 3
    (three / "ckpt-000000000003.replaced").mkdir()
    assert checkpoint.newest_valid(three, pytest.fail) == newest
    assert sorted(path.name for path in three.glob("ckpt-*3*")) == ["ckpt-000000000003"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["arrays.bin", "header.json", "manifest.json"])
def test_damage_walks_back_reports_and_quarantines(three: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(three / "ckpt-000000000003" / name)
    events: list[Event] = []
    newest = checkpoint.newest_valid(three, events.append)
    assert newest is not None
    assert content(newest) == 2
    assert [event.name for event in events] == ["checkpoint_invalid"]
    assert "ckpt-000000000003" in events[0].message
    assert name in events[0].message
    assert (three / "quarantine" / "ckpt-000000000003").is_dir()
    assert (three / "latest").read_text() == "ckpt-000000000002\n"
    # Written again and damaged again, it does not fall on the one that is kept.
    checkpoint.save(three, 3, tree(3), {"step": 3})
    harm(three / "ckpt-000000000003" / name)
    checkpoint.newest_valid(three, events.append)
    assert {path.name for path in (three / "quarantine").iterdir()} == {"ckpt-000000000003", "ckpt-000000000003-2"}


def test_all_damaged_gives_none_and_one_event_each(three: Path) -> None:
    for path in checkpoint.list_checkpoints(three):
        (path / "manifest.json").write_text("[]")
    events: list[Event] = []
    assert checkpoint.newest_valid(three, events.append) is None
    assert len(events) == 3
    assert checkpoint.list_checkpoints(three) == []


def test_a_reader_changes_nothing(three: Path) -> None:
    truncate(three / "ckpt-000000000003" / "arrays.bin")
    (three / "ckpt-000000000009.tmp").mkdir()
    before = sorted(three.rglob("*"))
    events: list[Event] = []
    assert checkpoint.newest_valid(three, events.append, repair=False) == three / "ckpt-000000000002"
    assert len(events) == 1
    assert sorted(three.rglob("*")) == before


def test_loading_a_damaged_checkpoint_names_the_file(three: Path) -> None:
    flip(three / "ckpt-000000000003" / "arrays.bin")
    with pytest.raises(CheckpointError, match=r"arrays\.bin is damaged: its SHA-256"):
        checkpoint.load(three / "ckpt-000000000003", tree(0))


def test_a_sound_checkpoint_of_a_newer_format_is_left_in_place(three: Path) -> None:
    file = three / "ckpt-000000000003" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    manifest["format"] = 99
    file.write_text(json.dumps({**manifest, "sha256": json_digest(manifest)}))
    with pytest.raises(CheckpointError, match="format version 99"):
        checkpoint.newest_valid(three, pytest.fail)
    assert file.exists()


@pytest.mark.parametrize("action", ["enospc", "eacces"])
@pytest.mark.parametrize("point", ["checkpoint.arrays", "checkpoint.manifest", "checkpoint.rename"])
def test_a_failed_write_leaves_the_previous_one_and_no_leftover(
    three: Path, point: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARL_FAULT", f"{point}:1+:{action}")
    words = "No space left on device" if action == "enospc" else "Permission denied"
    before = sorted(three.rglob("*"))
    with pytest.raises(CheckpointError, match=f"ckpt-000000000004: {words}"):
        checkpoint.save(three, 4, tree(4), {"step": 4})
    assert sorted(three.rglob("*")) == before
    monkeypatch.delenv("MARL_FAULT")
    assert content(checkpoint.save(three, 4, tree(4), {"step": 4})) == 4


def test_a_failed_pointer_leaves_the_new_checkpoint(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARL_FAULT", "checkpoint.latest:1:enospc")
    with pytest.raises(CheckpointError, match="is written, but"):
        checkpoint.save(three, 4, tree(4), {"step": 4})
    assert checkpoint.newest_valid(three, pytest.fail) == three / "ckpt-000000000004"


def test_a_real_file_size_limit_is_a_clear_error(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from marl.core.errors import CheckpointError
from marl.io.checkpoint import list_checkpoints, newest_valid, save
folder = Path(sys.argv[1])
good = save(folder, 1, {"a": np.ones(10)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save(folder, 2, {"a": np.ones(100_000)}, {})
except CheckpointError as error:
    assert "ckpt-000000000002: File too large" in str(error), error
else:
    raise SystemExit("no error")
assert list_checkpoints(folder) == [good] == [newest_valid(folder, print)]
assert {path.name for path in folder.iterdir()} == {"latest", good.name}
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_file_where_the_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*File exists"):
        checkpoint.save(tmp_path / "checkpoints", 1, tree(1), {})
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*Not a directory"):
        checkpoint.save(tmp_path / "checkpoints" / "deeper", 1, tree(1), {})
    assert (tmp_path / "checkpoints").read_text() == "in the way"
