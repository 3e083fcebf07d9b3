"""What every transport promises, asked of the ZeroMQ one over tcp and ipc and of its twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from helix_mq.transport import (
    Delivery,
    EndpointUnavailable,
    Limits,
    LinkPhase,
    LinkState,
    MemoryTransport,
    MessageTooLarge,
    Transport,
    ZmqTransport,
)

DEADLINE_S = 240.0
T = TypeVar("T")


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


@dataclass
class Place:
    transport: Transport
    endpoint: str


@pytest.fixture(params=["mem", "tcp", "ipc"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    kind = request.param
    transport: Transport = MemoryTransport() if kind == "mem" else ZmqTransport()
    where = {"mem": "mem://node:0", "tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{tmp_path}/s"}
    yield Place(transport, where[kind])
    await transport.close()


def bodies(deliveries: list[Delivery]) -> list[list[bytes]]:
    return [[bytes(part) for part in d.parts] for d in deliveries]


async def test_messages_travel_whole_both_ways(place: Place) -> None:
    up, down = Inbox[Delivery](), Inbox[Delivery]()
    listener = await place.transport.listen(place.endpoint, up)
    connection = await place.transport.connect(listener.endpoint, down, routing_id=b"alpha/")
    sent = [b"\x01\x20", b"", bytearray(b"header"), memoryview(b"x" * 300_000)]
    assert connection.send(sent)
    (delivery,) = await up.count(1)
    assert delivery.user is None
    assert delivery.peer.startswith(b"alpha/")
    assert all(isinstance(part, memoryview) for part in delivery.parts)
    assert bodies(up.items) == [[bytes(part) for part in sent]]
    assert listener.send(delivery.peer, [b"answer", b"y" * 300_000])
    (answer,) = await down.count(1)
    assert answer.peer == b""
    assert bodies(down.items) == [[b"answer", b"y" * 300_000]]
    s, c = listener.statistics(), connection.statistics()
    assert (s.messages_in, s.bytes_in) == (1, 300_008) == (c.messages_out, c.bytes_out)
    assert (c.messages_in, c.bytes_in) == (1, 300_006) == (s.messages_out, s.bytes_out)
    assert dict(s.dropped) == dict(c.dropped) == {}


async def test_views_of_non_byte_items_count_in_bytes(place: Place) -> None:
    up = Inbox[Delivery]()
    listener = await place.transport.listen(place.endpoint, up)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    floats = memoryview(bytearray(8 * 1000)).cast("d")
    assert len(floats) == 1000
    assert connection.send([floats])
    await up.count(1)
    assert connection.statistics().bytes_out == listener.statistics().bytes_in == 8000


async def test_each_connection_keeps_its_order(place: Place) -> None:
    up = Inbox[Delivery]()
    listener = await place.transport.listen(place.endpoint, up)
    limits = Limits(backlog_messages=2000)
    connections = [
        await place.transport.connect(listener.endpoint, Inbox[Delivery](), limits=limits)
        for _ in range(3)
    ]
    for i in range(2000):
        for k, connection in enumerate(connections):
            assert connection.send([b"%d" % k, b"%d" % i])
    got = bodies(await up.count(6000))
    for k in range(3):
        assert [int(i) for who, i in got if int(who) == k] == list(range(2000))
    assert len({d.peer for d in up.items}) == 3


async def test_unknown_peers_are_refused(place: Place) -> None:
    listener = await place.transport.listen(place.endpoint, Inbox[Delivery]())
    assert not listener.send(b"nobody", [b"hello"])
    assert listener.statistics().messages_out == 0


async def test_what_is_sent_before_the_listener_is_there_arrives(place: Place) -> None:
    first = await place.transport.listen(place.endpoint, Inbox[Delivery]())
    endpoint = first.endpoint
    await first.close()
    states, up = Inbox[LinkState](), Inbox[Delivery]()
    connection = await place.transport.connect(endpoint, Inbox[Delivery](), on_state=states)
    assert connection.send([b"early"])
    assert connection.statistics().backlog_messages == 1
    await place.transport.listen(endpoint, up)
    assert bodies(await up.count(1)) == [[b"early"]]
    assert connection.statistics().backlog_messages == 0
    assert [s.phase for s in states.items] == [LinkPhase.CONNECTED]


async def test_the_backlog_is_bounded_in_messages_and_bytes(place: Place) -> None:
    gone = await place.transport.listen(place.endpoint, Inbox[Delivery]())
    await gone.close()
    limits = Limits(backlog_messages=10, backlog_bytes=1000)
    connection = await place.transport.connect(gone.endpoint, Inbox[Delivery](), limits=limits)
    assert [connection.send([b"x"]) for _ in range(12)] == [True] * 10 + [False] * 2
    other = await place.transport.connect(gone.endpoint, Inbox[Delivery](), limits=limits)
    assert [other.send([b"x" * 400]) for _ in range(4)] == [True, True, False, False]
    assert other.statistics().backlog_bytes == 800
    alone = await place.transport.connect(gone.endpoint, Inbox[Delivery](), limits=limits)
    assert alone.send([b"x" * 5000])
    assert not alone.send([b"x"])
    await other.close()
    assert dict(other.statistics().dropped) == {"closed": 2}
    assert not other.send([b"x"])


async def test_a_failing_handler_is_counted_and_the_socket_goes_on(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    good = Inbox[Delivery]()

    def handler(delivery: Delivery) -> None:
        if delivery.parts[0] == b"bad":
            raise RuntimeError("cannot digest this")
        good(delivery)

    listener = await place.transport.listen(place.endpoint, handler)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    for body in (b"bad", b"bad", b"good"):
        connection.send([body])
    await good.count(1)
    assert listener.statistics().handler_errors == 2
    assert caplog.text.count("a handler failed") == 1


async def test_messages_beyond_the_receivers_limits_are_dropped_and_counted(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    up = Inbox[Delivery]()
    limits = Limits(max_message_bytes=1000, max_parts=3)
    listener = await place.transport.listen(place.endpoint, up, limits=limits)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    connection.send([b"x"] * 4)
    connection.send([b"x" * 600, b"x" * 600])
    connection.send([b"x"] * 5)
    connection.send([b"x" * 400, b"x" * 300, b"x" * 300])
    await up.count(1)
    assert len(up.items[0].parts) == 3
    assert dict(listener.statistics().dropped) == {"too_large": 1, "too_many_parts": 2}
    assert caplog.text.count("too_many_parts") == 1


async def test_a_part_beyond_the_limit_cuts_only_its_own_connection(place: Place) -> None:
    up, states = Inbox[Delivery](), Inbox[LinkState]()
    limits = Limits(max_message_bytes=1000)
    listener = await place.transport.listen(place.endpoint, up, limits=limits)
    bad = await place.transport.connect(listener.endpoint, Inbox[Delivery](), on_state=states)
    good = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    good.send([b"1"])
    bad.send([b"x" * 100_000])
    await states.until(lambda seen: LinkPhase.DISCONNECTED in [s.phase for s in seen])
    good.send([b"2"])
    assert bodies(await up.count(2)) == [[b"1"], [b"2"]]


async def test_the_senders_own_limits_are_errors(place: Place) -> None:
    limits = Limits(max_message_bytes=100, max_parts=2)
    connection = await place.transport.connect(
        place.endpoint.replace(":0", ":9"), Inbox[Delivery](), limits=limits
    )
    with pytest.raises(MessageTooLarge, match="101 bytes; the limit is 100"):
        connection.send([b"x" * 101])
    with pytest.raises(MessageTooLarge, match="3 parts"):
        connection.send([b"x"] * 3)
    with pytest.raises(MessageTooLarge, match="0 parts"):
        connection.send([])


async def test_a_closed_connection_is_noticed_after_its_last_message(place: Place) -> None:
    log: list[object] = []
    gone = Inbox[bytes]()

    def left(peer: bytes) -> None:
        log.append("gone")
        gone(peer)

    up = Inbox[Delivery]()

    def arrived(delivery: Delivery) -> None:
        log.append(bytes(delivery.parts[0]))
        up(delivery)

    listener = await place.transport.listen(place.endpoint, arrived, on_disconnect=left)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    connection.send([b"0"])
    await up.count(1)
    for i in range(1, 500):
        connection.send([b"%d" % i])
    await connection.close()
    assert await gone.count(1) == [up.items[0].peer]
    assert log == [b"%d" % i for i in range(500)] + ["gone"]
    assert not listener.send(up.items[0].peer, [b"too late"])


async def test_a_restarted_listener_is_found_again(place: Place) -> None:
    states, up = Inbox[LinkState](), Inbox[Delivery]()
    old = await place.transport.listen(place.endpoint, up)
    connection = await place.transport.connect(
        old.endpoint, Inbox[Delivery](), routing_id=b"n", on_state=states
    )
    connection.send([b"before"])
    await up.count(1)
    await old.close()
    await states.count(2)
    assert connection.send([b"between"])
    new = Inbox[Delivery]()
    await place.transport.listen(old.endpoint, new)
    assert bodies(await new.count(1)) == [[b"between"]]
    phases = [LinkPhase.CONNECTED, LinkPhase.DISCONNECTED, LinkPhase.CONNECTED]
    assert [s.phase for s in states.items] == phases
    assert states.items[1].reason == "the connection was lost"
    assert connection.statistics().reconnects == 1
    assert new.items[0].peer != up.items[0].peer


async def test_a_greeting_goes_before_what_waited_for_the_link(place: Place) -> None:
    up = Inbox[Delivery]()
    gone = await place.transport.listen(place.endpoint, up)
    await gone.close()

    def greet(state: LinkState) -> None:
        if state.connected:
            connection.send([b"hello"])

    connection = await place.transport.connect(gone.endpoint, Inbox[Delivery](), on_state=greet)
    connection.send([b"1"])
    connection.send([b"2"])
    await place.transport.listen(gone.endpoint, up)
    assert bodies(await up.count(3)) == [[b"hello"], [b"1"], [b"2"]]


async def test_a_taken_address_is_an_error_in_words(place: Place) -> None:
    listener = await place.transport.listen(place.endpoint, Inbox[Delivery]())
    with pytest.raises(EndpointUnavailable, match="in use"):
        await place.transport.listen(listener.endpoint, Inbox[Delivery]())


async def test_handlers_may_close_their_socket(place: Place) -> None:
    closing: list[asyncio.Task[None]] = []
    closed = asyncio.Event()

    async def close() -> None:
        await listener.close()
        closed.set()

    def handler(delivery: Delivery) -> None:
        if not closing:
            closing.append(asyncio.ensure_future(close()))

    listener = await place.transport.listen(place.endpoint, handler)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    for _ in range(100):
        connection.send([b"x"])
    async with asyncio.timeout(DEADLINE_S):
        await closed.wait()
    assert not listener.send(b"x", [b"x"])
    await listener.close()


async def test_a_flood_leaves_time_for_other_tasks(place: Place) -> None:
    turns = 0
    up = Inbox[Delivery]()
    listener = await place.transport.listen(place.endpoint, up)
    limits = Limits(backlog_messages=20_000)
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery](), limits=limits)
    connection.send([b"x"])
    await up.count(1)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    for _ in range(9999):
        assert connection.send([b"x" * 100])
    await up.count(10_000)
    task.cancel()
    # A slice is 256 messages at most, so 10,000 of them take at least 39 turns of the loop.
    assert turns >= 39


async def test_closing_twice_is_harmless(place: Place) -> None:
    listener = await place.transport.listen(place.endpoint, Inbox[Delivery]())
    connection = await place.transport.connect(listener.endpoint, Inbox[Delivery]())
    for _ in range(2):
        await connection.close()
        await listener.close()
        await place.transport.close()
