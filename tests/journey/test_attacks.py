"""Peers that lie, flood and steal, against the real router and real nodes in one process.

The attacker speaks the wire itself. After each attack honest requests give the right tokens, and
leaving the cluster checks that no page, booking or sequence is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from helix_mq.frames import Buffer, Message, decode, encode, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import data
from helix_mq.sampling import SamplingParams
from helix_mq.transport import Connection, Delivery, LinkState, Transport
from router.service import Broken, Delta, EventStream, Finished
from tests.cluster import Cluster, cluster, greedy

CHAIN = {"a": "0:3", "b": "3:6"}
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("b"), LayerRange(3, 6)))))
PROMPT = (1, 2, 3)
SPEC = data.SampleSpec(SamplingParams(logprobs=True, top_logprobs=2), 1, 0)
WAIT_S = 20.0


class Attacker:
    """A raw connection: says anything, keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self._up = asyncio.Event()
        self._connection: Connection | None = None

    async def dial(self, transport: Transport, endpoint: str, name: str) -> None:
        def on_message(delivery: Delivery) -> None:
            self.heard.append(decode(delivery.parts))

        def on_state(state: LinkState) -> None:
            if state.connected:
                self._up.set()

        self._connection = await transport.connect(
            endpoint, on_message, routing_id=name.encode(), on_state=on_state
        )
        async with asyncio.timeout(WAIT_S):
            await self._up.wait()

    def say(self, header: msgspec.Struct, *buffers: Buffer) -> None:
        assert self._connection is not None
        assert self._connection.send(encode(header, buffers))

    async def hang_up(self) -> None:
        if self._connection is not None:
            await self._connection.close()


@asynccontextmanager
async def attacker(c: Cluster, endpoint: str, name: str = "evil") -> AsyncIterator[Attacker]:
    """Connected and, on data sockets, greeted as `name`."""
    one = Attacker()
    await one.dial(c.transport, endpoint, name)
    try:
        if endpoint != c.app.control_endpoint:
            one.say(data.LinkHello(name, 1, 1))
        yield one
    finally:
        await one.hang_up()


def router_data(c: Cluster) -> str:
    return c.app._data_endpoint


def node_data(c: Cluster, node: str) -> str:
    return c.daemons[node]._data_endpoint


def bad(c: Cluster, who: str, node: str | None = None) -> int:
    """Bad messages counted against a sender, by the router or by a node."""
    counts = c.app.bad_messages if node is None else c.daemons[node]._plane.bad_messages
    return sum(count for (sender, _), count in counts.items() if sender == who)


async def tokens_of(stream: EventStream) -> tuple[int, ...]:
    """All tokens of a stream that must end well."""
    tokens: list[int] = []
    async with asyncio.timeout(WAIT_S):
        async for event in stream:
            match event:
                case Delta(token=int(token)):
                    tokens.append(token)
                case Finished(finish_reason="length"):
                    return tuple(tokens)
                case Broken(error):
                    raise error
    raise AssertionError("the stream ended without an end")


async def undisturbed(c: Cluster, attack: Callable[[EventStream], object]) -> None:
    """A stream that is under way when `attack` is made gives the tokens it would give alone."""
    wanted = (await c.run(greedy(PROMPT, 60))).token_ids
    stream = c.app.submit(greedy(PROMPT, 60))
    await c.until(lambda: len(c.app.core.sessions()[stream.request].output) > 3, "it runs")
    attack(stream)
    assert await tokens_of(stream) == wanted


# -- the router's data socket ---------------------------------------------------


@pytest.mark.parametrize("code", ["wrong_model", "deadline", "kv_exhausted"])
async def test_nobody_refuses_for_others(tiny_folder: Path, code: str) -> None:
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, router_data(c)) as evil:

        def refuse(stream: EventStream) -> None:
            items = (data.RefusedItem(stream.request, 0, code, "because I say so"),)
            evil.say(data.Refused(1, "evil", items))
            evil.say(data.Refused(1, "b", items))

        await undisturbed(c, refuse)
        assert c.app.core.statistics().running == 0
        assert bad(c, "evil") == 1


async def test_tokens_of_no_vocabulary_move_the_request(tiny_folder: Path) -> None:
    """Under the last hop's own name: a node gone wrong, not a stranger."""
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, router_data(c), "b") as evil:

        def lie(stream: EventStream) -> None:
            items = tuple(
                data.TokenItem(stream.request, 0, position, (1 << 31) - 1 - position % 2)
                for position in range(60)
            )
            evil.say(data.Tokens(1, "b", items))
            top = (data.TopLogprob(260, -1.0),)
            wrong_top = [
                data.TokenItem(stream.request, attempt, position, 1, -1.0, top)
                for attempt in range(3)
                for position in range(60)
            ]
            evil.say(data.Tokens(1, "b", tuple(wrong_top)))

        await undisturbed(c, lie)
