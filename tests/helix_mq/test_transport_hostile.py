"""ZeroMQ sockets under attack and at their limits: garbage, half-open peers, dead links, leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Generic, TypeVar

import pytest
import uvloop

from helix_mq.transport import (
    AllowList,
    ClientSecurity,
    Delivery,
    KeyPair,
    Limits,
    LinkPhase,
    LinkState,
    Listener,
    ServerSecurity,
    ZmqTransport,
)

DEADLINE_S = 20.0
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
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(ends(reader) for reader, _ in silent[:-20]))
    late = await transport.connect(listener.endpoint, Inbox[Delivery]())
    late.send([b"2"])
    await up.count(2)
    first.send([b"3"])
    await up.count(3)
    assert up.items[2].peer == up.items[0].peer
    assert listener.statistics().handshakes_failed["silent"] >= 250
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


async def test_a_first_message_may_be_large_and_take_its_time(transport: ZmqTransport) -> None:
    """It is read as soon as it is whole, and a peer on a slow link is no attacker."""
    up = Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up)
    async with Wire(port_of(listener)) as wire:
        connection = await transport.connect(f"tcp://127.0.0.1:{wire.port}", Inbox[Delivery]())
        connection.send([b"hello"])
        await up.count(1)
        connection.send([bytes(8 << 20)])
        await up.count(2)
    assert "talkative" not in listener.statistics().handshakes_failed


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


class Wire:
    """A TCP proxy that can stop carrying anything without closing: a pulled cable."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrying = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._carrying.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._carrying.clear()

    def mend(self) -> None:
        self._carrying.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._carry(source, sink)))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._carrying.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


async def test_a_dead_link_is_noticed_on_both_sides(transport: ZmqTransport) -> None:
    limits = Limits(heartbeat_s=0.1, dead_after_s=0.3, handshake_s=0.5)
    up, gone, states = Inbox[Delivery](), Inbox[bytes](), Inbox[LinkState]()
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=limits, on_disconnect=gone)
    async with Wire(port_of(listener)) as wire:
        connection = await transport.connect(
            f"tcp://127.0.0.1:{wire.port}", Inbox[Delivery](), limits=limits, on_state=states
        )
        connection.send([b"x"])
        (first,) = await up.count(1)
        wire.cut()
        await states.until(lambda seen: seen[-1].phase is LinkPhase.DISCONNECTED)
        assert await gone.count(1) == [first.peer]
        assert not listener.send(first.peer, [b"x"])
        wire.mend()
        connection.send([b"back"])
        await up.until(lambda got: bytes(got[-1].parts[0]) == b"back")
        assert up.items[-1].peer != first.peer


async def test_what_waits_when_a_link_breaks_is_dropped_and_counted(
    transport: ZmqTransport,
) -> None:
    limits = Limits(
        heartbeat_s=0.2, dead_after_s=0.6, send_queue_messages=2, receive_queue_messages=2
    )
    states, up = Inbox[LinkState](), Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=limits)
    async with Wire(port_of(listener)) as wire:
        connection = await transport.connect(
            f"tcp://127.0.0.1:{wire.port}", Inbox[Delivery](), limits=limits, on_state=states
        )
        connection.send([b"x"])
        await up.count(1)
        wire.cut()
        for _ in range(50):
            assert connection.send([b"x" * 4_000_000])
        waiting = connection.statistics().backlog_messages
        assert waiting > 0
        await states.until(lambda seen: seen[-1].phase is LinkPhase.DISCONNECTED)
        statistics = connection.statistics()
        assert 0 < statistics.dropped["disconnected"] <= waiting
        assert statistics.backlog_messages == 0


@contextlib.asynccontextmanager
async def deaf_peer(port: int) -> AsyncIterator[None]:
    """A DEALER that says `hi` and then reads nothing any more."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", port))
    await loop.sock_sendall(raw, ZMTP_GREETING)
    got = 0
    while got < len(ZMTP_GREETING):
        got += len(await loop.sock_recv(raw, len(ZMTP_GREETING) - got))
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
    await loop.sock_sendall(raw, b"\x04" + bytes([len(ready)]) + ready)
    await loop.sock_recv(raw, 1000)
    await loop.sock_sendall(raw, b"\x00\x02hi")
    yield
    raw.close()


async def test_a_peer_that_does_not_read_fills_a_bounded_queue(transport: ZmqTransport) -> None:
    limits = Limits(send_queue_messages=10, receive_queue_messages=10, backlog_bytes=4_000_000)
    up = Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up, limits=limits)
    async with deaf_peer(port_of(listener)):
        (hello,) = await up.count(1)
        accepted = 0
        # Until ten messages wait in ZeroMQ and the system's socket buffers are full.
        while listener.send(hello.peer, [b"x" * 60_000]):
            accepted += 1
            assert accepted < 1000
            await asyncio.sleep(0)
        assert accepted >= 10
    async with deaf_peer(port_of(listener)):
        await up.count(2)
        while listener.send(up.items[1].peer, [bytes(1_000_000)]):
            accepted += 1
            assert accepted < 1000
            await asyncio.sleep(0)
        assert 0 < listener.statistics().backlog_bytes <= 4_000_000


async def test_large_parts_are_sent_without_a_copy_and_small_ones_with(
    transport: ZmqTransport,
) -> None:
    up = Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up)
    connection = await transport.connect(listener.endpoint, Inbox[Delivery]())
    connection.send([b"x"])
    await up.count(1)
    small, large = bytearray(1000), bytearray(64 * 1024 * 1024)
    assert connection.send([small])
    small.extend(b"a copy was taken")
    assert connection.send([large])
    with pytest.raises(BufferError):
        # ZeroMQ still reads from this very memory.
        large.extend(b"no copy was taken")
    assert connection.statistics().backlog_bytes == len(large)
    got = await up.count(3)
    assert got[2].parts[0].nbytes == len(large)
    # What arrives is a view of ZeroMQ's own frame.
    assert type(got[2].parts[0].obj).__module__.startswith("zmq")
    assert type(got[1].parts[0].obj).__module__.startswith("zmq")


async def test_large_messages_in_flight_are_bounded_and_all_arrive(
    transport: ZmqTransport,
) -> None:
    up = Inbox[Delivery]()
    limits = Limits(backlog_bytes=8_000_000, send_queue_messages=4)
    listener = await transport.listen("tcp://127.0.0.1:0", up)
    connection = await transport.connect(listener.endpoint, Inbox[Delivery](), limits=limits)
    connection.send([b"x"])
    await up.count(1)
    accepted = 0
    async with asyncio.timeout(DEADLINE_S):
        while accepted < 100:
            if connection.send([b"%d" % accepted, bytes(1_000_000)]):
                accepted += 1
            else:
                assert connection.statistics().backlog_bytes <= 16_000_000
                await up.count(len(up.items) + 1)
    got = await up.count(101)
    assert [int(bytes(d.parts[0])) for d in got[1:]] == list(range(100))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_nothing_is_left_after_closing(tmp_path: Path) -> None:
    async def live(endpoint: str, security: bool) -> None:
        transport = ZmqTransport()
        server, known = KeyPair.new(), KeyPair.new()
        up, down = Inbox[Delivery](), Inbox[Delivery]()
        listener = await transport.listen(
            endpoint,
            up,
            security=ServerSecurity(server, AllowList({"k": known.public})) if security else None,
        )
        for _ in range(5):
            connection = await transport.connect(
                listener.endpoint,
                down,
                security=ClientSecurity(known, server.public) if security else None,
            )
            connection.send([b"x" * 1000])
        await up.count(5)
        for delivery in up.items:
            assert listener.send(delivery.peer, [b"x" * 300_000])
        await down.count(5)
        await transport.close()

    # The first round pays for pyzmq's collector thread and the loop's thread pool.
    await live("tcp://127.0.0.1:0", True)
    files, threads, tasks = open_files(), threading.active_count(), len(asyncio.all_tasks())
    for _ in range(3):
        await live("tcp://127.0.0.1:0", True)
        await live(f"ipc://{tmp_path}/socket", False)
    assert open_files() <= files
    assert len(asyncio.all_tasks()) == tasks
    assert threading.active_count() <= threads + 3  # to_thread's pool may have grown


async def test_closed_channels_are_forgotten(transport: ZmqTransport) -> None:
    listener = await transport.listen("tcp://127.0.0.1:0", Inbox[Delivery]())
    for _ in range(20):
        connection = await transport.connect(listener.endpoint, Inbox[Delivery]())
        await connection.close()
    assert len(transport._channels) <= 2


async def test_an_ipc_address_somebody_listens_on_is_not_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(stale))
    left.close()
    transport = ZmqTransport()
    try:
        up = Inbox[Delivery]()
        listener = await transport.listen(f"ipc://{stale}", up)
        connection = await transport.connect(listener.endpoint, Inbox[Delivery]())
        connection.send([b"x"])
        await up.count(1)
    finally:
        await transport.close()


def test_works_under_uvloop() -> None:
    async def main() -> list[int]:
        transport = ZmqTransport()
        echoed = Inbox[Delivery]()

        def echo(delivery: Delivery) -> None:
            listener.send(delivery.peer, delivery.parts)

        limits = Limits(send_queue_messages=5000)
        listener = await transport.listen("tcp://127.0.0.1:0", echo, limits=limits)
        connection = await transport.connect(listener.endpoint, echoed)
        for i in range(5000):
            assert connection.send([b"%d" % i])
        await echoed.count(5000)
        await transport.close()
        return [int(bytes(d.parts[0])) for d in echoed.items]

    assert uvloop.run(main()) == list(range(5000))
