"""Route choice: shares follow the flow, full nodes are passed over, dead ends are backed out of."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop
from router.routes import FlowWeights, widest_route_tokens
from router.schedulers import MaxFlowScheduler

A, B, C, D = (NodeId(n) for n in "abcd")

DIAMOND = FlowWeights(
    num_layers=10,
    edges={ROUTER: ((A, 30.0), (B, 10.0)), A: ((C, 30.0),), B: ((C, 10.0),)},
    end_of={A: 4, B: 6, C: 10},
)

EMPTY = FlowWeights(4, {}, {})


def anywhere(hop: Hop) -> bool:
    return True


def test_shares_follow_the_flow() -> None:
    chooser = MaxFlowScheduler(DIAMOND)
    firsts: Counter[str] = Counter()
    for _ in range(400):
        route = chooser.choose(100, anywhere)
        assert route is not None
        firsts[route.hops[0].node] += 1
    assert firsts == {"a": 300, "b": 100}


def test_hops_are_contiguous_whatever_the_overlap() -> None:
    chooser = MaxFlowScheduler(DIAMOND)
    texts = {str(chooser.choose(1, anywhere)) for _ in range(8)}
    assert texts == {"a[0:4] > c[4:10]", "b[0:6] > c[6:10]"}


def test_a_full_node_is_passed_over_and_does_not_count() -> None:
    chooser = MaxFlowScheduler(DIAMOND)
    for _ in range(5):
        route = chooser.choose(10, lambda hop: hop.node != A)
        assert route is not None
        assert route.hops[0].node == B
    assert chooser.choose(10, lambda hop: hop.node != C) is None


def test_a_dead_end_is_backed_out_of() -> None:
    weights = FlowWeights(
        num_layers=10,
        edges={ROUTER: ((A, 90.0), (B, 10.0)), A: ((C, 90.0),), B: ((D, 10.0),)},
        end_of={A: 5, B: 5, C: 10, D: 10},
    )
    route = MaxFlowScheduler(weights).choose(1, lambda hop: hop.node != C)
    assert route is not None
    assert route.nodes == (B, D)


def test_trickles_are_not_used() -> None:
    weights = FlowWeights(4, {ROUTER: ((A, 99.0), (B, 1.0))}, {A: 4, B: 4})
    chooser = MaxFlowScheduler(weights)
    assert {chooser.choose(1, anywhere).nodes for _ in range(300)} == {(A,)}  # type: ignore[union-attr]


def test_widest_route() -> None:
    room = {A: 100, B: 60, C: 80}
    assert widest_route_tokens(DIAMOND, DIAMOND.all_next, lambda hop: room[hop.node]) == 80
    room[A] = 10
    assert widest_route_tokens(DIAMOND, DIAMOND.all_next, lambda hop: room[hop.node]) == 60
    assert widest_route_tokens(EMPTY, EMPTY.all_next, lambda hop: 1) == 0


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.integers(1, 8), st.booleans()),
        min_size=1,
    ),
    st.data(),
)
def test_a_route_is_found_whenever_one_exists(
    nodes: dict[str, tuple[int, bool]], data: st.DataObject
) -> None:
    """Against a search of all paths."""
    ends = {NodeId(n): end for n, (end, _) in nodes.items()}
    full = {NodeId(n) for n, (_, is_full) in nodes.items() if is_full}
    edges: dict[NodeId, tuple[tuple[NodeId, float], ...]] = {}
    for source in [ROUTER, *ends]:
        targets = data.draw(st.lists(st.sampled_from(sorted(ends)), unique=True))
        edges[source] = tuple((t, 1.0) for t in sorted(targets))
    weights = FlowWeights(8, edges, ends)

    def reachable(source: NodeId, at: int) -> bool:
        return any(
            node not in full
            and ends[node] > at
            and (ends[node] == 8 or reachable(node, ends[node]))
            for node, _ in edges.get(source, ())
        )

    route = MaxFlowScheduler(weights).choose(1, lambda hop: hop.node not in full)
    assert (route is not None) == reachable(ROUTER, 0)
    if route is not None:
        assert route.num_layers == 8
        assert not full & set(route.nodes)


def test_many_like_nodes_are_all_used() -> None:
    """Thirty replicas have a thirtieth of the flow each: little, but no less than the others."""
    replicas = tuple((NodeId(f"n{i:02}"), 10.0) for i in range(30))
    weights = FlowWeights(4, {ROUTER: replicas}, {node: 4 for node, _ in replicas})
    chooser = MaxFlowScheduler(weights)
    routes = [chooser.choose(100, anywhere) for _ in range(60)]
    used = Counter(route.hops[0].node for route in routes if route is not None)
    assert used == {node: 2 for node, _ in replicas}
