"""Tokens on their way back to the first hop: which go, when a text has ended, who may hand some."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import FrameError
from helix_mq.frames import check_frame, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import (
    DIRECT,
    SAMPLE,
    FrameHeader,
    Refused,
    Row,
    SampleSpec,
    TokenItem,
)
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey
from nodes.inbox import Accepted, NodeView, accept_frame, check_sender
from nodes.ledger import Ledger
from nodes.returning import ends
from router.service import Generation
from router.sessions import Session
from router.text import TextStream
from tests.nodes.worker_bench import Bench, bench, key

PAIR = Route((Hop(NodeId("me"), LayerRange(0, 2)), Hop(NodeId("z"), LayerRange(2, 4))))
OTHER = Route((Hop(NodeId("me"), LayerRange(0, 2)), Hop(NodeId("evil"), LayerRange(2, 4))))
LAST = Route((Hop(NodeId("f"), LayerRange(0, 2)), Hop(NodeId("me"), LayerRange(2, 4))))
WHOLE = Route((Hop(NodeId("me"), LayerRange(0, 4)),))
VIEW = NodeView("me", frozenset({1}), LayerRange(0, 4), 4, 8, 100, 4096)
FLAGS = SAMPLE | DIRECT


def handed(
    sender: str = "z",
    position: int = 4,
    *,
    route: Route = PAIR,
    request: int = 1,
    attempt: int = 0,
    flags: int = FLAGS,
    count: int = 1,
    spec: SampleSpec | None = None,
) -> tuple[FrameHeader, tuple[memoryview, ...]]:
    row = Row(request, attempt, position, count, 0, 0, flags, 0, spec)
    header = FrameHeader(1, sender, "int32", 1, (row,), (pack_route(route),))
    buffers = (np.full(count, 7, np.int32).data.cast("B"),)
    check_frame(header, buffers)
    return header, buffers


def opened(flags: int = FLAGS, *, closed: bool = False) -> Ledger:
    """A ledger in which the router has opened request 1 with a prompt of four tokens."""
    ledger = Ledger()
    accept(handed(ROUTER, 0, count=4, flags=flags), ledger)
    if closed:
        ledger.close(key(1))
    return ledger


def accept(frame: tuple[FrameHeader, tuple[memoryview, ...]], ledger: Ledger) -> Accepted:
    taken: list[int] = []
    out = accept_frame(VIEW, ledger, *frame, lambda: taken.append(1), 1000)
    assert taken == ([] if out.work else [1]), "credit lost or given twice"
    return out


def test_the_last_hop_of_a_direct_sequence_may_hand_tokens_back() -> None:
    frame = handed()
    check_sender(frame[0])
    (work,) = accept(frame, opened()).work
    assert (work.position, work.is_decode, work.payload.direct) == (4, True, True)


@pytest.mark.parametrize(
    "header",
    [
        handed(position=0)[0],
        handed(flags=SAMPLE)[0],
        handed(flags=DIRECT)[0],
        handed(count=2)[0],
        handed(spec=SampleSpec(SamplingParams(), 2, 0))[0],
        handed("evil")[0],
        handed("me")[0],
    ],
)
def test_nothing_else_may_come_from_a_last_hop_nor_that_from_anyone_else(
    header: FrameHeader,
) -> None:
    with pytest.raises(FrameError, match=f"from {header.sender}, due from @router") as caught:
        check_sender(header)
    assert caught.value.reason == "identity"


@pytest.mark.parametrize(
    ("frame", "flags"),
    [
        # A route of the sender's own making, on which it comes last.
        (handed("evil", route=OTHER), FLAGS),
        # Of a sequence whose tokens go by the router.
        (handed(), SAMPLE),
        (handed(request=2), FLAGS),
        (handed(attempt=1), FLAGS),
    ],
)
def test_tokens_of_others_requests_are_counted_and_never_executed(
    frame: tuple[FrameHeader, tuple[memoryview, ...]], flags: int
) -> None:
    check_sender(frame[0])
    ledger = opened(flags)
    out = accept(frame, ledger)
    assert (out.work, out.refused, out.superseded, out.strange) == ([], [], [], 1)
    assert ledger.sequences() == [key(1)]


@pytest.mark.parametrize("attempt", [0, 1])
def test_tokens_that_a_release_overtook_are_dropped_without_a_word(attempt: int) -> None:
    ledger = opened(closed=True)
    if attempt:
        ledger.close(SeqKey(RequestId(1), Attempt(attempt)))
    out = accept(handed(attempt=attempt), ledger)
    assert (out.work, out.refused, out.strange) == ([], [], 0)


def test_a_token_that_comes_twice_is_out_of_order() -> None:
    ledger = opened()
    assert accept(handed(), ledger).work
    assert [r.code for r in accept(handed(), ledger).refused] == ["out_of_order"]


# -- the last hop -------------------------------------------------------------------


@given(
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 8),
        ignore_eos=st.booleans(),
        stop_token_ids=st.sampled_from([(), (3,), (1, 5)]),
    ),
    st.lists(st.integers(0, 6), min_size=8, max_size=8),
)
def test_last_hop_and_router_agree_on_where_a_text_ends(
    sampling: SamplingParams, tokens: list[int]
) -> None:
    class Letters:
        def push(self, token: int) -> str:
            return chr(97 + token)

        def flush(self) -> str:
            return ""

    generation = Generation((9, 9), sampling)
    text = TextStream(Letters(), generation.stop)
    eos = frozenset({0, 6})
    session = Session(RequestId(1), generation, text, 0.0, 9.0, 9000, eos)
    for count, token in enumerate(tokens, 1):
        item = TokenItem(1, 0, 1 + count, token)
        _, finish, _ = session.take(item, 1.0)
        assert ends(sampling, eos, token, count) == (finish is not None)
        if finish is not None:
            return


def prompt(request: int, flags: int = FLAGS, max_tokens: int = 9, attempt: int = 0) -> Row:
    spec = SampleSpec(SamplingParams(max_tokens=max_tokens), 4, 0)
    return Row(request, attempt, 0, 4, 0, 1, flags, 0, spec)


def to_last(b: Bench, *rows: Row) -> None:
    count = sum(r.count for r in rows)
    header = FrameHeader(1, "f", "float32", 8, rows, (pack_route(LAST),))
    b.frames += 1
    data = np.zeros(count * 8, np.float32).data.cast("B")
    b.worker.on_frame(header, (data,), b._consumed)


def returned(b: Bench) -> list[tuple[str, int, int]]:
    """(peer, request, position) of the rows that it handed on."""
    return [
        (peer, row.request, row.position)
        for peer, message in b.sent
        if isinstance(message, FrameHeader)
        for row in message.rows
    ]


async def test_tokens_go_to_the_first_hop_and_to_the_router() -> None:
    async with bench() as b:
        to_last(b, prompt(1), prompt(2, SAMPLE), prompt(3, max_tokens=1))
        await b.until(lambda: len(b.tokens) == 3)
        assert returned(b) == [("f", 1, 4)]
        frame = next(m for _, m in b.sent if isinstance(m, FrameHeader))
        assert (frame.sender, frame.dtype, frame.width, frame.epoch) == ("me", "int32", 1, 1)
        assert (frame.rows[0].flags, frame.rows[0].hop) == (FLAGS, 0)
        check_sender(frame)


async def test_one_node_feeds_itself_until_the_text_ends() -> None:
    async with bench() as b:
        spec = SampleSpec(SamplingParams(max_tokens=5), 4, 0)
        b.frame(Row(1, 0, 0, 4, 0, 0, FLAGS, 0, spec), route=WHOLE)
        await b.until(lambda: len(b.tokens) == 5)
        assert [t.position for t in b.tokens] == [4, 5, 6, 7, 8]
        assert returned(b) == []
        b.release(1)
        assert b.engine.freed == [key(1)]


async def test_what_cannot_be_handed_on_is_refused_after_its_token() -> None:
    async with bench() as b:
        b.unreachable = {"f"}
        to_last(b, prompt(1))
        await b.until(lambda: bool(b.refused))
        assert b.refused == [(1, "no_return")]
        assert [t.position for t in b.tokens] == [4]
        assert b.engine.freed == [key(1)]


async def test_the_first_hops_link_takes_only_what_returns_over_it() -> None:
    async with bench() as b:
        to_last(b, prompt(1), prompt(2, SAMPLE))
        await b.until(lambda: len(b.tokens) == 2)
        b.worker.on_link_lost("f")
        assert b.refused == [(1, "no_return")]
        b.worker.on_link_lost(ROUTER)
        said = [r.code for _, m in b.sent if isinstance(m, Refused) for r in m.items]
        assert said == ["no_return", "no_return", "link_lost"], "the first is said again"


async def test_a_release_ends_the_loop() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        to_last(b, prompt(1))
        await b.engine.started.wait()
        b.release(1)
        b.engine.gate.set()
        await b.until(lambda: b.credited == b.frames)
        assert b.engine.freed == [key(1)]
        assert returned(b) == []
