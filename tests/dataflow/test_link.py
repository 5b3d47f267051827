"""The inference link: what arrives is what was sent, what does not fit is refused, nothing is lost or left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from marl.core.errors import ShapeError, UserError
from marl.core.host_rows import Field
from marl.dataflow.link import Endpoint, LinkClient, Reply
from marl.dataflow.link_frames import (
    HEADER_SIZE,
    BadFrameError,
    FrameBuffer,
    Header,
    Kind,
    Layout,
    LinkError,
    Refusal,
    read_header,
    small_frame,
)
from marl.dataflow.link_server import LinkServer, private_folder, tcp_keys

ASK = Layout.of([Field(("obs",), "float32", (2, 3)), Field(("first",), "bool", (2,)), Field(("n",), "int64", ())])
TELL = Layout.of([Field(("action",), "int32", (2,))])
LIMIT_S = 20.0  # generous: other programs may have the machine


def question(number: int) -> list[Any]:
    return [np.full((2, 3), number, np.float32), np.array([True, False]), np.array(number, np.int64)]


@pytest.fixture
def made() -> Iterator[Callable[[Any], Any]]:
    """Closes what a test made, in reverse."""
    things: list[Any] = []

    def keep(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield keep
    for thing in reversed(things):
        thing.close()


def serve(server: LinkServer, client: LinkClient, wanted: int = 1) -> list[Reply]:
    """Let a server that doubles numbers and its client talk until that many replies are there."""
    replies: list[Reply] = []
    until = time.monotonic() + LIMIT_S
    while len(replies) < wanted and time.monotonic() < until:
        double(server)
        replies += client.poll(0.002)
    assert len(replies) == wanted
    return replies


def double(server: LinkServer, timeout_s: float = 0.002) -> int:
    asked = server.receive(timeout_s)
    for request in asked:
        server.answer(request, [np.full(2, 2 * int(request.arrays[2]), np.int32)])
    return len(asked)


def raw(server: LinkServer, wire: str = "ipc", **options: Any) -> tuple[Any, Any]:
    """A socket that can say anything."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    for name, value in {"linger": 0, **options}.items():
        setattr(dealer, name, value)
    dealer.connect(server.endpoints[wire].address)
    return context, dealer


def request_frame(layout: Layout = ASK, **changes: Any) -> bytes:
    frame = FrameBuffer(layout).fill(Header(Kind.REQUEST, 0, 0, 0, 0, 5, 1, 0), question(1)[: len(layout.fields)])
    return bytes(frame)


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_arrays_come_out_of_a_frame_as_they_went_in() -> None:
    frame = bytes(FrameBuffer(ASK).fill(Header(Kind.REQUEST, 0, 7, 0, 1, 2, 3, 0), question(9)))
    header = read_header(frame)
    assert (header.kind, header.slot, header.epoch, header.client, header.number) == (Kind.REQUEST, 7, 1, 2, 3)
    ASK.check(header)
    for got, sent in zip(ASK.views(frame), question(9), strict=True):
        np.testing.assert_array_equal(got, sent)
        assert got.dtype == sent.dtype
        assert not got.flags.writeable


def test_the_schema_depends_on_every_name_dtype_shape_and_the_order() -> None:
    one, two, three = ASK.fields
    others = [
        Layout.of([two, one, three]),
        Layout.of([one, two]),
        Layout.of([Field(("obs", "x"), "float32", (2, 3)), two, three]),
        Layout.of([Field(("obs",), "int32", (2, 3)), two, three]),
        Layout.of([Field(("obs",), "float32", (3, 2)), two, three]),
    ]
    assert len({ASK.schema, *(layout.schema for layout in others)}) == 6
    assert Layout.of(list(ASK.fields)).schema == ASK.schema


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros((1, 3), np.float32), np.zeros(6, np.float32)])
def test_arrays_of_another_form_are_not_sent(wrong: Any) -> None:
    with pytest.raises(ShapeError, match="obs: got"):
        FrameBuffer(ASK).fill(Header(Kind.REQUEST, 0, 0, 0, 0, 0, 0, 0), [wrong, *question(1)[1:]])


@pytest.mark.parametrize("cut", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 5])
def test_a_frame_that_was_cut_is_noticed(cut: int) -> None:
    with pytest.raises(BadFrameError):
        ASK.check(read_header(request_frame()[:cut]))


# ---- talking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_one_client_asks_for_several_slots_and_two_do_not_mix(made: Any, wire: str) -> None:
    server = made(LinkServer(ASK, TELL, tcp="127.0.0.1"))
    clients = [made(LinkClient(server.endpoints[wire].plain(), ASK, TELL)) for _ in range(2)]
    for number, client in enumerate(clients):
        for slot in (0, 3):
            client.send(slot, question(10 * number + slot))
        assert sorted(client.open) == [0, 3]
    for number, client in enumerate(clients):
        got = {reply.slot: int(reply.arrays[0][0]) for reply in serve(server, client, wanted=2)}
        assert got == {0: 20 * number, 3: 20 * number + 6}
        assert client.open == []
        assert client.epoch == server.epoch
        assert client.silent_s == 0.0
    assert not server.refused


def test_a_newer_request_of_a_slot_replaces_the_older_one(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    client = made(LinkClient(server.endpoints["ipc"], ASK, TELL))
    client.send(0, question(1))
    client.send(0, question(2))
    assert [int(reply.arrays[0][0]) for reply in serve(server, client)] == [4]
    client.send(1, question(3))
    client.forget(1)
    assert client.open == []


def test_an_unanswered_request_is_sent_again_and_its_second_answer_ignored(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    client = made(LinkClient(server.endpoints["ipc"], ASK, TELL, resend_s=0.02, probe_s=60.0))
    client.send(0, question(4))
    asked: list[Any] = []
    until = time.monotonic() + LIMIT_S
    while len(asked) < 2 and time.monotonic() < until:
        assert client.poll(0.005) == []
        asked += server.receive(0.0)
    assert {(request.client, request.slot, request.number) for request in asked} == {(client.client, 0, 1)}
    assert client.resent >= 1
    for request in asked:
        server.answer(request, [np.array([8, 8], np.int32)])
    assert len(serve(server, client)) == 1
    client.send(0, question(5))
    assert [int(reply.arrays[0][0]) for reply in serve(server, client)] == [10]
    assert client.ignored >= 1


@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_what_was_open_when_a_server_died_is_answered_by_the_one_in_its_place(made: Any, wire: str) -> None:
    folder, keys = private_folder(), tcp_keys()
    first = LinkServer(ASK, TELL, folder=folder, epoch=7, tcp="127.0.0.1", keys=keys)
    port = int(first.endpoints["tcp"].address.rsplit(":", 1)[1])
    client = made(LinkClient(first.endpoints[wire], ASK, TELL, resend_s=3600.0, probe_s=0.02))
    client.send(1, question(1))
    assert len(serve(first, client)) == 1
    assert client.epoch == 7
    for slot in (1, 2):
        client.send(slot, question(slot))
    until = time.monotonic() + LIMIT_S
    taken = 0
    while taken < 2 and time.monotonic() < until:
        client.poll(0.0)
        taken += len(first.receive(0.01))
    assert taken == 2
    first.close()  # two requests go with it
    second = made(LinkServer(ASK, TELL, folder=folder, epoch=8, tcp="127.0.0.1", port=port, keys=keys))
    got = {reply.slot: int(reply.arrays[0][0]) for reply in serve(second, client, wanted=2)}
    assert got == {1: 2, 2: 4}
    assert client.epoch == 8
    second.close()
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_a_client_moves_to_a_server_elsewhere_with_what_is_open(made: Any) -> None:
    first, second = made(LinkServer(ASK, TELL)), made(LinkServer(ASK, TELL, ipc=False, tcp="127.0.0.1"))
    client = made(LinkClient(first.endpoints["ipc"], ASK, TELL))
    client.send(0, question(6))
    client.poll(0.01)
    client.connect(second.endpoints["tcp"])
    assert [int(reply.arrays[0][0]) for reply in serve(second, client)] == [12]


def test_a_refused_request_is_closed_and_says_why(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    client = made(LinkClient(server.endpoints["ipc"], ASK, TELL))
    client.send(2, question(1))
    until = time.monotonic() + LIMIT_S
    replies: list[Reply] = []
    while not replies and time.monotonic() < until:
        for request in server.receive(0.01):
            server.refuse(request, Refusal.UNKNOWN_VERSION, "version 3 is gone")
        replies = client.poll(0.01)
    assert replies == [Reply(2, None, "version 3 is gone")]
    assert client.open == []


def test_waiting_ends_when_another_thread_says_so(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    waker = threading.Thread(target=server.wake)
    waker.start()
    started = time.monotonic()
    assert server.receive(LIMIT_S) == []
    assert time.monotonic() - started < LIMIT_S / 2
    waker.join()


# ---- what does not fit -----------------------------------------------------------------------------------------------


def bad(name: str) -> bytes:
    good = bytearray(request_frame())
    if name == "foreign":
        good[:4] = b"\x80\x04\x95\x10"  # how a pickle begins
    elif name == "protocol":
        good[4] += 1
    elif name == "schema":
        good[8] ^= 1
    elif name == "kind":
        good[6] = 9
    elif name == "size":
        good += b"\0" * 16
    elif name == "empty":
        return b""
    return bytes(good)


def test_frames_of_another_size_magic_protocol_or_schema_are_refused(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    context, dealer = raw(server)
    names = ["protocol", "schema", "kind", "size"]
    for name in ["foreign", "empty", *names, "good"]:
        dealer.send(bad(name))
    dealer.send_multipart([request_frame(), b"more"])
    taken: list[Any] = []
    until = time.monotonic() + LIMIT_S
    while (len(taken) < 1 or sum(server.refused.values()) < 7) and time.monotonic() < until:
        taken += server.receive(0.01)
    assert len(taken) == 1
    assert server.refused == {"foreign": 3, "protocol": 1, "schema": 1, "kind": 1, "size": 1}
    answers = []
    for _ in names:
        assert dealer.poll(LIMIT_S * 1000)
        answers.append(read_header(dealer.recv()))
    assert [header.code for header in answers] == [
        Refusal.PROTOCOL,
        Refusal.SCHEMA,
        Refusal.KIND,
        Refusal.SIZE,
    ]
    assert all(header.kind == Kind.REFUSED and header.size <= 512 for header in answers)
    assert not dealer.poll(0)  # whoever does not speak this language is told nothing
    context.destroy(linger=0)


def test_a_huge_message_is_not_even_read(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    context, dealer = raw(server)
    dealer.send(b"x" * (1 << 20))
    client = made(LinkClient(server.endpoints["ipc"], ASK, TELL))
    client.send(0, question(1))
    assert len(serve(server, client)) == 1
    assert not server.refused
    context.destroy(linger=0)


def test_a_client_of_another_layout_is_told_so(made: Any) -> None:
    server = made(LinkServer(ASK, TELL))
    client = made(LinkClient(server.endpoints["ipc"], TELL, TELL))
    client.send(0, [np.zeros(2, np.int32)])
    with pytest.raises(LinkError, match="do not fit together"):
        serve(server, client)
    other = made(LinkClient(server.endpoints["ipc"], ASK, ASK))
    other.send(0, question(1))
    with pytest.raises(LinkError, match="do not fit together"):
        serve(server, other)


# ---- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "wrong client key", "wrong server key"])
def test_a_client_without_the_keys_gets_nothing_over_tcp(made: Any, kind: str) -> None:
    server = made(LinkServer(ASK, TELL, tcp="127.0.0.1"))
    right = server.endpoints["tcp"]
    assert right.address.startswith("tcp://127.0.0.1:")
    assert right.secret_key not in repr(right)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    wrong = {
        "plain": Endpoint(right.address),
        "wrong client key": Endpoint(right.address, right.server_key, public, secret),
        "wrong server key": Endpoint(right.address, public, right.public_key, right.secret_key),
    }[kind]
    stranger = made(LinkClient(wrong, ASK, TELL, resend_s=0.05, probe_s=0.02))
    stranger.send(0, question(1))
    context, dealer = raw(server, "tcp")
    dealer.send(request_frame())
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        assert double(server) == 0
        assert stranger.poll(0.002) == []
    assert not dealer.poll(0)
    assert stranger.epoch == 0
    assert stranger.silent_s > 0.2
    assert (server.refused["key"] > 0) == (kind == "wrong client key")
    client = made(LinkClient(right, ASK, TELL))  # the server still answers who may ask
    client.send(0, question(1))
    assert len(serve(server, client)) == 1
    context.destroy(linger=0)


def test_socket_files_lie_in_a_folder_of_ones_own_and_go_at_close() -> None:
    server = LinkServer(ASK, TELL)
    file = Path(server.endpoints["ipc"].address.removeprefix("ipc://"))
    assert stat.S_ISSOCK(file.stat().st_mode)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(os.fsencode(file)) <= 100
    server.close()
    assert not file.parent.exists()


def test_the_folder_of_a_server_that_was_killed_goes_when_the_next_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    base = private_folder()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    code = (
        "import os, tempfile; from marl.dataflow.link_server import LinkServer, Layout\n"
        f"tempfile.tempdir = {str(base)!r}\n"
        "server = LinkServer(Layout.of([]), Layout.of([])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = base.iterdir()
    assert sorted(file.name for file in left.iterdir()) == ["lock", "policy"]
    first, second = LinkServer(ASK, TELL), LinkServer(ASK, TELL)
    assert not left.exists()
    assert len(list(base.iterdir())) == 2  # that of a server that lives stays
    first.close()
    second.close()
    base.rmdir()


def test_a_link_in_the_temporary_folder_costs_nobody_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, base = tmp_path / "precious", private_folder()
    precious.mkdir()
    (precious / "lock").touch()
    (base / "marl-link-0").symlink_to(precious)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    LinkServer(ASK, TELL).close()
    assert (precious / "lock").exists()
    (base / "marl-link-0").unlink()
    base.rmdir()


def test_a_folder_that_others_may_enter_and_a_long_path_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(UserError, match="mode 0700"):
        LinkServer(ASK, TELL, folder=tmp_path)
    deep = tmp_path / ("x" * 100)
    deep.mkdir(mode=0o700)
    with pytest.raises(UserError, match="may have 100 bytes"):
        LinkServer(ASK, TELL, folder=deep)
    with pytest.raises(UserError, match="one interface"):
        LinkServer(ASK, TELL, ipc=False, tcp="0.0.0.0")
    with pytest.raises(UserError, match="cannot listen"):
        LinkServer(ASK, TELL, ipc=False, tcp="192.0.2.1")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads and descriptors in /proc")
def test_nothing_is_left_behind() -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    server = LinkServer(ASK, TELL, tcp="127.0.0.1")
    client = LinkClient(server.endpoints["tcp"], ASK, TELL)
    client.send(0, question(1))
    serve(server, client)
    client.send(0, question(2))
    client.close()
    server.close()
    after = threading.active_count(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    assert after == before


def test_the_link_imports_no_jax_and_no_ray() -> None:
    code = "import sys, marl.dataflow.link_server; assert not {'jax', 'ray', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_long_text_of_an_error_is_cut() -> None:
    frame = small_frame(Header(Kind.REFUSED, 1, 0, 0, 0, 0, 0, 0), b"x" * 10_000)
    assert read_header(frame).size == 512
