"""Traces: kept as bounded as they are asked for, and only what a request's own nodes say."""

from __future__ import annotations

import pytest

from helix_mq.errors import NotServing
from helix_mq.ids import ROUTER, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.control import HopTrace, PhaseTimes
from router.service import Broken, Finished
from router.trace_book import MAX_ATTEMPTS, TraceBook, TracePicture, trace_picture
from router.trace_desk import _request_of

A, B, C = (NodeId(n) for n in "abc")
ROUTE = Route((Hop(A, LayerRange(0, 2)), Hop(B, LayerRange(2, 6))))
OTHER = Route((Hop(C, LayerRange(0, 6)),))
ONE = RequestId(1)
DONE = Finished("length", 10, 11, 0.25, 1.25, 3.25, 0)


def told(request: int, attempt: int = 0, steps: int = 10, each_s: float = 0.05) -> HopTrace:
    decode = PhaseTimes(steps, steps, steps * each_s / 2, steps * each_s / 2, 0.0)
    return HopTrace(request, attempt, 1000, 3.0, PhaseTimes(1, 10, 0.1, 0.3, 0.1), decode, False)


def picture(book: TraceBook, trips: dict[tuple[str, str], float]) -> TracePicture:
    record = book.get(ONE)
    assert record is not None
    return trace_picture(ONE, record, None, 0.0, lambda a, b: trips.get((a, b), 0.0))


def test_the_rest_of_the_time_is_the_wires() -> None:
    book = TraceBook()
    book.routed(ONE, 0, ROUTE, 100.0)
    assert book.told(A, told(1, each_s=0.05))
    assert book.told(B, told(1, each_s=0.03))
    book.ended(ONE, DONE, 103.25)
    trips = {(ROUTER, A): 0.01, (A, B): 0.02, (B, ROUTER): 0.01}
    seen = picture(book, trips)
    assert (seen.state, seen.outcome, seen.decodes, seen.decode_s) == ("finished", "length", 10, 2)
    # Each of ten decodes took 0.2 s, of which 0.08 s on the hops.
    assert seen.wire_s == pytest.approx(0.12)
    assert [w.decode_s for w in seen.wires] == pytest.approx([0.03, 0.06, 0.03])
    assert [(w.sender, w.receiver) for w in seen.wires] == [(ROUTER, A), (A, B), (B, ROUTER)]
    assert [(h.node, h.layers, h.known) for h in seen.hops] == [
        ("a", "layers 0-1", True),
        ("b", "layers 2-5", True),
    ]
    assert seen.missing == ()
    even = picture(book, {(ROUTER, A): 0.01})
    assert [w.decode_s for w in even.wires] == pytest.approx([0.04] * 3)


def test_tokens_that_return_by_themselves_cross_no_link_of_the_router() -> None:
    book = TraceBook()
    book.routed(ONE, 0, ROUTE, 100.0, direct=True)
    book.told(A, told(1, each_s=0.05))
    book.told(B, told(1, each_s=0.03))
    book.ended(ONE, DONE, 103.25)
    seen = picture(book, {(A, B): 0.02, (B, A): 0.01, (ROUTER, A): 9.0})
    assert [(w.sender, w.receiver) for w in seen.wires] == [(A, B), (B, A)]
    assert [w.decode_s for w in seen.wires] == pytest.approx([0.08, 0.04])
    assert "router" not in seen.wire_basis
    alone = TraceBook()
    alone.routed(ONE, 0, OTHER, 100.0, direct=True)
    alone.told(C, told(1, each_s=0.15))
    alone.ended(ONE, DONE, 103.25)
    seen = picture(alone, {})
    assert (seen.wires, seen.wire_s) == ((), pytest.approx(0.05))


def test_what_cannot_be_told_is_said_so() -> None:
    book = TraceBook()
    book.routed(ONE, 0, ROUTE, 100.0)
    book.told(A, told(1))
    book.ended(ONE, DONE, 103.25)
    seen = picture(book, {})
    assert (seen.wire_s, seen.missing) == (None, ("b",))
    assert "b has not told" in seen.wire_basis
    # More than there was is rounding, or a clock that jumps: never less than nothing.
    book.told(A, told(1, each_s=5.0))
    book.told(B, told(1, each_s=5.0))
    assert picture(book, {}).wire_s == 0.0
    book = TraceBook()
    book.routed(ONE, 0, OTHER, 1.0)
    book.routed(ONE, 1, ROUTE, 1.0)
    book.ended(ONE, Broken(NotServing("gone")), 8.5)
    seen = picture(book, {})
    assert (seen.state, seen.attempts, seen.wire_s) == ("failed", 2, None)
    assert seen.total_s == 7.5
    assert "re-routed" in seen.wire_basis
    assert [(h.node, h.attempt) for h in seen.hops] == [("c", 0), ("a", 1), ("b", 1)]


def test_only_nodes_on_a_requests_way_are_believed() -> None:
    book = TraceBook()
    assert not book.told(A, told(1))
    book.routed(ONE, 0, ROUTE, 1.0)
    assert not book.told(C, told(1))
    assert not book.told(A, told(1, attempt=1))
    assert not book.told(A, told(2))
    assert book.told(A, told(1))


def test_nothing_grows() -> None:
    book = TraceBook(kept=5)
    for number in range(100):
        request = RequestId(number)
        for attempt in range(3 * MAX_ATTEMPTS):
            book.routed(request, attempt, ROUTE, 1.0)
            book.told(A, told(number, attempt))
        record = book.get(request)
        assert record is not None
        assert len(record.attempts) == len(record.told) == MAX_ATTEMPTS
        assert book.ended(request, DONE, 1.0) is record
        assert book.ended(request, DONE, 1.0) is None
    assert len(book) == 5
    assert book.get(RequestId(94)) is None
    assert book.get(RequestId(99)) is not None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("18f3c2", 0x18F3C2),
        ("18f3c2.Zm9v-bar", 0x18F3C2),
        ("chatcmpl-18f3c2", 0x18F3C2),
        ("cmpl-18f3c2.Zm9v", 0x18F3C2),
        ("", None),
        ("-5", 5),
        ("zz", None),
        ("1_0", None),
        ("f" * 17, None),
        ("٣", None),
        ("18F3C2", 0x18F3C2),
    ],
)
def test_names_of_requests(name: str, number: int | None) -> None:
    assert _request_of(name) == number
