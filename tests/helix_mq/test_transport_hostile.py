"""ZeroMQ sockets under attack: garbage, half-open peers, floods, endless handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from helix_mq.transport import (
    AllowList,
    ClientSecurity,
    Delivery,
    KeyPair,
    Limits,
    LinkState,
    Listener,
    ServerSecurity,
    ZmqTransport,
    silent,
)
from helix_mq.transport.cutting import NO_MARK, mark_at, mark_of

DEADLINE_S = 240.0
T = TypeVar("T")
ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\0" + bytes(31)


class Inbox(Generic[T]):
    """A handler that keeps what it gets and can be waited on."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._changed = asyncio.Event()

    def __call__(self, item: T) -> None:
        self.items.append(item)
        self._changed.set()

    async def until(self, done: Callable[[list[T]], bool]) -> list[T]:
        async with asyncio.timeout(DEADLINE_S):
            while not done(self.items):
                self._changed.clear()
                await self._changed.wait()
        return self.items

    async def count(self, n: int) -> list[T]:
        return await self.until(lambda items: len(items) >= n)


@pytest.fixture
async def transport() -> AsyncIterator[ZmqTransport]:
    made = ZmqTransport()
    yield made
    await made.close()


def port_of(listener: Listener) -> int:
    return int(listener.endpoint.rpartition(":")[2])


async def attack(port: int, data: bytes) -> bytes:
    """Sends raw bytes to a ZeroMQ port; gives what it answered until it hung up, or got it all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
    answer = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("with_keys", [False, True], ids=["plain", "keys"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(10 * 1024 * 1024),
        b"\0" * 100_000,
        b"\xff" + bytes(8) + b"\x7f\x09\x09" + b"NOSUCHMECHANISM!!!!!" + bytes(32),
        ZMTP_GREETING[:20],
        ZMTP_GREETING + b"\x04\x26\x05READY" + b"\x0bSocket-Type\xff\xff\xff\xffDEALER",
        # A greeting, then a frame that claims 2^62 bytes.
        ZMTP_GREETING + b"\x02" + struct.pack(">Q", 2**62),
        b"",
    ],
    ids=["http", "random", "zeros", "mechanism", "cut-greeting", "bad-ready", "huge", "nothing"],
)
async def test_garbage_on_the_port_harms_nobody(
    transport: ZmqTransport, garbage: bytes, with_keys: bool
) -> None:
    up, down = Inbox[Delivery](), Inbox[Delivery]()
    server, known = KeyPair.new(), KeyPair.new()
    listener = await transport.listen(
        "tcp://127.0.0.1:0",
        up,
        security=ServerSecurity(server, AllowList({"k": known.public})) if with_keys else None,
        limits=Limits(max_message_bytes=1 << 20, handshake_s=5.0),
    )
    connection = await transport.connect(
        listener.endpoint,
        down,
        security=ClientSecurity(known, server.public) if with_keys else None,
    )
    connection.send([b"before"])
    await up.count(1)
    await asyncio.gather(*(attack(port_of(listener), garbage) for _ in range(3)))
    connection.send([b"after"])
    await up.count(2)
    assert listener.send(up.items[0].peer, [b"answer"])
    await down.count(1)
    assert [bytes(d.parts[0]) for d in up.items] == [b"before", b"after"]


async def test_connections_that_say_nothing_are_cut_off(transport: ZmqTransport) -> None:
    up = Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=Limits(handshake_s=0.2))
    silent = [await asyncio.open_connection("127.0.0.1", port_of(listener)) for _ in range(100)]
    connection = await transport.connect(listener.endpoint, Inbox[Delivery]())
    connection.send([b"x"])
    await up.count(1)
    async with asyncio.timeout(DEADLINE_S):
        for reader, writer in silent:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()


async def ends(reader: asyncio.StreamReader) -> None:
    """Returns when the other side has hung up."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


async def test_a_flood_of_silent_connections_locks_nobody_out(transport: ZmqTransport) -> None:
    """However long they may take: the oldest silent ones give way, who has spoken stays."""
    up = Inbox[Delivery]()
    limits = Limits(handshake_s=60.0, max_silent=20, max_connections=50)
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=limits)
    first = await transport.connect(listener.endpoint, Inbox[Delivery]())
    first.send([b"1"])
    await up.count(1)
    silent = []
    for _ in range(300):
        # The system may tell of the end before it tells that there is a connection.
        with contextlib.suppress(ConnectionError):
            silent.append(await asyncio.open_connection("127.0.0.1", port_of(listener)))
    ending = [asyncio.create_task(ends(reader)) for reader, _ in silent]
    async with asyncio.timeout(DEADLINE_S):
        # All but 20. Where they come faster than they are counted, not only the oldest are cut.
        for ended in itertools.islice(asyncio.as_completed(ending), len(silent) - 20):
            await ended
    late = await transport.connect(listener.endpoint, Inbox[Delivery]())
    late.send([b"2"])
    await up.count(2)
    first.send([b"3"])
    await up.count(3)
    assert up.items[2].peer == up.items[0].peer
    failed = listener.statistics().handshakes_failed
    assert failed["silent"] + failed.get("too_many", 0) >= 250
    for task in ending:
        task.cancel()
    for _, writer in silent:
        writer.close()
    async with asyncio.timeout(DEADLINE_S):
        while len(listener._fds) > 2:
            first.send([b"tick"])
            await up.count(len(up.items) + 1)
    assert not listener._silent


@pytest.mark.parametrize("with_keys", [False, True], ids=["plain", "keys"])
async def test_endless_handshakes_take_no_memory(transport: ZmqTransport, with_keys: bool) -> None:
    """ZeroMQ keeps a handshake command until it is whole, 256 MiB of it if it says so."""
    keys = ServerSecurity(KeyPair.new(), AllowList()) if with_keys else None
    listener = await transport.listen("tcp://127.0.0.1:0", Inbox[Delivery](), security=keys)
    greeting = ZMTP_GREETING
    if with_keys:
        greeting = greeting.replace(b"NULL" + bytes(16), b"CURVE" + bytes(15))
    piece = bytes(1 << 20)

    async def endless() -> int:
        """A command of 200 MiB, until it is cut."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listener))
        writer.write(greeting)
        await reader.readexactly(11)
        writer.write(b"\x06" + struct.pack(">Q", 200 << 20))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 200:
                # At the pace of a fast network: a memory copy is as fast as it gets.
                await asyncio.sleep(0.005)
                writer.write(piece)
                await writer.drain()
                sent += 1
        writer.transport.abort()
        return sent

    async with asyncio.timeout(DEADLINE_S):
        sent = await asyncio.gather(*(endless() for _ in range(4)))
    assert max(sent) < 200
    assert listener.statistics().handshakes_failed["talkative"] == 4
    assert not listener._silent._marks


async def test_a_flood_of_silent_connections_is_looked_at_in_turn(
    transport: ZmqTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that looking holds nothing up, and all the same nobody is left out."""
    looked: list[list[int]] = [[]]
    see, turn = silent.taken_bytes, silent.SilentConnections._turn
    all_seen = asyncio.Event()

    def seen(fd: int, mark: int) -> int:
        looked[-1].append(fd)
        if len({fd for fds in looked for fd in fds}) == 30:
            all_seen.set()
        return see(fd, mark)

    def turned(self: silent.SilentConnections) -> set[int]:
        looked.append([])
        return turn(self)

    monkeypatch.setattr(silent, "taken_bytes", seen)
    monkeypatch.setattr(silent.SilentConnections, "_turn", turned)
    monkeypatch.setattr(silent, "LOOKS_PER_TURN", 10)
    limits = Limits(handshake_s=60.0, max_silent=35)
    listener = await transport.listen("tcp://127.0.0.1:0", Inbox[Delivery](), limits=limits)
    made = [await asyncio.open_connection("127.0.0.1", port_of(listener)) for _ in range(30)]
    async with asyncio.timeout(DEADLINE_S):
        await all_seen.wait()
        # One of them turns out to send without end.
        talking = made[17][1]
        talking.write(ZMTP_GREETING + b"\x06" + struct.pack(">Q", 200 << 20) + bytes(2 << 20))
        with contextlib.suppress(OSError):
            await made[17][0].read(1000)
            await made[17][0].read()
    assert listener.statistics().handshakes_failed["talkative"] == 1
    assert len(listener._silent) == 29
    assert max(len(fds) for fds in looked) <= 11
    for _, writer in made:
        writer.close()


@pytest.mark.parametrize("endpoint", ["ipc://{}/s", "ipc://@helix-mq-{}", "tcp://0.0.0.0:*"])
async def test_a_connection_is_known_as_the_listeners(
    transport: ZmqTransport, tmp_path: Path, endpoint: str
) -> None:
    """A silent one too; one that speaks is then cut by that mark when its key is revoked."""
    up = Inbox[Delivery]()
    listener = await transport.listen(
        endpoint.format(tmp_path if "/s" in endpoint else os.getpid()), up, insecure=True
    )
    near = listener.endpoint.replace("0.0.0.0", "127.0.0.1")
    connection = await transport.connect(near, Inbox[Delivery]())
    connection.send([b"x"])
    (first,) = await up.count(1)
    peer = listener._peers[first.peer]
    assert peer.mark == mark_at(peer.fd, listener.endpoint) == mark_of(peer.fd) != NO_MARK
    assert mark_at(peer.fd, "ipc:///elsewhere") == mark_at(peer.fd, "tcp://0.0.0.0:1") == NO_MARK


async def test_a_number_that_is_somebody_elses_by_now_is_left_alone(
    transport: ZmqTransport,
) -> None:
    """That a connection was made is told late: it may be gone, and its number used anew."""
    limits = Limits(max_connections=1)
    listener = await transport.listen("tcp://127.0.0.1:0", Inbox[Delivery](), limits=limits)
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as other, ours, theirs:
        near = socket.create_connection(other.getsockname())
        far, _ = other.accept()
        with near, far:
            for late in (ours, far, near):
                listener._accepted(late.fileno())
            assert not len(listener._silent)
            ours.send(b"x")
            assert theirs.recv(10) == b"x"
            far.send(b"y")
            assert near.recv(10) == b"y"


async def test_connections_are_bounded_whoever_makes_them(transport: ZmqTransport) -> None:
    up, states = Inbox[Delivery](), Inbox[LinkState]()
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=Limits(max_connections=5))
    for number in range(5):
        connection = await transport.connect(listener.endpoint, Inbox[Delivery]())
        connection.send([b"x"])
        await up.count(number + 1)
    one_more = await transport.connect(listener.endpoint, Inbox[Delivery](), on_state=states)
    one_more.send([b"late"])
    await states.until(lambda seen: bool(seen) and not seen[-1].connected)
    await connection.close()
    await up.until(lambda got: bytes(got[-1].parts[0]) == b"late")
    assert len(up.items) == 6
