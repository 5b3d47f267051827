"""What travels on the inference link: raw arrays of a layout that both sides know, behind a header of fixed size.

A frame is one ZeroMQ message part. It holds no code, no types and no sizes that its reader would have to believe: a
reader compares the header with what it expects and takes the payload apart by its own layout. Importing this imports
no JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import RunError, ShapeError
from marl.core.host_rows import Field

HostArray: TypeAlias = NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"MARL"
PROTOCOL = 1
ALIGNMENT = 16  # of arrays in a frame
ERROR_LIMIT = 512  # bytes of an error's text


class Kind(IntEnum):
    """What a frame is for. HELLO is answered at once by WELCOME with the same number: it shows that the server lives,
    and which incarnation of it."""

    REQUEST = 1
    ANSWER = 2
    REFUSED = 3
    HELLO = 4
    WELCOME = 5


class Refusal(IntEnum):
    """Why a frame was not answered."""

    SIZE = 1
    PROTOCOL = 2
    SCHEMA = 3
    KIND = 4
    UNKNOWN_VERSION = 5


class LinkError(RunError):
    """The other side of the link does not answer, or the two sides do not fit together."""


class BadFrameError(Exception):
    """A frame is not what its reader expects. `refusal`: why, None where it is not even one of ours."""

    def __init__(self, refusal: Refusal | None, text: str, header: Header | None = None) -> None:
        super().__init__(text)
        self.refusal, self.header = refusal, header


class Header(NamedTuple):
    """The first bytes of every frame, little-endian.

    kind: a `Kind`.  code: a `Refusal` or 0.  slot: of the client.  schema: hash of the payload's layout.  epoch: which
    incarnation of the server this is, 0 in a client's frames.  client: a random number that a client keeps when it
    connects again.  number: of the request; it grows.  size: bytes of payload.
    """

    kind: int
    code: int
    slot: int
    schema: int
    epoch: int
    client: int
    number: int
    size: int


_STRUCT = struct.Struct("<4sHBBQQQQQI12x")  # magic, protocol, kind, code, schema, epoch, client, number, size, slot
HEADER_SIZE = _STRUCT.size
assert HEADER_SIZE == 64


def write_header(buffer: bytearray, header: Header) -> None:
    """Put a header at the beginning of a frame."""
    h = header
    _STRUCT.pack_into(buffer, 0, MAGIC, PROTOCOL, h.kind, h.code, h.schema, h.epoch, h.client, h.number, h.size, h.slot)


def small_frame(header: Header, payload: bytes = b"") -> bytes:
    """A frame without arrays. payload: text of an error; what exceeds the limit is cut off."""
    payload = payload[:ERROR_LIMIT]
    buffer = bytearray(HEADER_SIZE)
    write_header(buffer, header._replace(size=len(payload)))
    return bytes(buffer) + payload


def read_header(frame: Buffer) -> Header:
    """The header of a frame. Raises: BadFrameError if it is not ours, of another protocol or of another length."""
    if len(frame) < HEADER_SIZE:
        raise BadFrameError(None, f"a message of {len(frame)} bytes is shorter than a header")
    magic, protocol, kind, code, schema, epoch, client, number, size, slot = _STRUCT.unpack_from(frame)
    if magic != MAGIC:
        raise BadFrameError(None, "a message that is none of ours")
    header = Header(kind, code, slot, schema, epoch, client, number, size)
    if protocol != PROTOCOL:
        raise BadFrameError(Refusal.PROTOCOL, f"protocol {protocol}, expected {PROTOCOL}", header)
    if size != len(frame) - HEADER_SIZE:
        raise BadFrameError(Refusal.SIZE, f"{len(frame) - HEADER_SIZE} bytes of payload, announced {size}", header)
    return header


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrays of a payload, in order. fields: with whole shapes."""

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, fields: Iterable[Field]) -> Layout:
        return cls(tuple(fields))

    def __post_init__(self) -> None:
        offsets, at = [], 0
        for field in self.fields:
            offsets.append(at)
            size = math.prod(field.shape) * np.dtype(field.dtype).itemsize
            at += -(-size // ALIGNMENT) * ALIGNMENT
        words = json.dumps([ALIGNMENT, [[list(f.path), f.dtype, list(f.shape)] for f in self.fields]])
        known = {
            "size": at,
            "schema": int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little"),
            "_forms": tuple(
                (f.shape, np.dtype(f.dtype), HEADER_SIZE + offset)
                for f, offset in zip(self.fields, offsets, strict=True)
            ),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    size: int = dataclasses.field(init=False, compare=False)
    """Bytes of a payload."""
    schema: int = dataclasses.field(init=False, compare=False)
    """The first 8 bytes of the SHA-256 of the fields: what both sides must agree on."""
    _forms: tuple[tuple[tuple[int, ...], Any, int], ...] = dataclasses.field(init=False, compare=False, repr=False)

    def views(self, frame: Buffer) -> list[HostArray]:
        """The arrays in a frame, without a copy; they can be written to where the frame can."""
        return [np.ndarray(shape, dtype, frame, offset) for shape, dtype, offset in self._forms]

    def check(self, header: Header) -> None:
        """Raises: BadFrameError if a payload is of another layout."""
        if header.schema != self.schema:
            raise BadFrameError(
                Refusal.SCHEMA, f"arrays of layout {header.schema:016x}, expected {self.schema:016x}", header
            )
        if header.size != self.size:
            raise BadFrameError(Refusal.SIZE, f"{header.size} bytes of arrays, expected {self.size}", header)


class FrameBuffer:
    """A frame of a layout that is written again and again."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.frame = bytearray(HEADER_SIZE + layout.size)
        self._views = layout.views(self.frame)

    def fill(self, header: Header, arrays: Sequence[HostArray]) -> bytearray:
        """Copy arrays into the frame. Raises: ShapeError if they are not those of the layout."""
        if len(arrays) != len(self._views):
            raise ShapeError(f"{len(arrays)} arrays for a frame of {len(self._views)}")
        for index, (view, array) in enumerate(zip(self._views, arrays, strict=True)):
            if array.shape != view.shape or array.dtype != view.dtype:
                field = self.layout.fields[index]
                raise ShapeError(
                    f"{'/'.join(field.path)}: got {array.dtype} {array.shape}, expected {view.dtype} {view.shape}"
                )
            view[...] = array
        write_header(self.frame, header._replace(schema=self.layout.schema, size=self.layout.size))
        return self.frame
