"""Frames to GIF and MP4."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import RunError, UserError, did_you_mean
from marl.io.files import write_failure

if TYPE_CHECKING:
    from PIL import Image

Frame: TypeAlias = NDArray[np.uint8]

SUFFIXES = (".gif", ".mp4")
_PALETTE_SAMPLES = 12


def write_video(path: Path, frames: Sequence[Frame], fps: float) -> Path:
    """Write frames as an animated GIF or an MP4, by the suffix of `path`; nothing is left behind if it fails.

    frames: u8 `[H, W, 3]` each, all of one shape.  fps: frames a second [1/s].

    Raises: UserError for an unknown suffix, no frames, frames of the wrong kind, a place that cannot be written, or
    an MP4 without ffmpeg; RunError if the disk is full or the encoder fails.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    _check_frames(frames, fps)
    temporary = path.with_name(f".{path.stem}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".gif":
            temporary.write_bytes(encode_gif(frames, fps))
        else:
            _write_mp4(temporary, frames, fps)
        os.replace(temporary, path)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def check_suffix(path: Path) -> None:
    """Raises: UserError if `write_video` cannot write this kind of file, naming those it can."""
    if path.suffix.lower() not in SUFFIXES:
        near = did_you_mean(path.suffix.lower(), SUFFIXES)
        raise UserError(f"cannot write a video as '{path.name}': the name must end in {' or '.join(SUFFIXES)}{near}")


def _check_frames(frames: Sequence[Frame], fps: float) -> None:
    if not len(frames):
        raise UserError("there are no frames to write")
    if not fps > 0:
        raise UserError(f"fps must be above 0, not {fps}")
    shape = frames[0].shape
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
            raise UserError(
                f"frame {number} is {frame.dtype}{list(frame.shape)}; "
                "all frames must be uint8[height, width, 3] of one size"
            )


def encode_gif(frames: Sequence[Frame], fps: float) -> bytes:
    """An endless animated GIF with one palette for all frames (smaller, and colours do not flicker).

    A GIF counts time in 10 ms; frame times are rounded so that the total stays right, and never under 20 ms.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("writing a GIF needs Pillow: pip install 'imageio[ffmpeg]'") from error
    palette = _palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    step_ms = max(20.0, 1000.0 / fps)
    ends = [round((number + 1) * step_ms / 10) * 10 for number in range(len(frames))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def _palette(frames: Sequence[Frame]) -> Image.Image:
    """A palette image of up to 256 colours, from a few frames spread over the whole."""
    from PIL import Image

    picked = np.unique(np.linspace(0, len(frames) - 1, _PALETTE_SAMPLES).astype(int))
    montage = Image.fromarray(np.concatenate([frames[index] for index in picked]))
    return montage.quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _write_mp4(path: Path, frames: Sequence[Frame], fps: float) -> None:
    """H.264 in yuv420p, which every player takes; an odd edge is doubled, as the format needs even sizes.

    The encoder is started without a fork of this process (JAX has threads), in a process group of its own, so that
    Ctrl-C reaches this process alone.
    """
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"writing {path.suffix} needs ffmpeg: pip install 'imageio[ffmpeg]', or write a .gif"
        ) from error
    height, width = frames[0].shape[:2]
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    size = f"{width + width % 2}x{height + height % 2}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    with tempfile.TemporaryFile() as messages:
        encoder = subprocess.Popen(
            [program, "-y", "-loglevel", "error", *source, *target],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            process_group=0,
        )
        with contextlib.suppress(BrokenPipeError), encoder:  # what ended it early is in its messages
            assert encoder.stdin is not None
            for frame in frames:
                encoder.stdin.write(np.pad(frame, padding, mode="edge").tobytes())
        if encoder.returncode != 0:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise RunError(f"ffmpeg could not write {path}: {said[-1]}")
