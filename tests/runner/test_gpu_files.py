"""Run folders that travel as archives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from marl.io import checkpoint
from marl.io.files import write_json_atomic
from marl.runner import gpu_files
from marl.runner.gpu_files import pack_runs, unpack_runs


def make_run(runs: Path, name: str, size: int = 10) -> Path:
    run = runs / name / "20260101-000000-abcdef"
    run.mkdir(parents=True)
    write_json_atomic(run / "meta.json", {"status": "done"})
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "tb").mkdir()
    (run / "tb" / "events").write_text("many")
    for step in (100, 200):
        checkpoint.save(run / "checkpoints", step, {"x": np.frombuffer(os.urandom(size), np.uint8)}, {"step": step})
    (run / "checkpoints" / "ckpt-000000000300.tmp").mkdir()
    (run / "checkpoints" / "ckpt-000000000300.tmp" / "arrays.bin").write_text("half")
    return run


def test_a_run_comes_back_with_its_newest_checkpoint_and_its_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "one")
    archives = pack_runs(tmp_path / "runs", tmp_path, notice=pytest.fail)
    assert [path.name for path in archives] == ["runs-1.tar.gz"]
    unpack_runs(tmp_path, tmp_path / "back")
    back = tmp_path / "back" / "one" / run.name
    assert (back / "metrics.jsonl").read_text() == "{}\n"
    assert not (back / "tb").exists()
    assert [path.name for path in checkpoint.list_checkpoints(back / "checkpoints")] == ["ckpt-000000000200"]
    assert checkpoint.read_header(checkpoint.list_checkpoints(back / "checkpoints")[0]) == {"step": 200}
    assert not list((back / "checkpoints").glob("*.tmp"))


def test_no_archive_is_too_large_and_what_has_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_files, "ARCHIVE_BYTES", 20_000)
    monkeypatch.setattr(gpu_files, "ARCHIVES", 2)
    for number, size in enumerate((12_000, 13_000, 14_000, 40_000)):
        make_run(tmp_path / "runs", f"run{number}", size)
    said: list[str] = []
    archives = pack_runs(tmp_path / "runs", tmp_path, notice=said.append)
    assert len(archives) == 2
    assert all(path.stat().st_size <= 20_000 for path in archives)
    assert len(said) == 2
    assert "run3/" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "runs-1.tar.gz", "runs-2.tar.gz"]
