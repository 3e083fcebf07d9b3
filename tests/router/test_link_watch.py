"""Links that routes may not use: closing, pauses that double, opening, forgetting."""

from __future__ import annotations

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop, LayerRange, Route
from router.link_watch import LinkSettings, LinkWatch, edges_of

A, B, C = (NodeId(n) for n in "abc")
AB, AC = (A, B), (A, C)
ROUTE = Route((Hop(A, LayerRange(0, 3)), Hop(B, LayerRange(3, 6))))


def watch(longest_s: float = 60.0) -> LinkWatch:
    return LinkWatch(LinkSettings(3.0, 1.0, longest_s))


def test_a_route_goes_from_the_router_and_back_to_it() -> None:
    assert edges_of(ROUTE) == [(ROUTER, A), AB, (B, ROUTER)]


def test_a_link_that_is_reported_down_for_long_is_closed_until_it_is_reported_up() -> None:
    links = watch()
    assert links.report(A, [(B, 3.0), (C, 0.0)], 10.0) == []
    assert links.report(A, [(B, 3.1), (C, 0.0)], 10.1) == [AB]
    assert links.closed == {AB}
    assert links.report(A, [(B, 4.1), (C, 0.0)], 11.1) == [], "said once"
    assert links.expire(1000.0) == []
    assert links.report(A, [(B, 0.0), (C, 0.0)], 1001.0) == []
    assert links.expire(1001.0) == [AB]
    assert links.closed == frozenset()


def test_a_link_that_lost_rows_is_closed_for_a_pause_that_doubles() -> None:
    links, now_s, pauses = watch(longest_s=6.0), 0.0, []
    for _ in range(5):
        assert links.lost(AB, now_s)
        assert not links.lost(AB, now_s), "one break, many refusals"
        began_s = now_s
        while not links.expire(now_s):
            now_s += 0.25
        pauses.append(now_s - began_s)
    assert pauses == [1.0, 2.0, 4.0, 6.0, 6.0]


def test_the_pause_does_not_open_a_link_that_is_still_down() -> None:
    links = watch()
    links.lost(AB, 0.0)
    assert links.report(A, [(B, 0.5)], 0.5) == [], "closed already"
    assert links.expire(2.0) == []
    links.report(A, [(B, 0.0)], 2.1)
    assert links.expire(2.1) == [AB]


def test_a_link_that_is_back_at_once_still_waits_for_its_pause() -> None:
    links = watch()
    links.lost(AB, 0.0)
    links.report(A, [(B, 0.0)], 0.1)
    assert links.expire(0.9) == []
    assert links.expire(1.0) == [AB]


def test_a_token_over_an_open_link_forgives_it_and_over_a_closed_one_does_not() -> None:
    links = watch()
    links.lost(AB, 0.0)
    links.worked(ROUTE)
    assert links.closed == {AB}
    links.expire(1.0)
    links.worked(ROUTE)
    links.lost(AB, 5.0)
    assert links.expire(6.0) == [AB], "the first pause again"
    links.lost(AB, 6.0)
    assert links.expire(7.9) == []


def test_a_node_that_goes_takes_its_links_along() -> None:
    links = watch()
    for edge in (AB, (B, A), AC, (ROUTER, B)):
        links.lost(edge, 0.0)
    links.forget(B)
    assert links.closed == {AC}
    assert links.lost(AB, 0.0)
    assert links.expire(1.0) == [AB, AC], "nothing is remembered of the earlier process"


def test_the_text_names_some_and_counts_the_others() -> None:
    links = watch()
    assert links.text() == ""
    links.lost(AB, 0.0)
    links.lost((ROUTER, C), 0.0)
    assert links.text() == "the router cannot reach c, a cannot reach b"
    for i in range(5):
        links.lost((NodeId(f"n{i}"), B), 0.0)
    assert links.text().endswith("n0 cannot reach b, n1 cannot reach b, 3 more such links")
