"""TensorBoard pages of a run, made from metrics rows: always re-creatable, never the source of truth.

Files are written by this process, a record at a time: no queue that a full disk could block. x is env steps everywhere.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from marl.io.files import reason
from marl.io.metrics import Row, scalars
from marl.io.video import Frame, encode_gif

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_MISSING = "no TensorBoard pages: package tensorboardX is missing (pip install tensorboardX); metrics.jsonl has all"

# Chart titles by category, each with regular expressions over tags: the custom scalars plugin matches them itself.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "returns": {"training return": [r"episode/return.*"], "evaluation return": [r"eval/return.*"]},
    "evaluation": {"length and success": [r"eval/(length|success|survival|crash).*"]},
    "reward terms": {"mean per episode": [r"reward/.*"]},
    "losses": {
        "policy": [r"loss/[^/]+/(policy|actor).*"],
        "value": [r"loss/[^/]+/(value|critic).*"],
        "all": [r"loss/.*"],
    },
    "policy": {
        "KL from the behaviour": [r"policy/[^/]+/.*kl.*"],
        "entropy": [r"policy/[^/]+/.*entropy.*"],
        "clip fraction": [r"policy/[^/]+/.*clip.*"],
    },
    "value": {"explained variance": [r"value/[^/]+/explained.*"], "value": [r"value/.*"]},
    "optimiser": {"gradient norm": [r"optim/[^/]+/.*norm.*"], "learning rate": [r"optim/[^/]+/learning_rate.*"]},
    "search": {"fitness": [r"ga/[^/]+/(best|mean|median|best_so_far)"], "all": [r"ga/.*"]},
    "flow": {"policy lag": [r"flow/policy_lag.*"], "all": [r"flow/.*"]},
    "performance": {"steps per second": [r"perf/.*steps_per_s"], "memory": [r"perf/.*memory.*"]},
}

HPARAM_METRICS = "eval/return"  # tags that begin so are the columns of the hparams page


class TensorBoardSink:
    """Writes rows as scalars, one writer a seed: `tb/` for one seed, `seed_<n>/tb/` for several.

    config_yaml: the resolved configuration, shown as text.  hparams: flat; shown in the hparams page, one session a
    seed. notice: gets one line if tensorboardX is missing or the disk fails; the sink is silent from then on,
    training goes on.
    """

    def __init__(
        self,
        run_dir: Path,
        seeds: Sequence[int],
        config_yaml: str,
        hparams: Mapping[str, Any],
        *,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.folders = {seed: run_dir / "tb" if len(seeds) == 1 else run_dir / f"seed_{seed}" / "tb" for seed in seeds}
        self._config_yaml = config_yaml
        self._hparams = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in hparams.items()}
        self._notice = notice or logging.getLogger(__name__).warning
        self._writers: dict[int, EventsWriter] = {}
        self._compared: set[int] = set()  # seeds whose hparams page knows which metrics to compare
        self.enabled = True
        try:
            import tensorboardX.event_file_writer
            import tensorboardX.summary  # noqa: F401
        except ImportError:
            self._stop(_MISSING)

    def write(self, row: Row) -> None:
        """Add a row's numbers at x = its env steps, or an event as text. Rows of unknown seeds go to the first seed."""
        if not self.enabled:
            return
        from tensorboardX import summary
        from tensorboardX.proto.summary_pb2 import Summary

        seed = self._seed(row.get("seed"))
        values = scalars(row)
        found = [Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])]
        if row.get("kind") == "event":
            found.append(summary.text("events", _indented(f"{row.get('event', '')}: {row.get('message', '')}")))
        metrics = [tag for tag in values if tag.startswith(HPARAM_METRICS)]
        if metrics and seed not in self._compared:
            self._compared.add(seed)
            found.append(self._hparams_summaries(metrics)[0])
        self._add(seed, found, int(row.get("env_steps", 0)), _time(row))

    def video(
        self, tag: str, frames: Sequence[Frame], step: int, *, seed: int | None = None, fps: float = 10.0
    ) -> None:
        """Show frames (u8 `[H, W, 3]`) as an animated image at x = `step`."""
        if not self.enabled:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        height, width = frames[0].shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames, fps))
        self._add(self._seed(seed), [Summary(value=[Summary.Value(tag=tag, image=image)])], step, time.time())

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Replace all event files by what `rows` say (at resume), wall times included: neither gap nor duplicate.

        Videos are kept where an evaluation row of the same seed and env steps remains.
        """
        if not self.enabled:
            return
        old = {seed: _videos(folder) for seed, folder in self.folders.items()}
        self._close_writers()
        for folder in self.folders.values():
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._compared.clear()
        evaluated: dict[int, set[int]] = {}
        for row in rows:
            self.write(row)
            if row.get("kind") == "eval":
                evaluated.setdefault(self._seed(row.get("seed")), set()).add(int(row.get("env_steps", 0)))
        for seed, videos in old.items():
            for video in videos:
                if video.step in evaluated.get(seed, ()):
                    self._add(seed, [video.summary], video.step, video.wall_time)
        self.flush()

    def flush(self) -> None:
        """Force what was written to disk."""
        for writer in list(self._writers.values()):
            self._guard(writer.flush)

    def close(self) -> None:
        """Close the files; the sink may be written to again, in new files."""
        for seed in list(self._writers):
            self._add(seed, [self._hparams_summaries([])[2]], 0, time.time())
        self._close_writers()

    def _seed(self, seed: object) -> int:
        return seed if isinstance(seed, int) and seed in self.folders else next(iter(self.folders))

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            self._guard(writer.close)
        self._writers.clear()

    def _stop(self, line: str) -> None:
        self.enabled = False
        self._notice(line)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if self.enabled:
                self._stop(f"TensorBoard pages are not written any more: {reason(error)}; metrics.jsonl has all")

    def _add(self, seed: int, summaries: Sequence[Any], step: int, wall_time: float) -> None:
        """One event record for all the summaries."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [value for summary in summaries for value in summary.value]
        if not values:
            return
        event = Event(wall_time=wall_time, step=step, summary=Summary(value=values))
        self._guard(lambda: self._writer(seed, wall_time).write_event(event))

    def _writer(self, seed: int, wall_time: float) -> EventsWriter:
        """The seed's writer; a new file begins with the chart layout and the configuration."""
        if seed not in self._writers:
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter

            folder = self.folders[seed]
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[seed] = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            layout = {name: {t: ["Multiline", tags] for t, tags in charts.items()} for name, charts in LAYOUT.items()}
            text = summary.text("config", _indented(self._config_yaml))
            session = self._hparams_summaries([])[1]
            self._add(seed, [summary.custom_scalars(layout), text, session], 0, wall_time)
        return self._writers[seed]

    def _hparams_summaries(self, metrics: Sequence[str]) -> tuple[Any, Any, Any]:
        """The hparams plugin's experiment (which metrics to compare), session start (the values) and session end."""
        from tensorboardX import summary

        found: tuple[Any, Any, Any] = summary.hparams(self._hparams, dict.fromkeys(metrics, 0.0))
        return found


class _Video(NamedTuple):
    step: int
    wall_time: float
    summary: Any


def _videos(folder: Path) -> list[_Video]:
    """The image summaries in a folder's event files."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(file):
            event = Event.FromString(record)
            images = [value for value in event.summary.value if value.HasField("image")]
            if images:
                found.append(_Video(event.step, event.wall_time, Summary(value=images)))
    return found


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file, up to a torn or damaged one. Format: length u64, its CRC u32, data, its CRC u32."""
    from tensorboardX.record_writer import masked_crc32c

    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12:
            size, check = struct.unpack("<QI", head)
            if check != masked_crc32c(head[:8]):
                return
            data = file.read(size)
            tail = file.read(4)
            if len(tail) < 4 or struct.unpack("<I", tail)[0] != masked_crc32c(data):
                return
            yield data


def _time(row: Row) -> float:
    wall_time = row.get("time")
    return float(wall_time) if isinstance(wall_time, int | float) else time.time()


def _indented(text: str) -> str:
    """A Markdown code block made by indentation: nothing in `text` can end it or be taken for Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())
