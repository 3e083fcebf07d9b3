"""Peers that lie, flood and steal, against the real router and real nodes in one process.

The attacker speaks the wire itself. After each attack honest requests give the right tokens, and
leaving the cluster checks that no page, booking or sequence is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from helix_mq.errors import LocalError
from helix_mq.frames import Buffer, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import data
from helix_mq.sampling import SamplingParams
from nodes import inbox
from router.service import Broken, Delta, EventStream, Finished
from tests.attacker import WAIT_S, attacker, bad, node_data, router_data
from tests.cluster import Cluster, cluster, greedy

CHAIN = {"a": "0:3", "b": "3:6"}
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("b"), LayerRange(3, 6)))))
PROMPT = (1, 2, 3)
SPEC = data.SampleSpec(SamplingParams(logprobs=True, top_logprobs=2), 1, 0)


async def tokens_of(
    stream: EventStream, seen: Callable[[int], object] = lambda count: None
) -> tuple[int, ...]:
    """All tokens of a stream that must end well; `seen` is told how many have come, at each."""
    tokens: list[int] = []
    async with asyncio.timeout(WAIT_S):
        async for event in stream:
            match event:
                case Delta(token=int(token)):
                    tokens.append(token)
                    seen(len(tokens))
                case Finished(finish_reason="length"):
                    return tuple(tokens)
                case Broken(error):
                    raise error
    raise AssertionError("the stream ended without an end")


async def undisturbed(c: Cluster, attack: Callable[[EventStream], object]) -> None:
    """A stream that is under way when `attack` is made gives the tokens it would give alone."""
    wanted = (await c.run(greedy(PROMPT, 60))).token_ids
    stream = c.app.submit(greedy(PROMPT, 60))
    assert await tokens_of(stream, lambda count: attack(stream) if count == 4 else None) == wanted


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


# -- the nodes' data sockets ------------------------------------------------------


def token_frame(
    c: Cluster, sender: str, rows: tuple[data.Row, ...], token: int = 7
) -> tuple[data.FrameHeader, Buffer]:
    """For node a, the first hop."""
    header = data.FrameHeader(c.app.core.cluster.epoch, sender, "int32", 1, rows, (ROUTE,))
    return header, np.full(sum(r.count for r in rows), token, "<i4").data.cast("B")


def hidden_frame(
    c: Cluster, rows: tuple[data.Row, ...], value: float
) -> tuple[data.FrameHeader, Buffer]:
    """For node b, from node a."""
    header = data.FrameHeader(c.app.core.cluster.epoch, "a", "float32", 64, rows, (ROUTE,))
    count = sum(r.count for r in rows)
    return header, np.full((count, 64), value, "<f4").data.cast("B")


def row(request: int, count: int = 1, *, attempt: int = 0, hop: int = 0) -> data.Row:
    return data.Row(request, attempt, 0, count, 0, hop, data.SAMPLE, 0, SPEC)


async def test_rows_come_from_the_hop_before_or_not_at_all(tiny_folder: Path) -> None:
    """Else whoever connects could open, supersede or spoil any request of the cluster."""
    async with (
        cluster(tiny_folder, CHAIN) as c,
        attacker(c, node_data(c, "a")) as at_a,
        attacker(c, node_data(c, "b")) as at_b,
    ):

        def steal(stream: EventStream) -> None:
            for attempt in (0, 1, (1 << 31) - 1):
                mine = (row(stream.request, attempt=attempt),)
                at_a.say(*token_frame(c, "evil", mine))
                at_a.say(*token_frame(c, "@router", mine))
                at_a.say(*token_frame(c, "evil", mine, token=1 << 30))
                theirs = (row(stream.request, attempt=attempt, hop=1),)
                at_b.say(*hidden_frame(c, theirs, 0.0))
                at_b.say(data.Release((data.ReleaseItem(stream.request, attempt),)))

        await undisturbed(c, steal)
        assert (bad(c, "evil", "a"), bad(c, "evil", "b")) == (9, 6)


async def test_the_id_of_one_request_does_not_tell_the_next(tiny_folder: Path) -> None:
    """A member may write any route in which it is the hop before, and any id."""
    async with cluster(tiny_folder, CHAIN) as c:
        streams = [c.app.submit(greedy(PROMPT, 1)) for _ in range(4)]
        ids = [stream.request for stream in streams]
        gaps = [after - before for before, after in pairwise(ids)]
        assert min(gaps) > 0
        assert sum(gaps) > 1 << 20
        for stream in streams:
            await tokens_of(stream)


async def test_tokens_are_handed_back_by_the_last_hop_or_not_at_all(tiny_folder: Path) -> None:
    """Also under the name of a node of the cluster that is another request's last hop, or on no
    route of the request at all."""
    pair = Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("c"), LayerRange(3, 6))))
    async with (
        cluster(tiny_folder, CHAIN, token_return="direct") as c,
        attacker(c, node_data(c, "a")) as stranger,
        attacker(c, node_data(c, "a"), "c") as member,
        attacker(c, node_data(c, "a"), "b") as last,
    ):

        def hand(stream: EventStream) -> None:
            length = len(PROMPT) + len(c.app.core.sessions()[stream.request].output)
            for position in (0, length, length + 1):
                for attempt in (0, 1):
                    flags = data.SAMPLE | data.DIRECT
                    mine = data.Row(stream.request, attempt, position, 1, 0, 0, flags, 0)
                    stranger.say(*token_frame(c, "evil", (mine,)))
                    header, ids = token_frame(c, "c", (mine,))
                    member.say(header, ids)
                    member.say(msgspec.structs.replace(header, routes=(pack_route(pair),)), ids)
            # By its rightful sender, but of an attempt that nobody has begun.
            last.say(*token_frame(c, "b", (data.Row(stream.request, 1, 9, 1, 0, 0, flags, 0),)))

        await undisturbed(c, hand)
        await c.until(lambda: bad(c, "b", "a") == 1, "all were counted")
        assert (bad(c, "evil", "a"), bad(c, "c", "a")) == (6, 12)


async def test_open_sequences_are_bounded_and_end_by_themselves(tiny_folder: Path) -> None:
    """Opened by thousands under the router's own name, without a deadline, never released."""
    async with cluster(tiny_folder, CHAIN) as c:
        worker = c.daemons["a"].worker
        assert worker is not None
        async with attacker(c, node_data(c, "a"), "@router") as evil:
            for start in range(0, 32_768, 8192):
                rows = tuple(row((1 << 50) + i) for i in range(start, start + 8192))
                evil.say(*token_frame(c, "@router", rows))
            await c.until(lambda: worker.statistics().open_requests >= 16_000, "many are open")
            await asyncio.sleep(0)
            assert worker.statistics().open_requests <= 16_384
        later_ms = inbox.MAX_SEQUENCE_MS + int(worker._clock.wall_s() * 1000)
        assert len(worker._ledger.expired(later_ms + 1)) == worker.statistics().open_requests
        worker.close_all()
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5


async def test_a_sender_without_regard_for_credit_is_refused(tiny_folder: Path) -> None:
    """64 MiB are granted; all beyond four times that is dropped at once, and takes no memory."""
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, node_data(c, "b"), "a") as evil:
        daemon = c.daemons["b"]
        links = daemon._plane._in
        await c.until(lambda: any(x.link == 1 for x in links.values()), "it is greeted")
        link = next(x for x in links.values() if x.link == 1)
        rows = tuple(row((1 << 50) + i, 512, hop=1) for i in range(256))
        header, buffer = hidden_frame(c, rows, 0.5)
        most = 0
        for number in range(20):
            evil.say(header, buffer)
            evil.say(data.LinkHello("a", 1, 2 + number))
            await c.until(lambda n=number: bad(c, "a", "b") > n, "it came")
            most = max(most, link._credit.outstanding_bytes)
        assert 1 << 25 < most <= (5 << 26) + 4096 * len(rows)
        assert bad(c, "a", "b") == 20
        assert daemon.worker is not None
        daemon.worker.close_all()
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5


async def test_activations_that_are_no_numbers_cost_nobody_else_anything(tiny_folder: Path) -> None:
    """They share steps, and later KV pages, with honest rows."""
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, node_data(c, "b"), "a") as evil:
        prompts = [tuple(range(i, i + 40)) for i in range(6)]
        wanted = [(await c.run(greedy(p, 40))).token_ids for p in prompts]
        worker = c.daemons["b"].worker
        assert worker is not None

        def spoilt() -> int:
            return sum(r.code == "logits_not_finite" for r in worker._teller.refusals)

        values = [float("nan"), float("inf"), float("-inf")] * 40
        frames = (
            hidden_frame(c, (row((1 << 50) + number, 64, hop=1),), value)
            for number, value in enumerate(values)
        )

        def attack(_: Delta) -> None:
            """With each honest token comes one of them."""
            for frame in islice(frames, 1):
                evil.say(*frame)

        async def honest(prompt: tuple[int, ...], tokens: tuple[int, ...]) -> None:
            """Until the last of them is refused, so that steps are shared all the time."""
            while spoilt() < len(values):
                result = await c.run(greedy(prompt, 40), attack)
                assert (result.token_ids, result.finish.reroutes) == (tokens, 0)

        await asyncio.gather(*(honest(p, w) for p, w in zip(prompts, wanted, strict=True)))
        await c.until(lambda: worker.statistics().open_requests == 0, "all were refused")
        assert spoilt() == len(values)
        assert [(await c.run(greedy(p, 40))).token_ids for p in prompts] == wanted


async def test_a_model_that_gives_no_numbers_is_an_error_soon(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN) as c:
        loaded = c.daemons["b"].loaded
        assert loaded is not None
        norm = loaded.engine._model._weights.final_norm
        assert norm is not None
        kept = norm.clone()
        norm.fill_(float("nan"))
        with pytest.raises(LocalError, match="no numbers"):
            await tokens_of(c.app.submit(greedy(PROMPT, 5)))
        norm.copy_(kept)
        assert (await c.run(greedy(PROMPT, 5))).finish.reroutes == 0


# -- the control socket -----------------------------------------------------------
