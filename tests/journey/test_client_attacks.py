"""What clients can do to the router without regard for it, and what it costs the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helix_mq.client import Client
from helix_mq.frames import Message, decode, encode, pack_route, unpack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import client, data
from helix_mq.sampling import SamplingParams
from router import tokenising
from router.clients import ClientSockets
from router.events import SendRow
from router.outgoing import Outgoing
from tests.attacker import Attacker
from tests.cluster import Cluster, cluster, endpoint
from tests.journey.test_attacks import CHAIN, ROUTE


class Deaf(Attacker):
    """Submits, and leaves the answers where they are."""

    def submit(self, reference: int, **fields: object) -> None:
        values: dict[str, object] = {
            "model": "tiny", "prompt": "x", "messages": None, "token_ids": None,
            "sampling": SamplingParams(max_tokens=1), "seeded": True, "limited": True,
            "stop": (), "deadline_s": None,
        } | fields  # fmt: skip
        self.say(client.Submit(reference, **values))  # type: ignore[arg-type]


@asynccontextmanager
async def clients(c: Cluster) -> AsyncIterator[ClientSockets]:
    sockets = ClientSockets(c.app, c.transport, endpoint(c.transport, "sdk"), c.app.security)
    await sockets.start()
    try:
        yield sockets
    finally:
        await sockets.close()


async def test_streams_that_nobody_reads_are_bounded_and_cost_no_time(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN) as c, clients(c) as sockets:
        deaf = Deaf()
        await deaf.dial(c.transport, sockets.endpoint, "deaf")
        sends: Counter[bool] = Counter()
        really = sockets._listener.send  # type: ignore[union-attr]

        def send(peer: bytes, parts: Any) -> bool:
            """The connection takes nothing after the first answer."""
            taken = not sends and really(peer, parts)
            sends[taken] += 1
            return taken

        sockets._listener.send = send  # type: ignore[union-attr,method-assign]
        for number in range(2000):
            # Refused at once: no queue of requests bounds them.
            deaf.submit(number, model="another")
            await asyncio.sleep(0)
        await c.until(lambda: sends.total() >= 2000, "all were judged")
        statistics = sockets.statistics()
        assert statistics.kept_streams + statistics.open_streams == 257
        sends.clear()
        sends[False] = 1
        sockets._retry_stalled()
        assert sends[False] == 2, "one try shows that the connection takes no more"
        assert len(sockets._stalled) == 256
        await deaf.hang_up()


async def test_text_that_waits_for_a_tokenizer_is_bounded(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "MAX_WAITING_CHARS", 24_000)
    async with cluster(tiny_folder, CHAIN) as c, clients(c) as sockets:
        evil = Deaf()
        await evil.dial(c.transport, sockets.endpoint, "evil")
        for number in range(200):
            # Few enough characters to be as many tokens as fit, more than are read on the loop.
            evil.submit(number, prompt="x " * 3000)
        await c.until(lambda: len(evil.heard) == 200, "each was refused")
        codes = Counter(m.header.code for m in evil.heard if isinstance(m.header, client.Failed))
        assert codes == {"context_length_exceeded": 4, "queue_full": 196}
        assert c.app._tokenising.waiting_chars == 0
        evil.submit(300, prompt="x " * (1 << 19))
        await c.until(lambda: len(evil.heard) == 201, "alone it may be as long as it likes")
        await evil.hang_up()


async def test_nobody_reaches_the_streams_of_others(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN) as c, clients(c) as sockets:
        evil = Deaf()
        await evil.dial(c.transport, sockets.endpoint, "evil")
        async with Client(sockets.endpoint, transport=c.transport) as honest:
            wanted = await honest.generate("hello", max_tokens=60, temperature=0, ignore_eos=True)
            options = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
            async with honest.stream("hello", **options) as stream:  # type: ignore[arg-type]
                await anext(stream)
                theirs = sockets._book.streams()[-1]
                for guess in (*range(50), theirs.request or 0):
                    evil.say(client.Cancel(guess))
                    evil.say(client.Resume(guess, str(guess), 0))
                    evil.say(client.Resume(guess, f"{guess:x}", 0))
                    evil.say(client.Cancel(guess))
                async for _ in stream:
                    pass
                assert stream.result().token_ids == wanted.token_ids
        assert not [m for m in evil.heard if not isinstance(m.header, client.Failed)]
        await evil.hang_up()


# -- what is sent on and remembered -------------------------------------------------


def test_parameters_of_many_never_fill_a_header_beyond_what_nodes_read() -> None:
    """A thousand biases in each of a thousand choices: one frame of them would be dropped."""
    bias = tuple((token, -99.5) for token in range(100_000, 101_024))
    sampling = SamplingParams(logit_bias=bias, stop_token_ids=tuple(range(70_000, 70_064)))
    route = unpack_route(ROUTE)
    sent: list[Message] = []

    def send(node: str, header: msgspec.Struct, buffers: Any) -> bool:
        sent.append(decode(encode(header, buffers)))
        return True

    outgoing = Outgoing(send)
    for request in range(1024):
        spec = data.SampleSpec(sampling, 2, 0)
        outgoing.add_row(SendRow(request, 0, 0, (1, 2), route, 5, 0, spec))  # type: ignore[arg-type]
    assert outgoing.flush() == []
    headers = [m.header for m in sent if isinstance(m.header, data.FrameHeader)]
    assert [r.request for h in headers for r in h.rows] == list(range(1024))
    assert 4 <= len(headers) <= 8


def test_long_routes_are_not_kept() -> None:
    """Nobody's route has hundreds of hops; thousands of such would be kept for ever."""

    def blob(hops: int, name: str) -> bytes:
        return pack_route(
            Route(tuple(Hop(NodeId(f"{name}{i}"), LayerRange(i, i + 1)) for i in range(hops)))
        )

    short, long = blob(20, "s"), blob(500, "l")
    assert unpack_route(short) is unpack_route(short)
    assert unpack_route(long) == unpack_route(long)
    assert unpack_route(long) is not unpack_route(long)
