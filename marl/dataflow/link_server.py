"""The inference link, seen from a policy server: it binds, and answers what is asked (`link` says how they talk)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from marl.core.errors import UserError
from marl.dataflow.link import TAKE_LIMIT, Endpoint, can_read, heartbeat, limits, milliseconds, random_number
from marl.dataflow.link_frames import (
    BadFrameError,
    FrameBuffer,
    Header,
    HostArray,
    Kind,
    Layout,
    Refusal,
    read_header,
    small_frame,
)

PATH_LIMIT = 100  # bytes; systems allow 104 to 108
_ZAP_DOMAIN = b"marl"


class Incoming(NamedTuple):
    """A request, as a server sees it. `arrays` lie in the message and cannot be written to."""

    wire: int
    route: bytes
    client: int
    slot: int
    number: int
    arrays: list[HostArray]


def tcp_keys() -> dict[str, str]:
    """Fresh keys of a server and of those that may ask it, as plain data, for every incarnation of a server."""
    pairs = {"server": zmq.curve_keypair(), "client": zmq.curve_keypair()}
    return {
        f"{who}_{part}": key.decode()
        for who, pair in pairs.items()
        for part, key in zip(("public", "secret"), pair, strict=True)
    }


def private_folder(base: Path | None = None) -> Path:
    """A fresh folder for socket files that only this user may enter."""
    return Path(tempfile.mkdtemp(prefix="marl-", dir=base))


class _OwnFolder:
    """A private folder that goes with its process: at `close`, or, where the process was killed, when another server
    starts on the machine. Who lives holds a lock on a file in it."""

    PREFIX = "marl-link-"

    def __init__(self) -> None:
        self._remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=self.PREFIX))
        self._lock = os.open(self.path / "new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / "new", self.path / "lock")

    @classmethod
    def _remove_abandoned(cls) -> None:
        for folder in Path(tempfile.gettempdir()).glob(f"{cls.PREFIX}*"):
            with contextlib.suppress(OSError):  # somebody else's, in use, or just gone
                about = folder.lstat()
                if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                    continue  # a link may lead to a folder of ours that was never meant
                lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    cls._remove(folder)
                finally:
                    os.close(lock)

    @staticmethod
    def _remove(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._remove(self.path)
        os.close(self._lock)


class LinkServer:
    """Binds, and hands out what was asked for. For one thread, except `wake`.

    request, answer: layouts.  folder: for the `ipc://` socket file; a fresh one, removed at `close`, if None.  name: of
    that file.  tcp: address of the network interface to listen on as well, None for none.  port: 0 for a free one.
    epoch: number of this incarnation of the server, random if None.

    Raises: UserError if a folder is open to others, a path too long, or an address cannot be bound.
    """

    def __init__(
        self,
        request: Layout,
        answer: Layout,
        *,
        folder: Path | None = None,
        name: str = "policy",
        ipc: bool = True,
        tcp: str | None = None,
        port: int = 0,
        keys: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> None:
        self.request = request
        self.epoch = epoch or random_number()
        self.refused: Counter[str] = Counter()
        self.endpoints: dict[str, Endpoint] = {}
        self._buffer = FrameBuffer(answer)
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._wires: list[zmq.Socket[bytes]] = []
        self._zap: zmq.Socket[bytes] | None = None
        self._own_folder: _OwnFolder | None = None
        self._file: Path | None = None
        self._awake, self._waker = socket.socketpair()
        for end in (self._awake, self._waker):
            end.setblocking(False)
        self._poller.register(self._awake.fileno(), zmq.POLLIN)
        try:
            if ipc:
                self._bind_ipc(folder, name)
            if tcp is not None:
                self._bind_tcp(tcp, port, keys or tcp_keys())
        except BaseException:
            self.close()
            raise

    def _router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        limits(router, self.request.size)
        return router

    def _bind_ipc(self, folder: Path | None, name: str) -> None:
        if folder is None:
            self._own_folder = _OwnFolder()
            folder = self._own_folder.path
        else:
            about = folder.stat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
                raise UserError(f"{folder}: sockets must lie in a folder of yours with mode 0700")
        path = folder / name
        if len(os.fsencode(path)) > PATH_LIMIT:
            raise UserError(
                f"{path}: the path of a socket may have {PATH_LIMIT} bytes, this one has {len(os.fsencode(path))}; "
                "set TMPDIR to a shorter folder"
            )
        router = self._router()
        self._bind(router, f"ipc://{path}")
        self._file = path
        self.endpoints["ipc"] = Endpoint(f"ipc://{path}")

    def _bind_tcp(self, host: str, port: int, keys: Mapping[str, str]) -> None:
        if host in ("*", "0.0.0.0", "::"):
            raise UserError(f"tcp address {host}: expected the address of one interface, which clients can reach")
        self._allowed = z85.decode(keys["client_public"])
        # Who asks is checked here, in `receive`, and not in a thread: ZeroMQ asks this socket (its RFC 27).
        self._zap = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind("inproc://zeromq.zap.01")
        self._poller.register(self._zap, zmq.POLLIN)
        router = self._router()
        router.curve_server = True
        router.curve_publickey = keys["server_public"].encode()
        router.curve_secretkey = keys["server_secret"].encode()
        router.zap_domain = _ZAP_DOMAIN
        heartbeat(router)
        self._bind(router, f"tcp://{host}:{port or '*'}")
        address = router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(address, bytes)
        self.endpoints["tcp"] = Endpoint(
            address.rstrip(b"\0").decode(), keys["server_public"], keys["client_public"], keys["client_secret"]
        )

    def _bind(self, router: zmq.Socket[bytes], address: str) -> None:
        self._wires.append(router)
        try:
            router.bind(address)
        except zmq.ZMQError as error:
            raise UserError(f"cannot listen on {address}: {error}") from error
        self._poller.register(router, zmq.POLLIN)

    def receive(self, timeout_s: float) -> list[Incoming]:
        """All requests that are there; if there are none, waits for some, for `wake`, or until the time is up."""
        taken = self._take()
        if not taken and timeout_s > 0:
            ready = dict(self._poller.poll(milliseconds(timeout_s)))
            if self._zap in ready:
                self._admit()
            if self._awake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._awake.recv(1 << 16)
            taken = self._take()
        elif self._zap is not None and can_read(self._zap):
            self._admit()
        return taken

    def _take(self) -> list[Incoming]:
        taken = []
        for wire, router in enumerate(self._wires):
            for _ in range(TAKE_LIMIT):
                if not can_read(router):
                    break
                route, *parts = router.recv_multipart(zmq.NOBLOCK)
                incoming = self._read(wire, route, parts)
                if incoming is not None:
                    taken.append(incoming)
        return taken

    def _read(self, wire: int, route: bytes, parts: list[bytes]) -> Incoming | None:
        try:
            if len(parts) != 1:
                raise BadFrameError(None, f"a message of {len(parts)} parts")
            frame = parts[0]
            header = read_header(frame)
            if header.kind == Kind.HELLO:
                if header.schema != self.request.schema:
                    raise BadFrameError(Refusal.SCHEMA, "arrays of another layout", header)
                self._send(wire, route, small_frame(header._replace(kind=Kind.WELCOME, epoch=self.epoch)))
                return None
            if header.kind != Kind.REQUEST:
                raise BadFrameError(Refusal.KIND, f"a frame of kind {header.kind}", header)
            self.request.check(header)
            return Incoming(wire, route, header.client, header.slot, header.number, self.request.views(frame))
        except BadFrameError as bad:
            self.refused[bad.refusal.name.lower() if bad.refusal else "foreign"] += 1
            if bad.refusal is not None and bad.header is not None and bad.header.kind != Kind.REFUSED:
                self._refuse(wire, route, bad.header, bad.refusal, str(bad))
            return None

    def answer(self, request: Incoming, arrays: Sequence[HostArray]) -> None:
        """Send an answer. A client that is gone, or takes nothing, gets none. Raises: ShapeError for wrong arrays."""
        frame = self._buffer.fill(
            Header(Kind.ANSWER, 0, request.slot, 0, self.epoch, request.client, request.number, 0), arrays
        )
        self._send(request.wire, request.route, frame)

    def refuse(self, request: Incoming, refusal: Refusal, words: str) -> None:
        """Say why a request gets no answer."""
        self.refused[refusal.name.lower()] += 1
        header = Header(Kind.REQUEST, 0, request.slot, 0, 0, request.client, request.number, 0)
        self._refuse(request.wire, request.route, header, refusal, words)

    def _refuse(self, wire: int, route: bytes, header: Header, refusal: Refusal, words: str) -> None:
        answer = header._replace(kind=Kind.REFUSED, code=refusal, schema=self.request.schema, epoch=self.epoch)
        self._send(wire, route, small_frame(answer, words.encode()))

    def _send(self, wire: int, route: bytes, frame: bytes | bytearray) -> None:
        with contextlib.suppress(zmq.Again):  # who takes nothing asks again
            self._wires[wire].send_multipart((route, frame), zmq.NOBLOCK)

    def _admit(self) -> None:
        """Answer whether who wants to connect may."""
        assert self._zap is not None
        version, number, _, _, _, mechanism, *credentials = self._zap.recv_multipart()
        allowed = mechanism == b"CURVE" and credentials == [self._allowed]
        if not allowed:
            self.refused["key"] += 1
        code, words = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        self._zap.send_multipart((version, number, code, words, b"", b""))

    def wake(self) -> None:
        """End the waiting of `receive`. Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # it has not yet taken notice of earlier calls
            self._waker.send(b"\0")

    def close(self) -> None:
        """Close the sockets and remove their files."""
        self._context.destroy(linger=0)
        self._awake.close()
        self._waker.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None
        if self._own_folder is not None:
            self._own_folder.close()
            self._own_folder = None
