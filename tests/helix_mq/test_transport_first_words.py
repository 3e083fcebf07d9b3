"""A bound socket and those who have not said anything yet: first messages may be large and slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from helix_mq.transport import (
    AllowList,
    ClientSecurity,
    Delivery,
    KeyPair,
    Limits,
    LinkState,
    ServerSecurity,
    ZmqTransport,
    silent,
)
from helix_mq.transport.cutting import mark_of
from tests.tcp_gate import TcpGate

DEADLINE_S = 240.0
HELD_BYTES = 3 * silent.MAX_BYTES
MESSAGE_BYTES = 2 * HELD_BYTES


class Until:
    """An event that comes when a condition does, looked at whenever something happened."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def happened(self, *_: object) -> None:
        self._changed.set()

    async def true(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.next()

    async def next(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            self._changed.clear()
            await self._changed.wait()


class HoldingGate(TcpGate):
    """The first bytes pass, and the rest when it is told so."""

    def __init__(self, port: int) -> None:
        super().__init__(port, is_open=True)
        self.holds = asyncio.Event()
        self.go_on = asyncio.Event()

    async def before_a_piece(self) -> None:
        if self.passed_bytes >= HELD_BYTES:
            self.holds.set()
            await self.go_on.wait()


@pytest.fixture
async def transport() -> AsyncIterator[ZmqTransport]:
    made = ZmqTransport()
    yield made
    await made.close()


@pytest.mark.parametrize("with_keys", [False, True], ids=["plain", "keys"])
async def test_a_first_message_may_be_large_and_slow(
    transport: ZmqTransport, with_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut it was when more than 1 MiB of it had been there for a tenth of a second."""
    looks, look = [0], silent.SilentConnections._look
    looked, came, told = Until(), Until(), Until()

    def counted(self: silent.SilentConnections) -> None:
        look(self)
        looks[0] += 1
        looked.happened()

    monkeypatch.setattr(silent.SilentConnections, "_look", counted)
    server, known = KeyPair.new(), KeyPair.new()
    got: list[Delivery] = []
    states: list[LinkState] = []

    def deliver(delivery: Delivery) -> None:
        got.append(delivery)
        came.happened()

    def tell(state: LinkState) -> None:
        states.append(state)
        told.happened()

    listener = await transport.listen(
        "tcp://127.0.0.1:0",
        deliver,
        limits=Limits(handshake_s=600.0, heartbeat_s=600.0, dead_after_s=600.0),
        security=ServerSecurity(server, AllowList({"k": known.public})) if with_keys else None,
    )
    port = int(listener.endpoint.rpartition(":")[2])
    # Looks go on for as long as anybody is silent.
    _, stranger = await asyncio.open_connection("127.0.0.1", port)
    way = HoldingGate(port)
    connection = await transport.connect(
        await way.start(),
        deliver,
        limits=Limits(handshake_s=600.0, heartbeat_s=600.0, dead_after_s=600.0),
        security=ClientSecurity(known, server.public) if with_keys else None,
        on_state=tell,
    )
    assert connection.send([bytes(MESSAGE_BYTES)])
    async with asyncio.timeout(DEADLINE_S):
        await way.holds.wait()
    seen = looks[0]
    await looked.true(lambda: looks[0] >= seen + 5)
    assert not got
    assert not listener.statistics().handshakes_failed
    way.go_on.set()
    await came.true(lambda: got)
    assert [d.nbytes for d in got] == [MESSAGE_BYTES]
    assert [state.connected for state in states] == [True]
    assert not listener.statistics().handshakes_failed
    stranger.close()
    await way.close()


async def test_who_has_only_said_that_it_is_there_stays_and_is_nobodys_business(
    transport: ZmqTransport,
) -> None:
    """Neither a flood of silent ones makes it give way, nor does its end make news."""
    came, gone = Until(), Until()
    got: list[Delivery] = []
    lost: list[bytes] = []

    def deliver(delivery: Delivery) -> None:
        got.append(delivery)
        came.happened()

    def leave(peer: bytes) -> None:
        lost.append(peer)
        gone.happened()

    listener = await transport.listen(
        "tcp://127.0.0.1:0",
        deliver,
        limits=Limits(max_silent=2, handshake_s=600.0),
        on_disconnect=leave,
    )
    first = await transport.connect(listener.endpoint, deliver)
    idle = await transport.connect(listener.endpoint, deliver)
    talker = await transport.connect(listener.endpoint, deliver)

    async def round_trip(done: Callable[[], object]) -> None:
        """Has the listener take turns, as who is there is told nobody."""
        while not done():
            talker.send([b"tick"])
            await came.next()

    await round_trip(lambda: len(listener._mute) == 2)
    mute = set(listener._mute)
    flood = []
    for _ in range(10):
        # The system may tell of the end before it tells that there is a connection.
        with contextlib.suppress(ConnectionError):
            port = int(listener.endpoint.rpartition(":")[2])
            flood.append(await asyncio.open_connection("127.0.0.1", port))
    await round_trip(lambda: listener.statistics().handshakes_failed.get("silent", 0) >= 8)
    assert set(listener._mute) == mute
    assert not any(listener.send(peer, [b"to whom?"]) for peer in mute)
    messages = listener.statistics().messages_in
    assert messages == len(got)
    # An empty message of its own is a message like others.
    assert first.send([b""])
    await came.true(lambda: got[-1].nbytes == 0)
    assert got[-1].peer in mute
    assert listener.send(got[-1].peer, [b"answer"])
    await came.true(lambda: bytes(got[-1].parts[0]) == b"answer")
    await idle.close()
    await round_trip(lambda: not listener._mute)
    assert not lost
    await first.close()
    await gone.true(lambda: lost)
    assert set(lost) < mute
    for _, writer in flood:
        writer.close()


def test_bytes_that_wait_in_the_kernel_are_not_taken_yet() -> None:
    """They may hold a connection's first words, where ZeroMQ's thread is late."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            near.sendall(bytes(50_000))
            mark = mark_of(far.fileno())
            assert silent.taken_bytes(far.fileno(), mark) == 0
            left = 30_000
            while left:
                left -= len(far.recv(left))
            assert silent.taken_bytes(far.fileno(), mark) == 30_000
            assert silent.taken_bytes(far.fileno(), mark + 1) == 0
