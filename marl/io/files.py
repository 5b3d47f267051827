"""Small files written whole or not at all, strict JSON, and the words for a write that failed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from marl.core.errors import MarlError, RunError, UserError
from marl.io.faults import fault_point

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_USER_CODES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def dumps(obj: object, *, indent: int | None = None) -> str:
    """`obj` as JSON that every strict parser accepts: NaN and the infinities become the strings `NaN`, `Infinity`,
    `-Infinity`.

    NumPy and JAX scalars count as numbers (a float32 keeps its short decimal form), small arrays as lists, paths as
    strings.

    Raises: TypeError if `obj` holds anything else.
    """
    return json.dumps(_clean(obj), indent=indent, allow_nan=False, ensure_ascii=False)


def loads(text: str | bytes) -> Any:
    """The inverse of `dumps`: the three non-finite strings become floats again.

    Raises: ValueError if it is not JSON.
    """
    return _revive(json.loads(text))


def _clean(obj: object) -> object:
    if obj is None or type(obj) in (bool, int, str):
        return obj
    if isinstance(obj, int | str):  # an enum member or another subclass stands for its plain value
        return str(obj) if isinstance(obj, str) else int(obj)
    if isinstance(obj, dict):
        return {str(key): _clean(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_clean(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "dtype") and hasattr(obj, "tolist"):
        if obj.dtype == "float32" and getattr(obj, "ndim", 1) == 0:
            return _number(float(str(obj)))
        return _clean(obj.tolist())
    if isinstance(obj, float):
        return _number(float(obj))
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON")


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _revive(obj: Any) -> Any:
    if isinstance(obj, str):
        return _NON_FINITE.get(obj, obj)
    if isinstance(obj, dict):
        return {key: _revive(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [_revive(value) for value in obj]
    return obj


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. File systems that cannot do this are left alone."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes, fault: str | None = None) -> None:
    """Write `data` beside `path`, flush it to disk and rename it over `path`: readers see the old file or the new one.

    Raises: OSError; the file beside it is removed then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if fault is not None:
            fault_point(fault)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the text file `path` whole. Raises: as `write_json_atomic`."""
    try:
        replace_file(path, text.encode(), f"{path.stem}.write")
    except OSError as error:
        raise write_failure(path, error) from error


def write_json_atomic(path: Path, obj: object) -> None:
    """Replace the JSON file `path` whole (strict JSON, two spaces of indent).

    Raises: RunError if the disk is full or fails; UserError if the place cannot be written by this user.
    """
    write_text_atomic(path, dumps(obj, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json_atomic` wrote. Raises: UserError naming the path if it is missing or is not JSON."""
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def reason(error: OSError) -> str:
    """The operating system's words for an error: `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


def write_failure(path: Path, error: OSError) -> MarlError:
    """The error to raise for a failed write: UserError where the user chose a bad place, else RunError (disk full,
    failing).
    """
    kind = UserError if error.errno in _USER_CODES else RunError
    return kind(f"cannot write {path}: {reason(error)}")
