"""metrics.jsonl: strict JSON, durable after a flush, cut back to the checkpoint's offset at resume."""

from __future__ import annotations

import enum
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from marl.core.errors import RunError, UserError
from marl.io.faults import reset_faults
from marl.io.files import dumps, loads, write_text_atomic
from marl.io.jsonl import JsonlSink, read_json, read_rows, write_json_atomic
from marl.io.metrics import Event, Row, Sinks, event_row, scalars


def row(step: int, **tags: float | int | str) -> Row:
    return {"kind": "train", "seed": 0, "env_steps": step, "updates": step, **tags}


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    reset_faults()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not strict JSON")


def test_rows_come_back_and_are_strict_json(file: Path) -> None:
    sink = JsonlSink(file, None)
    sink.write(row(1, a=math.nan, b=math.inf, c=-math.inf, d=1.5, e="text\nwith a line"))
    sink.flush()
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (found,) = read_rows(file)
    assert math.isnan(float(found["a"]))
    assert (found["b"], found["c"], found["d"], found["e"]) == (math.inf, -math.inf, 1.5, "text\nwith a line")
    assert sink.offset == file.stat().st_size
    sink.close()
    sink.close()


def test_array_scalars_and_enums_are_written_as_what_they_stand_for() -> None:
    class Level(enum.IntEnum):
        HIGH = 3

    text = dumps([np.float32(0.1), jnp.float32(0.1), np.int64(2), np.bool_(True), jnp.arange(2), Level.HIGH, Path("a")])
    assert text == '[0.1, 0.1, 2, true, [0, 1], 3, "a"]'
    assert dumps(np.float64(0.1)) == "0.1"
    assert math.isnan(loads(dumps({"a": [np.float32("nan")]}))["a"][0])
    with pytest.raises(TypeError, match="object cannot be written"):
        dumps({"a": object()})


def test_resume_cuts_the_file_to_the_stored_offset(file: Path) -> None:
    sink = JsonlSink(file, 0)
    sink.write(row(1))
    sink.flush()
    stored = sink.offset
    sink.write(row(2))
    sink.close()
    resumed = JsonlSink(file, stored)
    assert [found["env_steps"] for found in read_rows(file)] == [1]
    resumed.write(row(2))
    resumed.write(row(3))
    resumed.close()
    assert [found["env_steps"] for found in read_rows(file)] == [1, 2, 3]


def test_resume_from_the_start_empties_the_file(file: Path) -> None:
    file.write_text('{"env_steps": 1}\n{"env_st')
    JsonlSink(file, 0).close()
    assert file.read_bytes() == b""


def test_a_torn_last_line_is_ignored_by_readers_and_cut_by_writers(file: Path) -> None:
    file.write_text('{"env_steps": 1}\n{"env_steps": 2}\n{"env_steps": 3')
    assert [found["env_steps"] for found in read_rows(file)] == [1, 2]
    sink = JsonlSink(file, None)
    sink.write({"env_steps": 3})
    sink.close()
    assert [found["env_steps"] for found in read_rows(file)] == [1, 2, 3]


def test_a_long_torn_line_is_found(file: Path) -> None:
    file.write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    sink = JsonlSink(file, None)
    assert sink.offset == 9
    sink.close()


@pytest.mark.parametrize("text", ["{]\n", "[1]\n"])
def test_a_damaged_line_in_the_middle_names_its_line(file: Path, text: str) -> None:
    file.write_text('{"a": 1}\n' + text + '{"a": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not"):
        read_rows(file)


def test_a_missing_file_is_one_clear_error(file: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_rows(file)
    with pytest.raises(RunError, match=r"cannot write .*No such file"):
        JsonlSink(file.parent / "gone" / "metrics.jsonl", 0)


def test_a_file_shorter_than_the_offset_or_changed_is_refused(file: Path) -> None:
    file.write_text('{"a": 1}\n')
    with pytest.raises(RunError, match="has 9 bytes, but the checkpoint was saved when it had 50"):
        JsonlSink(file, 50)
    with pytest.raises(RunError, match="not the end of a line"):
        JsonlSink(file, 4)
    assert file.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(("action", "kind"), [("enospc", RunError), ("eacces", UserError)])
def test_a_failed_flush_leaves_whole_rows_and_can_be_repeated(
    file: Path, action: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonlSink(file, 0)
    sink.write(row(1))
    sink.flush()
    monkeypatch.setenv("MARL_FAULT", f"metrics.flush:1:{action}")
    sink.write(row(2))
    with pytest.raises(kind, match=r"cannot write .*metrics\.jsonl: "):
        sink.flush()
    assert [found["env_steps"] for found in read_rows(file)] == [1]
    assert sink.offset == file.stat().st_size
    sink.flush()
    assert [found["env_steps"] for found in read_rows(file)] == [1, 2]
    monkeypatch.setenv("MARL_FAULT", "metrics.write:1:enospc")
    with pytest.raises(RunError, match="No space left"):
        sink.write(row(3))
    sink.close()


@pytest.mark.fault
def test_a_real_file_size_limit_is_a_clear_error(file: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from marl.core.errors import RunError
from marl.io.jsonl import JsonlSink, read_rows
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sink = JsonlSink(Path(sys.argv[1]), 0)
try:
    for step in range(1000):
        sink.write({"env_steps": step})
        sink.flush()
except RunError as error:
    assert "File too large" in str(error)
else:
    raise SystemExit("no error")
assert Path(sys.argv[1]).stat().st_size == sink.offset
assert [row["env_steps"] for row in read_rows(Path(sys.argv[1]))] == list(range(step))
"""
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


@pytest.mark.fault
@pytest.mark.parametrize(("fault", "rows"), [("metrics.write:3", 1), ("metrics.flush:2", 2)])
def test_a_kill_leaves_whole_rows(file: Path, fault: str, rows: int) -> None:
    program = """
import sys
from pathlib import Path
from marl.io.jsonl import JsonlSink
sink = JsonlSink(Path(sys.argv[1]), 0)
sink.write({"env_steps": 0})
sink.flush()
sink.write({"env_steps": 1})
sink.write({"env_steps": 2}) if "write" in sys.argv[2] else sink.flush()
"""
    environment = {**os.environ, "MARL_FAULT": f"{fault}:kill"}
    killed = subprocess.run([sys.executable, "-c", program, str(file), fault], env=environment, check=False)
    assert killed.returncode == -9
    assert [found["env_steps"] for found in read_rows(file)] == list(range(rows))


def test_json_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluations.json"
    write_json_atomic(path, {"a": [1, math.nan]})
    assert json.loads(path.read_text(), parse_constant=refuse) == {"a": [1, "NaN"]}
    monkeypatch.setenv("MARL_FAULT", "evaluations.write:1+:enospc")
    with pytest.raises(RunError, match=r"cannot write .*evaluations\.json: No space left on device"):
        write_json_atomic(path, {"a": 2})
    assert math.isnan(read_json(path)["a"][1])
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)


def test_a_bad_place_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        write_text_atomic(tmp_path / "file" / "config.yaml", "a: 1")


class Recorder:
    def __init__(self, fails: bool = False) -> None:
        self.rows: list[Row] = []
        self.closed = False
        self.fails = fails

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def flush(self) -> None:
        return

    def close(self) -> None:
        self.closed = True
        if self.fails:
            raise RunError("cannot close")


def test_every_sink_gets_the_same_row_and_time() -> None:
    sinks = [Recorder(), Recorder()]
    Sinks(sinks).write(row(1))
    assert sinks[0].rows == sinks[1].rows
    assert "time" in sinks[0].rows[0]
    Sinks(sinks).write(row(2) | {"time": 7.0})
    assert sinks[1].rows[1]["time"] == 7.0


def test_all_sinks_are_closed_when_one_fails() -> None:
    sinks = [Recorder(fails=True), Recorder()]
    with pytest.raises(RunError, match="cannot close"):
        Sinks(sinks).close()
    assert sinks[1].closed


def test_tags_are_the_numbers_of_a_row() -> None:
    assert scalars({**row(3), "time": 1.0, "loss/a": 2, "note": "text"}) == {"loss/a": 2.0}
    assert scalars(event_row(Event("slow_disk", "the disk is slow"), 1, 2, 3)) == {}
