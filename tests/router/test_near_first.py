"""Near edges first: within the flow, all that is asked for, and nothing far that need not be."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import ROUTER, NodeId
from router.flows import LiveNode, live_flow
from router.near_first import HEADROOM, NEAR_S, Edge, all_near, near_first
from router.routes import FlowWeights
from router.schedulers import MaxFlowScheduler
from tests.router.test_schedulers import LAYERS, clusters

A, B, C, D, E = (NodeId(n) for n in "abcde")
FAR_S = 0.06

# a is near the router, and so is b behind it; c and d are across an ocean.
APART = FlowWeights(
    4,
    {
        ROUTER: ((A, 100.0),),
        A: ((B, 60.0), (C, 40.0)),
        B: ((D, 20.0), (E, 40.0)),
        C: ((D, 40.0),),
    },
    {A: 1, B: 2, C: 2, D: 4, E: 4},
    link_s={
        (ROUTER, A): 0.001,
        (A, B): 0.001,
        (A, C): FAR_S,
        (B, D): FAR_S,
        (B, E): 0.001,
        (C, D): 0.001,
    },
)


def edges_of(weights: FlowWeights) -> dict[NodeId, list[Edge]]:
    return MaxFlowScheduler(weights)._edges


def shares(weights: FlowWeights, asked: float) -> dict[tuple[NodeId, NodeId], float]:
    edges = edges_of(weights)
    found = near_first(edges, weights.end_of, asked)
    return {
        (source, edge.node): share
        for source, out in edges.items()
        for edge, share in zip(out, found[source], strict=True)
    }


def served(
    scheduler: MaxFlowScheduler, times: int, full: frozenset[NodeId] = frozenset()
) -> Counter[str]:
    routes: Counter[str] = Counter()
    for _ in range(times):
        route = scheduler.choose(10, lambda hop: hop.node not in full)
        assert route is not None
        routes["".join(route.nodes)] += 1
    return routes


def test_little_goes_by_the_nearest_edges_alone() -> None:
    found = shares(APART, 10.0)
    assert found[A, B] == found[B, E] == pytest.approx(10.0 * HEADROOM)
    assert found[A, C] == found[B, D] == 0.0


def test_what_near_edges_do_not_carry_goes_farther() -> None:
    """b passes on 40 nearby, and 50 come to it."""
    found = shares(APART, 50.0 / HEADROOM)
    assert found[A, B] == pytest.approx(50.0)
    assert found[A, C] == 0.0
    assert found[B, E] == pytest.approx(40.0)
    assert found[B, D] == pytest.approx(10.0)
    found = shares(APART, 80.0 / HEADROOM)
    assert (found[A, B], found[A, C]) == pytest.approx((60.0, 20.0))
    assert found[C, D] == pytest.approx(20.0)


@given(clusters(), st.floats(0.01, 1e6), st.randoms(use_true_random=False))
def test_no_edge_gets_more_than_its_flow_and_all_that_is_asked_for_gets_through(
    nodes: list[LiveNode], asked: float, random: object
) -> None:
    flow = live_flow(LAYERS, nodes).weights
    draw = random.choice  # type: ignore[attr-defined]
    hops_s = {
        (source, node): draw([0.0, 0.001, 0.03, 0.1])
        for source, out in flow.edges.items()
        for node, _ in out
    }
    weights = FlowWeights(LAYERS, flow.edges, flow.end_of, flow.transitions, {}, hops_s)
    edges, found = edges_of(weights), shares(weights, asked)
    coming = {ROUTER: min(HEADROOM * asked, sum(e.flow for e in edges[ROUTER]))}
    for source in sorted(edges, key=lambda n: weights.end_of.get(n, 0)):
        out = edges[source]
        given_on = [found[source, edge.node] for edge in out]
        for edge, share in zip(out, given_on, strict=True):
            assert 0 <= share <= edge.flow * (1 + 1e-9)
            if source in coming:
                coming[edge.node] = coming.get(edge.node, 0.0) + share
        if source in coming and coming[source] > 0:
            # Edges too thin to be used are left out of what can go on.
            most = sum(edge.flow for edge in out)
            assert sum(given_on) == pytest.approx(min(coming[source], most), rel=1e-5)
            for near, far in pairwise(out):
                if found[source, far.node] > 0 and far.way_s - near.way_s > NEAR_S:
                    assert found[source, near.node] == pytest.approx(near.flow)


@given(clusters())
def test_all_that_the_flow_could_pass_keeps_its_proportions(nodes: list[LiveNode]) -> None:
    """Less of them behind edges that were too thin to be used."""
    edges = edges_of(live_flow(LAYERS, nodes).weights)
    assert all_near(edges)
    found = near_first(edges, {n.name: n.layers.end for n in nodes}, inf)
    for source, out in edges.items():
        whole = sum(found[source]) / sum(edge.flow for edge in out)
        assert whole <= 1 + 1e-9
        assert found[source] == pytest.approx([whole * edge.flow for edge in out])


def test_edges_about_as_near_share_by_their_flow() -> None:
    weights = FlowWeights(
        4,
        {ROUTER: ((A, 80.0),), A: ((B, 30.0), (C, 10.0), (D, 40.0))},
        {A: 1, B: 4, C: 4, D: 4},
        link_s={(A, B): 0.01, (A, C): 0.01 + NEAR_S / 2, (A, D): 0.2},
    )
    scheduler = MaxFlowScheduler(weights)
    scheduler.wants(8.0)
    assert served(scheduler, 400) == {"ab": 300, "ac": 100}
    assert not all_near(edges_of(weights))


def test_how_far_the_first_node_is_counts_once_per_request_and_so_for_no_preference() -> None:
    """Tokens go from the last node to the first, which are both there."""
    weights = FlowWeights(
        4,
        {ROUTER: ((A, 10.0), (B, 10.0)), A: ((C, 10.0),), B: ((D, 10.0),)},
        {A: 2, B: 2, C: 4, D: 4},
        link_s={(ROUTER, A): 0.001, (A, C): 0.001, (ROUTER, B): 0.1, (B, D): 0.001},
    )
    scheduler = MaxFlowScheduler(weights)
    scheduler.wants(1.0)
    assert served(scheduler, 10) == {"ac": 5, "bd": 5}
    assert scheduler.next_nodes(ROUTER) == [A, B]


def test_requests_go_near_first_and_far_as_more_is_asked_for() -> None:
    scheduler = MaxFlowScheduler(APART)
    scheduler.wants(0.0)
    assert served(scheduler, 20) == {"abe": 20}
    scheduler.wants(100.0)
    assert served(scheduler, 100) == {"abe": 40, "abd": 20, "acd": 40}
    scheduler.wants(1.0)
    assert served(scheduler, 20) == {"abe": 20}


def test_far_nodes_are_taken_at_once_where_near_ones_have_no_room() -> None:
    scheduler = MaxFlowScheduler(APART)
    scheduler.wants(1.0)
    assert served(scheduler, 10, frozenset({E})) == {"abd": 10}
    assert served(scheduler, 10, frozenset({B})) == {"acd": 10}
    assert served(scheduler, 10) == {"abe": 10}
    assert scheduler.choose(10, lambda hop: hop.node not in {D, E}) is None


def test_without_the_preference_proportions_are_those_of_the_flow() -> None:
    scheduler = MaxFlowScheduler(APART, prefer_near=False)
    scheduler.wants(1.0)
    assert served(scheduler, 100) == {"abe": 40, "abd": 20, "acd": 40}


def test_flows_that_change_all_the_time_are_followed_as_well() -> None:
    """Were what has been given forgotten each time, the widest would get all of it."""
    scheduler = MaxFlowScheduler(APART, prefer_near=False)
    routes: Counter[str] = Counter()
    for i in range(200):
        nudged = 1 + i % 3 * 1e-3
        edges = {s: tuple((n, f * nudged) for n, f in out) for s, out in APART.edges.items()}
        scheduler.replace(FlowWeights(4, edges, APART.end_of, {}, {}, APART.link_s))
        routes += served(scheduler, 1)
    assert routes == {"abe": 80, "abd": 40, "acd": 80}


def test_who_had_no_room_for_long_is_not_flooded_once_it_has() -> None:
    weights = FlowWeights(4, {ROUTER: ((A, 1.0), (B, 1.0))}, {A: 4, B: 4})
    scheduler = MaxFlowScheduler(weights)
    served(scheduler, 100, frozenset({B}))
    scheduler.replace(weights)
    assert served(scheduler, 10)["b"] <= 7
