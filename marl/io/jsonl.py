"""metrics.jsonl, the run's source of truth: one strict JSON object a line, cut back to the checkpoint's offset at
resume.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from marl.core.errors import RunError, UserError
from marl.io.faults import fault_point
from marl.io.files import dumps, loads, read_json, reason, write_failure, write_json_atomic
from marl.io.metrics import Row

__all__ = ["JsonlSink", "iter_rows", "read_json", "read_rows", "write_json_atomic"]

_BUFFER_BYTES = 1 << 20


class JsonlSink:
    """Appends rows to `path`.

    offset: bytes of the file that count; the rest is cut off. A checkpoint's header stores `sink.offset`, so that
    the rows after a resume follow those before it without gap or duplicate. None appends to what is there (less a
    torn last line).

    Raises: UserError or RunError if the file cannot be written; RunError if it is shorter than `offset`.
    """

    def __init__(self, path: Path, offset: int | None = None) -> None:
        self.path = path
        self._lines: list[bytes] = []
        self._pending = 0
        self._closed = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_failure(path, error) from error
        try:
            self.offset = self._cut(offset)
        except OSError as error:
            os.close(self._fd)
            raise write_failure(path, error) from error
        except RunError:
            os.close(self._fd)
            raise

    def _cut(self, offset: int | None) -> int:
        """Cut the file to its valid part and place the write position at its end."""
        size = os.fstat(self._fd).st_size
        if offset is None:
            offset = _end_of_last_line(self._fd, size)
        if offset > size:
            raise RunError(
                f"{self.path} has {size} bytes, but the checkpoint was saved when it had {offset}: rows are lost; "
                "restore the file, or start a new run"
            )
        if offset > 0 and os.pread(self._fd, 1, offset - 1) != b"\n":
            raise RunError(
                f"{self.path} was changed: byte {offset}, stored in the checkpoint, is not the end of a line"
            )
        if offset < size:
            os.ftruncate(self._fd, offset)
            os.fsync(self._fd)
        os.lseek(self._fd, offset, os.SEEK_SET)
        return offset

    def write(self, row: Row) -> None:
        """Buffer one row; it is written at the next flush, or when a MiB is waiting. Raises: as `flush`."""
        line = dumps(row).encode() + b"\n"
        try:
            fault_point("metrics.write")
        except OSError as error:
            raise write_failure(self.path, error) from error
        self._lines.append(line)
        self._pending += len(line)
        if self._pending >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows and force them to disk; `offset` is then the length of the file.

        Raises: RunError (disk full or failing) or UserError; the file is cut back to its last whole flush.
        """
        if not self._lines:
            return
        data = memoryview(b"".join(self._lines))
        try:
            done = 0
            while done < len(data):
                done += os.write(self._fd, data[done:])
            fault_point("metrics.flush")
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.offset)
                os.lseek(self._fd, self.offset, os.SEEK_SET)
            raise write_failure(self.path, error) from error
        self.offset += len(data)
        self._lines.clear()
        self._pending = 0

    def drop(self) -> None:
        """Forget the rows that wait: the file belongs to another process now."""
        self._lines.clear()
        self._pending = 0

    def close(self) -> None:
        """Flush, then close the file. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            os.close(self._fd)


def _end_of_last_line(fd: int, size: int) -> int:
    """The offset just after the last newline."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of a metrics file, one at a time. A torn last line (the writer was killed) ends the iteration quietly.

    Raises: UserError if the file cannot be read, or if a line other than the last one is not a JSON object.
    """
    try:
        file = path.open("rb")  # closed below; only the opening may blame the user
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                row = loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"{path}:{number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object")
            if not line.endswith(b"\n"):
                return
            yield row


def read_rows(path: Path) -> list[Row]:
    """All rows of a metrics file; see `iter_rows`."""
    return list(iter_rows(path))
