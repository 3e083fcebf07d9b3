"""ZeroMQ sockets at their limits: dead links, peers that do not read, what closing leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

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
    ServerSecurity,
    ZmqTransport,
)
from tests.helix_mq.test_transport_hostile import DEADLINE_S, ZMTP_GREETING, Inbox, port_of


@pytest.fixture
async def transport() -> AsyncIterator[ZmqTransport]:
    made = ZmqTransport()
    yield made
    await made.close()


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


async def test_who_has_said_something_small_may_send_large_messages(
    transport: ZmqTransport,
) -> None:
    """Only who has not said anything yet is suspected of sending too much."""
    up = Inbox[Delivery]()
    listener = await transport.listen("tcp://127.0.0.1:0", up)
    async with Wire(port_of(listener)) as wire:
        connection = await transport.connect(f"tcp://127.0.0.1:{wire.port}", Inbox[Delivery]())
        connection.send([b"hello"])
        await up.count(1)
        connection.send([bytes(8 << 20)])
        await up.count(2)
    assert "talkative" not in listener.statistics().handshakes_failed


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
