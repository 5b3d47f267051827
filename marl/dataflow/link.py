"""The inference link, seen from an actor: requests to a policy server and its answers, over ZeroMQ (`link_server`).

`ipc://` joins processes of one machine: its socket file lies in a folder that only its owner may enter. `tcp://` joins
machines and always uses CURVE: the server lets in one key pair, which whoever starts the processes hands to its
clients. Neither side trusts the other's frames (`link_frames`): what does not fit is counted and refused.

A request stays open until its answer is there. It is sent again when it was not answered for a while, or when the
server turns out to be another incarnation than the one it was sent to; answers depend on nothing but the request, so
one that comes twice does no harm. Importing this imports no JAX.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import zmq

from marl.dataflow.link_frames import (
    HEADER_SIZE,
    BadFrameError,
    FrameBuffer,
    Header,
    HostArray,
    Kind,
    Layout,
    LinkError,
    Refusal,
    read_header,
    small_frame,
)

RESEND_S = 5.0
PROBE_S = 0.5  # between questions to a server that does not answer whether it lives
HIGH_WATER = 1024  # messages that may wait in a socket
_READABLE = int(zmq.POLLIN)  # ZeroMQ's own names are enums, slow to calculate with
TAKE_LIMIT = 1024  # messages taken in a row before anything else is looked at


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """All that a client needs to reach a server. The keys, Z85 text, are empty for `ipc://`."""

    address: str
    server_key: str = ""
    public_key: str = ""
    secret_key: str = dataclasses.field(default="", repr=False)

    def plain(self) -> dict[str, str]:
        """As plain data, secret key included; `Endpoint(**plain)` is the inverse."""
        return dataclasses.asdict(self)


class Reply(NamedTuple):
    """What became of a request. `arrays`: None where it was refused, and `words` say why."""

    slot: int
    arrays: list[HostArray] | None
    words: str = ""


@dataclasses.dataclass
class _Open:
    """A request without an answer. sent_s: when, None if not yet.  epoch: the incarnation it went to, 0 if not known.
    hellos: how many hellos had been sent before it."""

    slot: int
    number: int
    frame: bytearray
    asked_s: float
    sent_s: float | None = None
    epoch: int = 0
    hellos: int = 0


class LinkClient:
    """Asks one server for all slots of an actor. For one thread."""

    def __init__(
        self,
        endpoint: Endpoint | Mapping[str, str],
        request: Layout,
        answer: Layout,
        *,
        resend_s: float = RESEND_S,
        probe_s: float = PROBE_S,
    ) -> None:
        self.request, self.answer = request, answer
        self.resend_s, self.probe_s = resend_s, probe_s
        self.client = random_number()
        self.epoch = 0  # of the server, 0 until it is known
        self.resent = 0
        self.ignored = 0  # frames that fit nothing that is open
        self._open: dict[int, _Open] = {}
        self._buffers: dict[int, FrameBuffer] = {}
        self._number = 0
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self.connect(endpoint)

    def connect(self, endpoint: Endpoint | Mapping[str, str]) -> None:
        """Talk to this server from now on; what is open is sent to it."""
        endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(**endpoint)
        if self._socket is not None:
            self._socket.close(linger=0)
        self.endpoint, self.epoch = endpoint, 0
        self._hellos, self._probed_s, self._heard_s = 0, 0.0, time.monotonic()
        dealer = self._context.socket(zmq.DEALER)
        limits(dealer, self.answer.size)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a connection that may never come, or comes to another
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if endpoint.server_key:
            dealer.curve_serverkey = endpoint.server_key.encode()
            dealer.curve_publickey = endpoint.public_key.encode()
            dealer.curve_secretkey = endpoint.secret_key.encode()
            heartbeat(dealer)
        dealer.connect(endpoint.address)
        self._socket = dealer
        for asked in self._open.values():
            asked.sent_s = None

    # ---- asking ------------------------------------------------------------------------------------------------------

    def send(self, slot: int, arrays: Sequence[HostArray]) -> None:
        """Ask for a slot, whose earlier request is then forgotten. Copies the arrays. Raises: ShapeError."""
        buffer = self._buffers.get(slot)
        if buffer is None:
            buffer = self._buffers[slot] = FrameBuffer(self.request)
        self._number += 1
        frame = buffer.fill(Header(Kind.REQUEST, 0, slot, 0, 0, self.client, self._number, 0), arrays)
        now = time.monotonic()
        if not self._open:
            self._heard_s = now  # it had nothing to say before
        self._open[slot] = asked = _Open(slot, self._number, frame, now)
        self._transmit(asked, now)

    def forget(self, slot: int) -> None:
        """Nobody waits for the answer of this slot any more."""
        self._open.pop(slot, None)

    def sent(self, slot: int) -> list[HostArray]:
        """What was last asked for a slot."""
        return self.request.views(bytes(self._buffers[slot].frame))

    @property
    def open(self) -> list[int]:
        """The slots that wait for an answer."""
        return list(self._open)

    @property
    def silent_s(self) -> float:
        """For how long nothing has come from the server although something is open."""
        return time.monotonic() - self._heard_s if self._open else 0.0

    def _transmit(self, asked: _Open, now: float) -> None:
        if not self._hellos:
            self._hello(now)
        if self._put(asked.frame):
            asked.sent_s, asked.epoch, asked.hellos = now, self.epoch, self._hellos

    def _hello(self, now: float) -> None:
        self._probed_s = now
        if self._put(small_frame(Header(Kind.HELLO, 0, 0, self.request.schema, 0, self.client, self._hellos + 1, 0))):
            self._hellos += 1

    def _put(self, frame: bytes | bytearray) -> bool:
        assert self._socket is not None
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:  # no connection, or it takes nothing more
            return False
        return True

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float = 0.0, descriptors: Sequence[int] = ()) -> list[Reply]:
        """The replies that are there, or that come first within this time. descriptors: files of the caller; there is
        no more waiting when one of them can be read.

        Raises: LinkError if the server expects other frames than this client sends.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            replies = self._receive()
            now = time.monotonic()
            next_s = self._tend(now)
            if replies or now >= deadline:
                return replies
            unsent = any(asked.sent_s is None for asked in self._open.values())
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if unsent else 0))
            for descriptor in descriptors:
                poller.register(descriptor, zmq.POLLIN)
            ready = poller.poll(milliseconds(min(deadline, next_s) - now))
            if any(which is not self._socket for which, _ in ready):
                deadline = now

    def _tend(self, now: float) -> float:
        """Send what is due. Returns when there will be something to send again."""
        if not self._open:
            return float("inf")
        next_s = max(self._probed_s, min(asked.asked_s for asked in self._open.values())) + self.probe_s
        if now >= next_s:
            self._hello(now)
            next_s = now + self.probe_s
        for asked in self._open.values():
            if asked.sent_s is None:
                self._transmit(asked, now)
            elif now >= asked.sent_s + self.resend_s:
                self._again(asked, now)
            if asked.sent_s is not None:
                next_s = min(next_s, asked.sent_s + self.resend_s)
        return next_s

    def _again(self, asked: _Open, now: float) -> None:
        self.resent += 1
        asked.sent_s = None
        self._transmit(asked, now)

    def _receive(self) -> list[Reply]:
        assert self._socket is not None
        replies = []
        for _ in range(TAKE_LIMIT):
            if not can_read(self._socket):
                break
            reply = self._read(self._socket.recv_multipart(zmq.NOBLOCK))
            if reply is not None:
                replies.append(reply)
        return replies

    def _read(self, parts: list[bytes]) -> Reply | None:
        try:
            if len(parts) != 1:
                raise BadFrameError(None, f"a message of {len(parts)} parts")
            header = read_header(parts[0])
            if header.kind not in (Kind.ANSWER, Kind.REFUSED, Kind.WELCOME) or header.client != self.client:
                raise BadFrameError(Refusal.KIND, f"a frame of kind {header.kind}", header)
            if header.kind == Kind.ANSWER:
                self.answer.check(header)
        except BadFrameError as bad:
            if bad.refusal in (Refusal.PROTOCOL, Refusal.SCHEMA):
                raise LinkError(self._unfit(str(bad))) from bad
            self.ignored += 1
            return None
        self._heard(header)
        if header.kind == Kind.WELCOME:
            return None
        words = parts[0][HEADER_SIZE:].decode(errors="replace") if header.kind == Kind.REFUSED else ""
        if header.kind == Kind.REFUSED and header.code != Refusal.UNKNOWN_VERSION:
            raise LinkError(self._unfit(words))
        asked = self._open.get(header.slot)
        if asked is None or asked.number != header.number:  # answered before, or nobody waits for it
            self.ignored += 1
            return None
        del self._open[header.slot]
        return Reply(header.slot, None if words else self.answer.views(parts[0]), words)

    def _unfit(self, words: str) -> str:
        return (
            f"the policy server at {self.endpoint.address} and this actor do not fit together: {words}; both must be "
            "started by one run, of one version of this program"
        )

    def _heard(self, header: Header) -> None:
        """Notice which incarnation of the server lives, and send it what went to another."""
        now = time.monotonic()
        self._heard_s = now
        if header.epoch == self.epoch and header.kind != Kind.WELCOME:
            return
        self.epoch = header.epoch
        for asked in self._open.values():
            if asked.sent_s is None or asked.epoch == self.epoch:
                continue
            if not asked.epoch and not (header.kind == Kind.WELCOME and header.number > asked.hellos):
                asked.epoch = self.epoch if header.kind == Kind.WELCOME else 0
                continue
            self._again(asked, now)

    def close(self) -> None:
        """Close the socket; what is open is given up."""
        self._open.clear()
        self._context.destroy(linger=0)


def limits(wire: zmq.Socket[Any], payload: int) -> None:
    wire.setsockopt(zmq.LINGER, 0)
    wire.setsockopt(zmq.SNDHWM, HIGH_WATER)
    wire.setsockopt(zmq.RCVHWM, HIGH_WATER)
    # Larger ones are not even read: ZeroMQ closes the connection. There is room to be told about a wrong layout.
    wire.setsockopt(zmq.MAXMSGSIZE, 2 * (HEADER_SIZE + payload) + (1 << 16))


def heartbeat(wire: zmq.Socket[Any]) -> None:
    """A machine that vanished without a word is noticed."""
    wire.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    wire.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)


def can_read(wire: zmq.Socket[Any]) -> bool:
    """Whether a message is there. An exception for every time that none is would cost more than the message."""
    return bool(int(wire.getsockopt(zmq.EVENTS)) & _READABLE)


def milliseconds(seconds: float) -> int:
    return max(1, int(min(seconds, 3600.0) * 1000 + 0.999))


def random_number() -> int:
    return int.from_bytes(os.urandom(8), "little") | 1
