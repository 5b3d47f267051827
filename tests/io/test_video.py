"""Frames to GIF and MP4, read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from marl.core.errors import RunError, UserError
from marl.io.video import write_video

Frames = list[np.ndarray[Any, Any]]


def moving_square(count: int, height: int = 30, width: int = 40) -> Frames:
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), (20, 60, 20), np.uint8)
        frame[5:15, number : number + 8] = (230, 30, 30)
        frames.append(frame)
    return frames


def test_a_gif_holds_the_frames_their_colours_and_their_time(tmp_path: Path) -> None:
    frames = moving_square(12)
    write_video(tmp_path / "sub" / "a.gif", frames, fps=15)
    total_ms = 0
    with Image.open(tmp_path / "sub" / "a.gif") as image:
        assert (image.n_frames, image.info["loop"]) == (12, 0)
        for number, frame in enumerate(frames):
            image.seek(number)
            total_ms += image.info["duration"]
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame).max() <= 8
    assert total_ms == 800
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.gif"]


def test_a_gif_is_small_because_its_frames_share_a_palette(tmp_path: Path) -> None:
    frames = moving_square(40, 120, 160)
    size = write_video(tmp_path / "a.gif", frames, fps=10).stat().st_size
    assert size < 20_000 < 40 * 120 * 160


@pytest.mark.parametrize(("height", "width"), [(30, 40), (31, 41)])
def test_an_mp4_decodes_with_even_sizes(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_square(10, height, width)
    write_video(tmp_path / "a.mp4", frames, fps=20)
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(tmp_path / "a.mp4")]
    to_rgb = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run([*decode, *to_rgb], check=True, capture_output=True).stdout
    found = np.frombuffer(raw, np.uint8).reshape(10, height + height % 2, width + width % 2, 3)
    assert np.abs(found[0, :height, :width].astype(int) - frames[0]).mean() < 10
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["a.avi", "a", "a.gid"])
def test_another_suffix_names_the_valid_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"must end in \.gif or \.mp4"):
        write_video(tmp_path / name, moving_square(1), 10)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        ([np.zeros((4, 4, 3), np.float32)], r"frame 0 is float32\[4, 4, 3\]"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], r"frame 1 is uint8\[4, 5, 3\]"),
        ([np.zeros((4, 4), np.uint8)], r"frame 0 is uint8\[4, 4\]"),
    ],
)
def test_frames_of_the_wrong_kind_are_refused(tmp_path: Path, frames: Frames, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / "a.gif", frames, 10)


def test_a_rate_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fps must be above 0"):
        write_video(tmp_path / "a.gif", moving_square(1), 0)


@pytest.mark.parametrize("module", ["imageio_ffmpeg", "PIL"])
def test_a_missing_encoder_is_a_clear_error(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = "a.mp4" if module == "imageio_ffmpeg" else "a.gif"
    with pytest.raises(UserError, match=r"pip install 'imageio\[ffmpeg\]'"):
        write_video(tmp_path / name, moving_square(1), 10)


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*(Not a directory|File exists)"):
        write_video(tmp_path / "file" / name, moving_square(2), 10)
    (tmp_path / name).mkdir()
    with pytest.raises((UserError, RunError), match="Is a directory"):
        write_video(tmp_path / name, moving_square(2), 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", name])
