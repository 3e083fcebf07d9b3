"""The data plane over both transports: hello, credit, loss and return of links, identity."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from msgspec import structs

from helix_mq.frames import decode, encode
from helix_mq.inlink import ACKNOWLEDGE_EVERY_S
from helix_mq.messages.data import (
    SAMPLE,
    FrameHeader,
    Grant,
    LinkHello,
    Release,
)
from helix_mq.outlink import PeerAddress
from helix_mq.transport import (
    AllowList,
    Delivery,
    KeyPair,
    Listener,
    ZmqTransport,
)
from tests.helix_mq.plane_ends import RELEASE, WAIT_S, WIDTH, Net, frame
from tests.helix_mq.slow_link import SlowLink


async def test_frames_arrive_whole_in_order_under_their_senders_name(net: Net) -> None:
    a, b = await net.pair()
    for request in range(50):
        assert a.send("b", request, tokens=1 + request)
    await b.until(lambda: len(b.requests) == 50)
    assert b.requests == list(range(50))
    assert {sender for sender, _ in b.messages} == {"a"}
    for request, (_, message) in enumerate(b.messages):
        values = np.frombuffer(message.buffers[0], np.float32)
        assert values.shape == ((1 + request) * WIDTH,)
        assert (values == request).all()
    (statistics,) = a.plane.statistics()
    assert (statistics.peer, statistics.sent_frames, statistics.backlog_bytes) == ("b", 50, 0)


async def test_both_directions_are_links_of_their_own(net: Net) -> None:
    a, b = await net.pair()
    assert a.send("b", 1)
    assert b.send("a", 2)
    await b.until(lambda: b.requests == [1])
    await a.until(lambda: a.requests == [2])


async def test_frames_wait_for_credit_and_other_messages_do_not(net: Net) -> None:
    a, b = await net.pair(window=4096)
    b.hold = True
    for request in range(12):
        a.send("b", request)
    a.plane.send("b", RELEASE)
    await b.until(lambda: any(isinstance(m.header, Release) for _, m in b.messages))
    assert a.plane.blocked_peers() == {"b"}
    unconsumed = sum(nbytes for _, nbytes in b.held)
    assert unconsumed <= 4096 + 1200, "the window, and at most one message more"
    (statistics,) = a.plane.statistics()
    assert statistics.backlog_bytes > 0
    arrived = len(b.requests)
    assert 0 < arrived < 12
    while len(b.requests) < 12:
        before = len(b.requests)
        b.consume()
        await b.until(lambda before=before: len(b.requests) > before)  # type: ignore[misc]
        assert sum(nbytes for _, nbytes in b.held) <= 4096 + 1200
    assert b.requests == list(range(12))
    assert a.plane.blocked_peers() == set()
    assert a.credits > 0


async def test_a_frame_larger_than_the_window_goes_when_all_is_consumed(net: Net) -> None:
    a, b = await net.pair(window=4096)
    a.send("b", 1)
    a.send("b", 2, tokens=512)
    a.send("b", 3)
    await b.until(lambda: len(b.requests) == 3)
    assert b.requests == [1, 2, 3]


async def test_an_overdraft_lets_one_frame_go(net: Net) -> None:
    a, b = await net.pair(window=2048)
    b.hold = True
    for request in range(6):
        a.send("b", request)
    a.plane.send("b", RELEASE)
    await b.until(lambda: any(isinstance(m.header, Release) for _, m in b.messages))
    arrived = len(b.requests)
    a.plane.overdraft()
    await b.until(lambda: len(b.requests) == arrived + 1)
    a.plane.send("b", RELEASE)
    await b.until(lambda: isinstance(b.messages[-1][1].header, Release))
    assert len(b.requests) == arrived + 1


async def test_frames_sent_before_the_link_stands_arrive_when_it_does(net: Net) -> None:
    a, b = await net.bound("a"), await net.bound("b")
    await b.plane.close()
    await a.knows(b)
    for request in range(5):
        assert a.send("b", request)
    assert a.plane.blocked_peers() == {"b"}
    assert a.lost == []
    again = net.end("b")
    await again.bind(b.endpoint)
    await again.until(lambda: len(again.requests) == 5)
    assert again.requests == list(range(5))
    assert a.lost == []


async def test_a_lost_link_is_told_once_and_comes_back_with_fresh_credit(net: Net) -> None:
    a, b = await net.pair(window=4096)
    b.hold = True
    for request in range(12):
        a.send("b", request)
    await b.until(lambda: len(b.requests) >= 2)
    await b.plane.close()
    await a.until(lambda: a.lost == ["b"])
    assert a.plane.blocked_peers() == set(), "what waited behind the lost frames is given up"
    assert a.send("b", 100)
    again = net.end("b", window=4096)
    again.hold = True
    await again.bind(b.endpoint)
    await again.until(lambda: again.requests == [100])
    assert a.send("b", 101)
    await again.until(lambda: again.requests == [100, 101])
    assert a.lost == ["b"]


async def test_grants_that_were_lost_are_repeated(net: Net) -> None:
    a, b = await net.pair(window=4096)
    b.hold = True
    for request in range(8):
        a.send("b", request)
    a.plane.send("b", RELEASE)
    await b.until(lambda: any(isinstance(m.header, Release) for _, m in b.messages))
    link = b.held[0][0]
    total = sum(nbytes for _, nbytes in b.held)
    # Consumed, but the message that says so never leaves.
    arrived, tell = len(b.requests), link._tell
    link._tell = lambda total_bytes: None  # type: ignore[method-assign]
    b.consume()
    link._tell = tell  # type: ignore[method-assign]
    assert total > 0
    assert len(b.requests) == arrived
    b.plane.refresh()
    await b.until(lambda: len(b.requests) > arrived)


async def test_peers_that_leave_the_list_cannot_be_sent_to(net: Net) -> None:
    a, b = await net.pair()
    c = await net.bound("c")
    assert not a.send("c", 1)
    await a.knows(b, c)
    assert a.send("c", 1)
    await a.knows(c)
    assert not a.send("b", 2)
    assert a.send("c", 3)
    await c.until(lambda: c.requests == [1, 3])
    assert a.lost == [], "a link that is closed on purpose is not lost"


async def test_a_restarted_peer_gets_a_new_link(net: Net) -> None:
    a, b = await net.pair()
    a.send("b", 1)
    await b.until(lambda: b.requests == [1])
    other = await net.bound("elsewhere")
    moved = PeerAddress("b", 999, other.endpoint)
    await a.plane.set_peers({"b": moved})
    a.send("b", 2)
    await other.until(lambda: other.requests == [2])
    assert b.requests == [1]


async def test_one_peer_with_an_unusable_address_costs_the_others_nothing(net: Net) -> None:
    a, b = await net.bound("a"), await net.bound("b")
    broken = PeerAddress("x", 1, "carrier-pigeon://loft")
    far = PeerAddress("y", 1, "tcp://192.0.2.1:7101")
    await a.plane.set_peers({"x": broken, "b": b.address, "y": far})
    assert a.send("b", 1)
    await b.until(lambda: b.requests == [1])
    assert not a.send("x", 1)
    assert not a.send("y", 1)


async def test_bad_messages_are_counted_and_the_rest_goes_on(net: Net) -> None:
    b = await net.bound("b")
    replies: list[object] = []
    stranger = await net.raw(b, replies)
    header, buffer = frame(1)
    stranger.send(encode(header, (buffer,)))
    stranger.send([b"\x01\x20", b"\xc1"])
    stranger.send([b"nonsense"])
    stranger.send(encode(LinkHello("a", 1, 77)))
    stranger.send([b"\x01\xff", b"\x90"])
    stranger.send(encode(header, (buffer[:-4],)))
    stranger.send(encode(header, (buffer,)))
    await b.until(lambda: b.requests == [1])
    assert b.plane.bad_messages == {
        ("stranger", "no_hello"): 1,
        ("stranger", "not_msgpack"): 1,
        ("stranger", "parts"): 1,
        ("a", "unknown_kind"): 1,
        ("a", "length"): 1,
    }
    assert [type(m.header) for _, m in b.messages] == [FrameHeader]


async def test_a_bad_or_foreign_grant_changes_nothing(net: Net) -> None:
    """A receiver that answers with nonsense, another link's grant, and then a right one."""
    got: list[Delivery] = []
    arrived = asyncio.Event()
    listener: Listener

    def answer(delivery: Delivery) -> None:
        message = decode(delivery.parts)
        if isinstance(message.header, LinkHello):
            listener.send(delivery.peer, [b"what", b"is", b"this"])
            listener.send(delivery.peer, encode(Grant("b", message.header.link + 1, 1 << 40)))
            listener.send(delivery.peer, encode(Grant("b", message.header.link, 2048)))
        else:
            got.append(delivery)
            arrived.set()

    listener = await net.transport.listen(net.anywhere("b"), answer)
    a = net.end("a", window=1 << 20)
    await a.plane.set_peers({"b": PeerAddress("b", 1, listener.endpoint)})
    await a.until(lambda: a.credits == 2)
    for request in range(8):
        a.send("b", request)
    async with asyncio.timeout(WAIT_S):
        while len(got) < 1:
            arrived.clear()
            await arrived.wait()
    assert a.plane.blocked_peers() == {"b"}
    assert a.plane.bad_messages == {("b", "no_version"): 1}
    await listener.close()


class Keys:
    """Three processes' keys and the list that names them."""

    def __init__(self) -> None:
        self.of = {name: KeyPair.new() for name in ("a", "b", "c")}
        self.allow = AllowList({name: key.public for name, key in self.of.items()})


async def test_a_valid_key_does_not_speak_in_anothers_name(net: Net) -> None:
    keys = Keys()
    b = net.end("b", key=keys.of["b"], allow=keys.allow)
    await b.bind(net.anywhere("b"))
    a, thief = net.end("a", key=keys.of["a"]), net.end("a", key=keys.of["c"])
    await thief.knows(b)
    assert thief.send("b", 666)
    assert thief.plane.send("b", RELEASE)
    await a.knows(b)
    refused = {("stranger", "identity"), ("stranger", "no_hello")}
    honest = 0
    async with asyncio.timeout(WAIT_S):
        # What the honest one sends is the clock: the thief's messages come meanwhile.
        while set(b.plane.bad_messages) != refused:
            honest += 1
            assert a.send("b", honest)
            await b.until(lambda last=honest: b.requests[-1:] == [last])  # type: ignore[misc]
    assert b.requests == list(range(1, honest + 1))
    assert len(b.messages) == honest


async def test_a_hello_ahead_of_the_list_of_peers_counts(net: Net) -> None:
    """After an outage a node's link may be back before the node has registered again."""
    keys = Keys()
    b = net.end("b", key=keys.of["b"], allow=keys.allow)
    await b.bind(net.anywhere("b"))
    a = net.end("a", key=keys.of["a"])
    await a.knows(b)
    a.send("b", 1)
    await b.until(lambda: b.requests == [1])
    assert not b.plane.bad_messages


@pytest.mark.alone
async def test_a_decode_passes_the_chunks_that_wait_for_a_slow_link() -> None:
    """8 MB of prompt activations on a link of 4 MB/s, then one decode: it must not come last."""
    transport = ZmqTransport()
    net = Net(transport, [], "tcp")
    a, b = await net.bound("a", window=64 << 20), await net.bound("b", window=64 << 20)
    link = SlowLink(int(b.endpoint.rpartition(":")[2]), 4e6)
    try:
        endpoint = await link.start()
        address = PeerAddress("b", b.address.incarnation, endpoint)
        await a.plane.set_peers({"b": address})
        await a.until(lambda: a.credits > 0)
        tokens = 8_000_000 // (WIDTH * 4)
        a.send("b", 1, tokens=tokens)
        assert a.plane.blocked_peers() == {"b"}, "more prefill for this link had better wait"
        await b.until(lambda: len(b.requests) > 0)
        header, buffer = frame(2, 1, "a")
        decode_row = structs.replace(header.rows[0], position=7, flags=SAMPLE)
        a.plane.send("b", structs.replace(header, rows=(decode_row,)), (buffer,))
        await b.until(lambda: 2 in b.requests)
        before = sum(
            m.header.rows[0].count
            for _, m in b.messages
            if isinstance(m.header, FrameHeader) and m.header.rows[0].request == 1
        )
        assert before < tokens / 4
        await b.until(lambda: a.plane.statistics()[0].backlog_bytes == 0)
        (statistics,) = a.plane.statistics()
        assert 1e6 < statistics.bytes_per_s < 1.6e7
    finally:
        for end in net.ends:
            await end.plane.close()
        await transport.close()
        await link.close()


async def test_quick_frames_share_an_acknowledgement_and_all_are_acknowledged(net: Net) -> None:
    a, b = await net.pair(window=64 << 20)
    loop = asyncio.get_running_loop()
    began_s, credits_before = loop.time(), a.credits
    for n in range(200):
        a.send("b", n, 1024)
        await b.until(lambda n=n: len(b.messages) == n + 1)  # type: ignore[misc]
    # The last of them, too, without anybody asking.
    pacer = a.plane._out["b"]._pacer
    await a.until(lambda: pacer.under_way_bytes == 0)
    taken_s = loop.time() - began_s
    assert 0 < a.credits - credits_before <= 2 + taken_s / ACKNOWLEDGE_EVERY_S
