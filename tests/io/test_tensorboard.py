"""TensorBoard pages, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from marl.io.metrics import Row
from marl.io.tensorboard import LAYOUT, TensorBoardSink

CONFIG = "name: probe\n# <script>\nseed: 0\n"


def row(step: int, seed: int = 0, kind: str = "train", **tags: float | int | str) -> Row:
    return {"kind": kind, "seed": seed, "env_steps": step, "updates": step, "time": 1000.0 + step, **tags}


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float, float]]:
    return [(point.step, point.value, point.wall_time) for point in read(folder).Scalars(tag)]


def frames(count: int = 4) -> list[np.ndarray[Any, Any]]:
    return [np.full((8, 10, 3), 40 * number, np.uint8) for number in range(count)]


def sink(run_dir: Path, seeds: tuple[int, ...] = (0,), **options: Any) -> TensorBoardSink:
    return TensorBoardSink(run_dir, seeds, CONFIG, {"algorithm": "ppo", "rate": 3e-4, "layers": [64, 64]}, **options)


def test_scalars_stand_at_env_steps_with_the_rows_time(tmp_path: Path) -> None:
    written = sink(tmp_path)
    for step in (10, 20):
        written.write(row(step, **{"loss/vehicle/policy": step / 2, "text": "no number"}))
    written.write(row(30, **{"loss/vehicle/policy": math.nan}))
    written.close()
    found = points(tmp_path / "tb", "loss/vehicle/policy")
    assert found[:2] == [(10, 5.0, 1010.0), (20, 10.0, 1020.0)]
    assert math.isnan(found[2][1])
    assert read(tmp_path / "tb").Tags()["scalars"] == ["loss/vehicle/policy"]


def test_several_seeds_have_a_folder_each(tmp_path: Path) -> None:
    written = sink(tmp_path, (3, 5))
    written.write(row(1, seed=3, a=1.0))
    written.write(row(1, seed=5, a=2.0))
    written.close()
    assert [points(tmp_path / f"seed_{seed}" / "tb", "a")[0][1] for seed in (3, 5)] == [1.0, 2.0]


def test_layout_config_events_and_hparams_are_there(tmp_path: Path) -> None:
    written = sink(tmp_path)
    written.write(row(5, kind="eval", **{"eval/return/vehicle": 3.0, "eval/length": 9.0}))
    written.write(row(6, kind="event", event="checkpoint_invalid", message="moved"))
    written.close()
    accumulator = read(tmp_path / "tb")
    layout = layout_pb2.Layout.FromString(accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "".join(f"    {line}\n" for line in CONFIG.splitlines())
    assert b"checkpoint_invalid: moved" in accumulator.Tensors("events/text_summary")[0].tensor_proto.string_val[0]

    def plugin(tag: str) -> Any:
        content = accumulator.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(content)

    start = plugin("session_start_info").session_start_info
    assert start.hparams["algorithm"].string_value == "ppo"
    assert start.hparams["rate"].number_value == 3e-4
    assert start.hparams["layers"].string_value == "[64, 64]"
    assert [info.name.tag for info in plugin("experiment").experiment.metric_infos] == ["eval/return/vehicle"]
    assert plugin("session_end_info").session_end_info.status == 1


def test_a_video_is_an_animated_image(tmp_path: Path) -> None:
    written = sink(tmp_path)
    written.video("eval/video", frames(), 50, fps=5)
    written.close()
    (shown,) = read(tmp_path / "tb").Images("eval/video")
    assert (shown.step, shown.width, shown.height) == (50, 10, 8)
    image = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (image.format, image.n_frames, image.size) == ("GIF", 4, (10, 8))


def test_rebuilding_leaves_neither_gap_nor_duplicate(tmp_path: Path) -> None:
    written = sink(tmp_path)
    rows = [row(step, kind="eval" if step % 20 == 0 else "train", a=float(step)) for step in range(10, 70, 10)]
    for one in rows:
        written.write(one)
        if one["kind"] == "eval":
            written.video("eval/video", frames(), int(one["env_steps"]))
    written.flush()  # and here the process is killed
    resumed = sink(tmp_path)
    resumed.rebuild(iter(rows[:4]))
    for one in rows[4:]:
        resumed.write(one)
    resumed.video("eval/video", frames(), 60)
    resumed.close()
    written.close()  # its file has no name any more
    assert points(tmp_path / "tb", "a") == [(step, float(step), 1000.0 + step) for step in range(10, 70, 10)]
    accumulator = read(tmp_path / "tb")
    assert [shown.step for shown in accumulator.Images("eval/video")] == [20, 40, 60]
    assert len(accumulator.Tensors("config/text_summary")) == 1
    assert len(list((tmp_path / "tb").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_rebuilding_survives_a_damaged_event_file(tmp_path: Path, harm: str) -> None:
    written = sink(tmp_path)
    written.write(row(10, kind="eval", a=1.0))
    written.video("eval/video", frames(), 10)
    written.flush()
    (file,) = (tmp_path / "tb").iterdir()
    if harm == "torn":
        os.truncate(file, file.stat().st_size - 7)
    else:
        raw = bytearray(file.read_bytes())
        raw[-50] ^= 1
        file.write_bytes(raw)
    resumed = sink(tmp_path)
    resumed.rebuild([row(10, kind="eval", a=1.0)])
    resumed.close()
    written.close()  # its file has no name any more
    assert points(tmp_path / "tb", "a") == [(10, 1.0, 1010.0)]


def test_without_tensorboardx_there_is_one_notice_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    notices: list[str] = []
    written = sink(tmp_path, notice=notices.append)
    written.write(row(1, a=1.0))
    written.video("eval/video", frames(), 1)
    written.rebuild([row(1, a=1.0)])
    written.flush()
    written.close()
    assert len(notices) == 1
    assert "tensorboardX is missing" in notices[0]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_gives_one_notice_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("in the way")
    notices: list[str] = []
    written = sink(tmp_path, notice=notices.append)
    for step in range(3):
        written.write(row(step, a=1.0))
    written.close()
    assert len(notices) == 1
    assert "not written any more" in notices[0]
