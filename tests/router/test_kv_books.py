"""The KV books: booked on every hop or none, and always adding up."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from helix_mq.ids import NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from router.kv_books import KvBooks

A, B = NodeId("a"), NodeId("b")
ROUTE = Route((Hop(A, LayerRange(0, 3)), Hop(B, LayerRange(3, 5))))


def books() -> KvBooks:
    result = KvBooks(high_water=0.8)
    result.set_node(A, 30, 16)
    result.set_node(B, 20, 16)
    return result


def test_pages_count_layers_and_round_tokens_up() -> None:
    assert books().pages_for(ROUTE.hops[0], 17) == 6
    assert books().capacity_tokens(ROUTE.hops[0]) == 160


def test_the_mark_holds_but_an_empty_node_takes_what_fits() -> None:
    b = books()
    assert b.has_room(ROUTE.hops[0], 160)
    assert not b.has_room(ROUTE.hops[0], 161)
    b.reserve(RequestId(1), ROUTE, 16)
    assert b.has_room(ROUTE.hops[0], 16 * 7)
    assert not b.has_room(ROUTE.hops[0], 16 * 8)


def test_growth_goes_past_the_mark_and_comes_back_whole() -> None:
    b = books()
    b.reserve(RequestId(1), ROUTE, 16)
    b.grow(RequestId(1), ROUTE, 170)
    assert b.book(A).reserved_pages == 33
    b.release(RequestId(1))
    assert b.book(A).reserved_pages == b.book(B).reserved_pages == 0


def test_an_unknown_node_has_no_room() -> None:
    assert not books().has_room(Hop(NodeId("c"), LayerRange(0, 1)), 1)


class BooksMachine(RuleBasedStateMachine):
    """Random bookings, growth, releases and node losses; the sums hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.books = books()
        self.running: dict[RequestId, int] = {}
        self.next = 0

    @rule(tokens=st.integers(1, 80))
    def start(self, tokens: int) -> None:
        if all(self.books.has_room(hop, tokens) for hop in ROUTE.hops):
            request = RequestId(self.next)
            self.next += 1
            self.books.reserve(request, ROUTE, tokens)
            self.running[request] = tokens

    @rule(more=st.integers(1, 40), pick=st.integers(0, 100))
    def grow(self, more: int, pick: int) -> None:
        if self.running:
            request = sorted(self.running)[pick % len(self.running)]
            self.running[request] += more
            self.books.grow(request, ROUTE, self.running[request])

    @rule(pick=st.integers(0, 100))
    def end(self, pick: int) -> None:
        if self.running:
            request = sorted(self.running)[pick % len(self.running)]
            del self.running[request]
            self.books.release(request)

    @rule()
    def lose_and_return(self) -> None:
        self.books.drop_node(B)
        self.books.set_node(B, 20, 16)

    @invariant()
    def adds_up(self) -> None:
        self.books.check(self.running)


TestBooks = BooksMachine.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_check_finds_a_leak() -> None:
    b = books()
    b.reserve(RequestId(1), ROUTE, 16)
    with pytest.raises(AssertionError):
        b.check([])
