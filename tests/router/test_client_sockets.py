"""The router's side of the SDK protocol, driven message by message."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from helix_mq.client import Client
from helix_mq.errors import (
    ConnectionLost,
)
from helix_mq.frames import encode
from helix_mq.keys import AllowList, KeyPair
from helix_mq.messages import client as wire
from helix_mq.transport import (
    ServerSecurity,
    ZmqTransport,
)
from router.clients import ClientSockets
from tests.echo_service import EchoService
from tests.router.sdk_setup import Bench, no_keys, submit, until


async def test_resume_replays_from_the_asked_delta_even_after_the_end(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    await raw.until_kind(wire.Done)
    again = await bench.raw()
    again.send(wire.Resume(9, accepted.request, 3))
    await again.until_kind(wire.Done)
    assert [m.index for m in again.got if isinstance(m, wire.Delta)] == [3, 4]
    assert {m.reference for m in again.got} == {9}  # type: ignore[attr-defined]
    again.send(wire.Resume(9, accepted.request, 6))
    failed = await again.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "there are 5" in failed.message


async def test_a_stream_is_kept_for_its_grace_and_no_longer(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    await raw.until_kind(wire.Done)
    bench.clock.advance(29)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 1
    bench.clock.advance(2)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 0
    raw.send(wire.Resume(7, accepted.request, 0))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert failed.code == "connection_lost"


async def test_a_silent_client_has_its_streams_cancelled_and_is_told(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    await raw.until_kind(wire.Delta)
    bench.clock.advance(20)
    raw.send(wire.Keepalive(1))
    await raw.until_kind(wire.Keepalive)
    bench.clock.advance(20)
    bench.sockets.sweep()
    assert len(bench.service.open) == 1, "it was heard 20 s ago"
    bench.clock.advance(11)
    bench.sockets.sweep()
    assert not bench.service.open
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "not heard from this client for 30 s" in failed.message


async def test_a_client_that_went_away_has_its_streams_cancelled(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    await raw.until_kind(wire.Delta)
    assert raw.connection is not None
    await raw.connection.close()
    await until(lambda: bench.sockets.statistics().clients == 0)
    bench.clock.advance(29)
    bench.sockets.sweep()
    assert bench.service.open, "it may still come back"
    bench.clock.advance(2)
    bench.sockets.sweep()
    assert not bench.service.open
    await until(lambda: bench.sockets.statistics().open_streams == 0)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 0


async def test_bounds_on_streams_and_clients(bench: Bench) -> None:
    bench.service.hold_at = 0
    raw = await bench.raw()
    raw.send(submit(1), submit(2), submit(3))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert (failed.reference, failed.code, failed.http_status) == (3, "queue_full", 429)
    second, third, fourth = await bench.raw(), await bench.raw(), await bench.raw()
    second.send(submit(4), submit(5))
    third.send(submit(6))
    failed = await third.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "which is the limit" in failed.message
    fourth.send(submit(8))
    failed = await fourth.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "too many clients" in failed.message
    await bench.service.until_open(4)


async def test_ended_streams_give_way_to_new_ones(bench: Bench) -> None:
    raw = await bench.raw()
    for reference in range(10):
        raw.got.clear()
        raw.send(submit(reference))
        await raw.until_kind(wire.Done)
    assert bench.sockets.statistics().kept_streams == 4


async def test_another_user_cannot_resume_a_stream(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    stream = bench.sockets._book.streams()[0]
    stream.user = "somebody else's key"
    thief = await bench.raw()
    thief.send(wire.Resume(7, accepted.request, 0))
    failed = await thief.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "does not know" in failed.message
    assert not any(isinstance(m, wire.Delta) for m in thief.got)


async def test_bad_messages_are_counted_and_answered_where_possible(bench: Bench) -> None:
    raw = await bench.raw()
    assert raw.connection is not None
    bad = msgspec.structs.replace(submit(5), priority=9)
    raw.connection.send(encode(bad))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert (failed.reference, failed.http_status) == (5, 400)
    raw.connection.send([b"\x01\x40", b"\xc1"])
    raw.connection.send([b"\x01\xf0", b"\x90"])
    raw.connection.send([b"x"])
    raw.send(wire.Done(1, "stop", 1, 1, wire.Timings(0, 0, 0, 0)))
    raw.send(submit(6))
    await raw.until_kind(wire.Done)
    counts = dict(bench.sockets.statistics().bad_messages)
    assert counts == {"bad_field": 1, "not_msgpack": 1, "unknown_kind": 1, "parts": 1, "kind": 1}


async def test_exactly_one_of_prompt_messages_ids(bench: Bench) -> None:
    raw = await bench.raw()
    both = msgspec.structs.replace(submit(5), token_ids=(1, 2))
    raw.send(both)
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "exactly one" in failed.message
    raw.got.clear()
    raw.send(msgspec.structs.replace(submit(6), prompt=None, token_ids=(1, 999_999)))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "999999 is outside the vocabulary" in failed.message


async def test_a_cancel_right_behind_the_submission_counts(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(5), wire.Cancel(5))
    done = await raw.until_kind(wire.Done)
    assert isinstance(done, wire.Done)
    assert done.finish_reason == "cancelled"
    assert not bench.service.open


async def test_a_slow_connection_gets_everything_in_order(bench: Bench) -> None:
    raw = await bench.raw()
    listener = bench.sockets._listener
    assert listener is not None
    refusals = iter([False, True, False, False, True, True] * 3)
    real_send = listener.send

    def sticky(peer: bytes, parts: object) -> bool:
        return next(refusals, True) and real_send(peer, parts)  # type: ignore[arg-type]

    listener.send = sticky  # type: ignore[method-assign]
    raw.send(submit(5, max_tokens=20))
    await raw.until_kind(wire.Done)
    assert [m.index for m in raw.got if isinstance(m, wire.Delta)] == list(range(20))


async def test_keys_are_asked_for_and_shown(service: EchoService, tmp_path: Path) -> None:
    server, friend, stranger = KeyPair.new(), KeyPair.new(), KeyPair.new()
    security = no_keys()
    security.key, security.allow = server, AllowList({"friend": friend.public})
    assert isinstance(security.server(), ServerSecurity)
    transport = ZmqTransport()
    sockets = ClientSockets(service, transport, "tcp://127.0.0.1:0", security)
    await sockets.start()
    try:
        async with Client(sockets.endpoint, key=friend, server_key=server.public) as client:
            assert (await client.generate("x", max_tokens=2)).usage.output_tokens == 2
        with pytest.raises(ConnectionLost, match=r"allow-list.*keys allow"):
            async with Client(sockets.endpoint, key=stranger, server_key=server.public):
                pass
    finally:
        await sockets.close()
        await transport.close()
