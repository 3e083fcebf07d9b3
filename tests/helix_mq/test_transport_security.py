"""Who gets in: keys, allow-lists, revocation, plain sockets, and ids that cannot be stolen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import pytest
import zmq
import zmq.asyncio

from helix_mq.transport import (
    AllowList,
    BadKey,
    ClientSecurity,
    Connection,
    Delivery,
    InsecureEndpoint,
    KeyPair,
    Limits,
    LinkPhase,
    LinkState,
    Listener,
    MemoryTransport,
    ServerSecurity,
    Transport,
    ZmqTransport,
)
from helix_mq.transport.refusals import (
    HUNG_UP,
    HUNG_UPS_EXPLAINED,
    MECHANISM,
    NOT_ALLOWED,
    Told,
)
from helix_mq.transport.statistics import Counters

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
    """A listener with keys that lets `known` in, and the means to connect to it."""

    transport: Transport
    listener: Listener
    server: KeyPair
    known: KeyPair
    allow: AllowList
    up: Inbox[Delivery]

    async def connect(
        self, security: ClientSecurity | None
    ) -> tuple[Connection, Inbox[Delivery], Inbox[LinkState]]:
        down, states = Inbox[Delivery](), Inbox[LinkState]()
        connection = await self.transport.connect(
            self.listener.endpoint,
            down,
            security=security,
            on_state=states,
            limits=Limits(redial_s=0.01, redial_max_s=0.05),
        )
        return connection, down, states


@pytest.fixture(params=["mem", "tcp"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    transport: Transport = MemoryTransport() if request.param == "mem" else ZmqTransport()
    endpoint = "mem://secured" if request.param == "mem" else "tcp://127.0.0.1:0"
    server, known = KeyPair.new(), KeyPair.new()
    allow, up = AllowList({"known": known.public}), Inbox[Delivery]()
    listener = await transport.listen(endpoint, up, security=ServerSecurity(server, allow))
    yield Place(transport, listener, server, known, allow, up)
    await transport.close()


async def test_a_listed_key_gets_in_and_is_named_with_each_message(place: Place) -> None:
    connection, down, states = await place.connect(ClientSecurity(place.known, place.server.public))
    for _ in range(3):
        connection.send([b"hello", b"x" * 200_000])
    deliveries = await place.up.count(3)
    assert [d.user for d in deliveries] == [place.known.public] * 3
    assert place.allow.name_of(deliveries[0].user or "") == "known"
    assert place.listener.send(deliveries[0].peer, [b"welcome"])
    (answer,) = await down.count(1)
    assert answer.user == place.server.public
    assert states.items == [LinkState(LinkPhase.CONNECTED)]


async def test_an_unknown_key_is_told_why_and_gets_in_once_it_is_listed(place: Place) -> None:
    stranger = KeyPair.new()
    connection, _, states = await place.connect(ClientSecurity(stranger, place.server.public))
    connection.send([b"let me in"])
    (state,) = await states.count(1)
    assert state.phase is LinkPhase.REFUSED
    assert state.reason == "handshake failed: this key is not on the peer's allow-list"
    assert place.up.items == []
    assert place.listener.statistics().handshakes_failed["not_allowed"] >= 1
    place.allow.add("stranger", stranger.public)
    (delivery,) = await place.up.count(1)
    assert delivery.user == stranger.public
    assert bytes(delivery.parts[0]) == b"let me in"


async def test_a_plain_client_is_refused_by_a_listener_with_keys(place: Place) -> None:
    connection, _, states = await place.connect(None)
    connection.send([b"hello"])
    (state,) = await states.count(1)
    assert state.phase is LinkPhase.REFUSED
    # Which end sees it first is luck; either way the reason is about keys.
    assert "keys" in state.reason
    assert place.up.items == []


async def test_a_client_refuses_a_listener_with_another_key(place: Place) -> None:
    connection, _, states = await place.connect(ClientSecurity(place.known, KeyPair.new().public))
    connection.send([b"a secret"])
    (state,) = await states.count(1)
    assert state.phase is LinkPhase.REFUSED
    assert "hung up" in state.reason
    assert place.up.items == []


async def test_a_client_with_keys_is_refused_by_a_plain_listener(place: Place) -> None:
    where = "mem://plain" if place.listener.endpoint.startswith("mem") else "tcp://127.0.0.1:0"
    up, states = Inbox[Delivery](), Inbox[LinkState]()
    plain = await place.transport.listen(where, up)
    connection = await place.transport.connect(
        plain.endpoint,
        Inbox[Delivery](),
        security=ClientSecurity(place.known, place.server.public),
        on_state=states,
    )
    connection.send([b"a secret"])
    (state,) = await states.count(1)
    assert state.phase is LinkPhase.REFUSED
    assert up.items == []


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_revoked_key_is_cut_off_its_open_connection(place: Place, speaks: bool) -> None:
    second = KeyPair.new()
    place.allow.add("second", second.public)
    bad, bad_down, states = await place.connect(ClientSecurity(place.known, place.server.public))
    good, _, _ = await place.connect(ClientSecurity(second, place.server.public))
    bad.send([b"1"])
    (first,) = await place.up.count(1)
    assert place.allow.remove("known")
    assert not place.allow.remove("known")
    if speaks:
        bad.send([b"2"])
    assert not place.listener.send(first.peer, [b"not for you"])
    await states.until(lambda seen: seen[-1].phase is LinkPhase.REFUSED)
    phases = [LinkPhase.CONNECTED, LinkPhase.DISCONNECTED, LinkPhase.REFUSED]
    assert [state.phase for state in states.items] == phases
    good.send([b"tick"])
    assert (await place.up.count(2))[1].user == second.public
    assert bad_down.items == []
    bad.send([b"4"])
    place.allow.add("known", place.known.public)
    await place.up.until(lambda got: bytes(got[-1].parts[0]) == b"4")
    assert len(place.up.items) == 3
    assert place.up.items[-1].peer != first.peer


async def test_a_key_listed_under_another_name_comes_in_anew(place: Place) -> None:
    """What was granted to its connection under the old name must not go on."""
    connection, _, states = await place.connect(ClientSecurity(place.known, place.server.public))
    connection.send([b"1"])
    (first,) = await place.up.count(1)
    place.allow.replace({"another": place.known.public})
    await states.count(3)
    connection.send([b"2"])
    assert (await place.up.count(2))[1].peer != first.peer


async def test_two_listeners_of_one_transport_have_lists_of_their_own(place: Place) -> None:
    other_key = KeyPair.new()
    where = place.listener.endpoint
    where = "mem://other" if where.startswith("mem") else "tcp://127.0.0.1:0"
    up = Inbox[Delivery]()
    allow = AllowList({"other": other_key.public})
    other = await place.transport.listen(where, up, security=ServerSecurity(place.server, allow))
    connection, _, states = await place.connect(ClientSecurity(other_key, place.server.public))
    (state,) = await states.count(1)
    assert state.phase is LinkPhase.REFUSED
    await connection.close()
    welcome = await place.transport.connect(
        other.endpoint,
        Inbox[Delivery](),
        security=ClientSecurity(other_key, place.server.public),
    )
    welcome.send([b"x"])
    (delivery,) = await up.count(1)
    assert delivery.user == other_key.public


async def test_plain_sockets_are_for_this_machine_only() -> None:
    transport = ZmqTransport()
    try:
        for endpoint in ("tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.7:7100", "tcp://[::]:0"):
            with pytest.raises(InsecureEndpoint, match="helix-mq keys new"):
                await transport.listen(endpoint, Inbox[Delivery]())
            with pytest.raises(InsecureEndpoint, match="insecure = true"):
                await transport.connect(endpoint, Inbox[Delivery]())
        up = Inbox[Delivery]()
        listener = await transport.listen("tcp://0.0.0.0:0", up, insecure=True)
        port = listener.endpoint.rpartition(":")[2]
        connection = await transport.connect(f"tcp://localhost:{port}", Inbox[Delivery]())
        connection.send([b"x"])
        await up.count(1)
    finally:
        await transport.close()


async def test_an_id_in_use_cannot_be_taken_over() -> None:
    """A second socket that asks ZeroMQ for the first one's id must not get its mail."""
    transport = ZmqTransport()
    context = zmq.asyncio.Context()
    thief = context.socket(zmq.DEALER)
    try:
        up, down = Inbox[Delivery](), Inbox[Delivery]()
        listener = await transport.listen("tcp://127.0.0.1:0", up)
        victim = await transport.connect(listener.endpoint, down, routing_id=b"alpha")
        victim.send([b"mine"])
        (first,) = await up.count(1)
        thief.setsockopt(zmq.ROUTING_ID, first.peer)
        thief.setsockopt(zmq.LINGER, 0)
        monitor = thief.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        thief.connect(listener.endpoint)
        await monitor.recv_multipart()
        await thief.send(b"stolen")
        for i in range(20):
            victim.send([b"still mine"])
            await up.count(2 + i)
            assert listener.send(first.peer, [b"secret %d" % i])
            await down.count(1 + i)
        assert await thief.poll(0) == 0
        assert all(bytes(d.parts[0]) != b"stolen" for d in up.items)
        thief.disable_monitor()
        monitor.close()
    finally:
        thief.close()
        context.term()
        await transport.close()


async def test_a_listener_with_keys_admits_nobody_without_its_key_checker() -> None:
    transport = ZmqTransport()
    try:
        server, known = KeyPair.new(), KeyPair.new()
        up, states = Inbox[Delivery](), Inbox[LinkState]()
        listener = await transport.listen(
            "tcp://127.0.0.1:0",
            up,
            security=ServerSecurity(server, AllowList({"known": known.public})),
        )
        assert transport._zap is not None
        transport._zap.close()
        connection = await transport.connect(
            listener.endpoint,
            Inbox[Delivery](),
            security=ClientSecurity(known, server.public),
            on_state=states,
            limits=Limits(handshake_s=0.2),
        )
        connection.send([b"x"])
        (state,) = await states.count(1)
        assert state.phase is LinkPhase.REFUSED
        assert up.items == []
    finally:
        await transport.close()


def test_one_fault_is_told_in_one_way() -> None:
    for keys in (True, False):
        told = Told(keys=keys)
        assert told.of(MECHANISM) is MECHANISM
        assert all(told.of(HUNG_UP) is MECHANISM for _ in range(HUNG_UPS_EXPLAINED))
        other = told.of(HUNG_UP)
        assert other.code == "hung_up"
        assert ("wants keys" in other.sentence) is not keys
        told.of(MECHANISM)
        assert told.of(NOT_ALLOWED) is NOT_ALLOWED
        assert told.of(HUNG_UP) is other
        told.of(MECHANISM)
        told.let_in()
        assert told.of(HUNG_UP) is other


def test_secrets_do_not_show() -> None:
    pair = KeyPair.new()
    server = ServerSecurity(pair, AllowList())
    client = ClientSecurity(pair, KeyPair.new().public)
    for value in (pair, server, client, AllowList({"a": pair.public})):
        assert pair.secret not in repr(value)
        assert pair.secret not in str(value)
    with pytest.raises(BadKey) as caught:
        KeyPair(KeyPair.new().public, pair.secret)
    assert pair.secret not in str(caught.value)
    assert KeyPair.of_secret(pair.secret) == pair


def test_allow_lists_keep_names_and_keys_one_to_one() -> None:
    a, b = KeyPair.new().public, KeyPair.new().public
    allow = AllowList({"x": a})
    with pytest.raises(BadKey, match="x and y have the same key"):
        AllowList({"x": a, "y": a})
    with pytest.raises(BadKey, match="y and x have the same key"):
        allow.add("y", a)
    with pytest.raises(BadKey, match="the key of z is not a CURVE key"):
        allow.replace({"z": "short"})
    assert allow.entries() == (("x", a),)
    allow.add("x", b)
    assert a not in allow
    assert b in allow
    assert allow.name_of(a) is None
    allow.replace({"y": f"  {a}\n"})
    assert allow.entries() == (("y", a),)
    assert len(allow) == 1


def test_many_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each may come with a key of its own, and as often as it likes."""
    counters = Counters("listener")
    for number in range(1000):
        counters.handshake_failed(NOT_ALLOWED, who=f"key {number}")
    counters.drop("revoked", "someone else's fault")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 22
    assert "counted only for the rest of the minute" in lines[20]
    assert counters.statistics().handshakes_failed["not_allowed"] == 1000
