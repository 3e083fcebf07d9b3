"""Live flows: equal to the exact max flow, over a plan's links, and cheap in large clusters."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from router.bottleneck import Cut
from router.flows import LinkMeasured, LiveFlow, LiveNode, MeasuredLinks, live_flow
from router.planned_speeds import PlannedSpeeds
from solver.flow import can_follow, max_flow
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

LAYERS = 6
A, B, C, D = (NodeId(n) for n in "abcd")


def node(name: NodeId, rate: float, nic: float = 1e9) -> ProblemNode:
    """Passes `rate / k` tokens/s with k layers."""
    rates = tuple(rate / k for k in range(1, LAYERS + 1))
    return ProblemNode(name, "t", "", LAYERS, rates, (), nic, nic, 0)


def problem(nodes: list[ProblemNode], links: list[tuple[str, str, float, float]]) -> Problem:
    made = tuple(ProblemLink(NodeId(a), NodeId(b), rate, wait) for a, b, rate, wait in links)
    return Problem("p", LAYERS, 4, 1000, tuple(nodes), made)


def live(name: NodeId, first: int, end: int, rate: float = 60.0) -> LiveNode:
    return LiveNode(name, LayerRange(first, end), rate)


@st.composite
def planned_clusters(draw: st.DrawFn) -> tuple[Problem, list[LiveNode]]:
    names = [NodeId(f"n{i}") for i in range(draw(st.integers(1, 6)))]
    rates = st.one_of(st.just(0.0), st.floats(0.5, 5000.0))
    nodes = [node(n, draw(st.floats(1.0, 1e4)), draw(st.floats(1e5, 1e8))) for n in names]
    ends = [(SOURCE, n) for n in names] + [(n, SINK) for n in names]
    ends += [(a, b) for a in names for b in names if a != b]
    links = [(a, b, 1000 * draw(rates), 0.001) for a, b in ends]
    held = []
    for name in names:
        first = draw(st.integers(0, LAYERS - 1))
        held.append(live(name, first, draw(st.integers(first + 1, LAYERS))))
    return problem(nodes, links), held


@given(planned_clusters())
@settings(max_examples=60)
def test_the_flow_is_the_exact_max_flow(drawn: tuple[Problem, list[LiveNode]]) -> None:
    cluster, nodes = drawn
    placement = Placement(LAYERS, {n.name: n.layers for n in nodes})
    exact = max_flow(cluster, placement).tokens_per_s
    found = live_flow(LAYERS, nodes, PlannedSpeeds(cluster))
    assert found.tokens_per_s == pytest.approx(exact, rel=1e-6, abs=1e-4)
    check(found, nodes)


@given(planned_clusters(), st.data())
@settings(max_examples=40)
def test_closed_links_are_as_if_the_plan_had_none_there(
    drawn: tuple[Problem, list[LiveNode]], data: st.DataObject
) -> None:
    cluster, nodes = drawn
    gone = data.draw(st.lists(st.sampled_from(cluster.links), unique=True))
    closed = {
        (ROUTER if k.src == SOURCE else k.src, ROUTER if k.dst == SINK else k.dst) for k in gone
    }
    without = replace(cluster, links=tuple(k for k in cluster.links if k not in gone))
    found = live_flow(LAYERS, nodes, PlannedSpeeds(cluster), closed)
    assert found == live_flow(LAYERS, nodes, PlannedSpeeds(without))
    check(found, nodes)


def test_a_closed_link_is_left_out_where_nothing_is_planned() -> None:
    nodes = [live(A, 0, 3), live(B, 3, 6), live(C, 3, 6)]
    assert live_flow(LAYERS, nodes, None, {(A, B)}).weights.transitions[A] == (C,)
    assert live_flow(LAYERS, nodes, None, {(C, ROUTER)}).weights.transitions[A] == (B,)
    for closed in ({(ROUTER, A)}, {(A, B), (A, C)}, {(A, B), (C, ROUTER)}):
        flow = live_flow(LAYERS, nodes, None, closed)
        assert (flow.tokens_per_s, flow.weights.transitions[ROUTER]) == (0.0, ())


def check(flow: LiveFlow, nodes: list[LiveNode]) -> None:
    """Edges with flow are transitions, transitions are valid, and flow is kept at every node."""
    held = {n.name: n.layers for n in nodes}
    weights = flow.weights
    for source, after in weights.transitions.items():
        for target in after:
            if source == ROUTER:
                assert held[target].first == 0
            else:
                assert can_follow(held[source], held[target], partial_inference=True)
            assert held[target].end == LAYERS or weights.transitions[target]
    into = dict.fromkeys(held, 0.0)
    for source, edges in weights.edges.items():
        for target, rate in edges:
            assert rate > 0
            assert target in weights.transitions[source]
            into[target] += rate
    for name, layers in held.items():
        if layers.end < LAYERS:
            out = sum(rate for _, rate in weights.edges.get(name, ()))
            assert out == pytest.approx(into[name])
    last = sum(into[name] for name, layers in held.items() if layers.end == LAYERS)
    assert last == pytest.approx(flow.tokens_per_s)


def test_without_a_plan_measured_speeds_decide() -> None:
    nodes = [live(A, 0, 3, 60.0), live(B, 3, 6, 90.0), live(C, 2, 6, 80.0)]
    flow = live_flow(LAYERS, nodes)
    assert flow.tokens_per_s == pytest.approx(20.0)
    assert flow.weights.transitions == {A: (B, C), ROUTER: (A,)}
    check(flow, nodes)


def test_a_plans_speeds_come_before_measured_ones() -> None:
    plan = problem([node(A, 120.0)], [(SOURCE, A, 1e6, 0.0), (A, SINK, 1e6, 0.0)])
    assert live_flow(LAYERS, [live(A, 0, 6)], PlannedSpeeds(plan)).tokens_per_s == pytest.approx(20)


def test_a_plans_links_limit_the_flow_and_missing_ones_carry_none() -> None:
    """a to b passes 5 tokens/s; there is no link from a to c, and one of no bandwidth to d."""
    links = [(SOURCE, A, 1e6, 0.0), (A, B, 5000.0, 0.0), (A, D, 0.0, 0.0)]
    links += [(name, SINK, 1e6, 0.0) for name in (B, C, D)]
    plan = PlannedSpeeds(problem([node(n, 600.0) for n in (A, B, C, D)], links))
    nodes = [live(A, 0, 3), live(B, 3, 6), live(C, 3, 6), live(D, 3, 6)]
    flow = live_flow(LAYERS, nodes, plan)
    assert flow.tokens_per_s == pytest.approx(5.0)
    assert flow.weights.transitions[A] == (B,)


def test_a_link_that_is_missing_at_the_end_ends_serving() -> None:
    plan = problem([node(A, 60.0)], [(SOURCE, A, 1e6, 0.0)])
    flow = live_flow(LAYERS, [live(A, 0, 6)], PlannedSpeeds(plan))
    assert flow.tokens_per_s == 0
    assert flow.weights.transitions[ROUTER] == ()


def test_a_node_that_the_plan_does_not_know_has_wide_links() -> None:
    plan = problem([node(A, 600.0)], [(SOURCE, A, 1e6, 0.0), (A, SINK, 1e6, 0.0)])
    nodes = [live(A, 0, 3), live(B, 3, 6, 30.0)]
    assert live_flow(LAYERS, nodes, PlannedSpeeds(plan)).tokens_per_s == pytest.approx(10.0)


def test_expected_hop_times_are_link_node_and_way_back() -> None:
    """Back to the first node: by the router, or straight where that is sooner and open."""
    links = [(SOURCE, A, 4e3, 0.01), (A, B, 1e4, 0.02), (B, SINK, 8e3, 0.03)]
    plan = problem([node(A, 30.0), node(B, 60.0)], links)
    nodes = [live(A, 0, 3), live(B, 3, 6)]
    flow = live_flow(LAYERS, nodes, PlannedSpeeds(plan))
    by_router_s = 0.0005 + 0.03 + 0.001 + 0.01
    assert flow.weights.hop_s[ROUTER, A] == pytest.approx(0.001 + 0.01 + 1 / 10)
    assert flow.weights.hop_s[A, B] == pytest.approx(0.1 + 0.02 + 1 / 20 + by_router_s)
    straight = PlannedSpeeds(problem([node(A, 30.0), node(B, 60.0)], [*links, (B, A, 1e4, 0.015)]))
    there_s = 0.1 + 0.02 + 1 / 20
    flow = live_flow(LAYERS, nodes, straight)
    assert flow.weights.hop_s[A, B] == pytest.approx(there_s + 0.015)
    measured = MeasuredLinks({(B, A): LinkMeasured(0.0, 0.004)}, 4, 100)
    flow = live_flow(LAYERS, nodes, straight, measured=measured)
    assert flow.weights.hop_s[A, B] == pytest.approx(there_s + 0.004)
    flow = live_flow(LAYERS, nodes, straight, closed={(B, A)}, measured=measured)
    assert flow.weights.hop_s[A, B] == pytest.approx(there_s + by_router_s)


def test_a_node_with_the_whole_model_has_no_way_back() -> None:
    plan = problem([node(A, 30.0)], [(SOURCE, A, 4e3, 0.01), (A, SINK, 8e3, 0.03)])
    flow = live_flow(LAYERS, [live(A, 0, 6)], PlannedSpeeds(plan))
    assert flow.weights.hop_s[ROUTER, A] == pytest.approx(0.001 + 0.01 + 1 / 5)


@given(st.floats(0, 1e-9))
def test_one_that_measured_next_to_nothing_still_serves(rate: float) -> None:
    """It may be the only one with its layers, however fast the others are."""
    nodes = [live(A, 0, 3, 1e9), live(B, 3, 6, rate)]
    assert live_flow(LAYERS, nodes).tokens_per_s > 0


def test_no_flow_without_cover() -> None:
    assert live_flow(LAYERS, ()).tokens_per_s == 0
    flow = live_flow(LAYERS, [live(A, 0, 3), live(B, 4, 6)])
    assert flow.tokens_per_s == 0
    assert not flow.weights.edges


def test_a_thousand_nodes_have_valid_transitions_only() -> None:
    """All pairs would be a million."""
    rng = random.Random(0)
    nodes = []
    for i in range(1000):
        count = rng.randint(1, 3)
        first = (i % 2) * (LAYERS - count)
        nodes.append(live(NodeId(f"n{i:03}"), first, first + count, rng.uniform(100, 900)))
    nodes += [live(NodeId(f"x{i}"), i, i + 1, 1e5) for i in range(LAYERS)]
    flow = live_flow(LAYERS, nodes)
    check(flow, nodes)
    assert flow.tokens_per_s > 0
    pairs = Counter((n.layers.first, n.layers.end) for n in nodes)
    valid = sum(
        pairs[a] * pairs[b] for a in pairs for b in pairs if b[0] <= a[1] < b[1] and a[1] < LAYERS
    )
    assert sum(len(out) for s, out in flow.weights.transitions.items() if s != ROUTER) == valid


@given(planned_clusters())
@settings(max_examples=40)
def test_the_cut_adds_up_to_the_flow(drawn: tuple[Problem, list[LiveNode]]) -> None:
    cluster, nodes = drawn
    found = live_flow(LAYERS, nodes, PlannedSpeeds(cluster))
    if found.tokens_per_s <= 0:
        assert found.cut == Cut()
        return
    by_name = {n.name: n for n in cluster.nodes}
    links = {(k.src, k.dst): k.bytes_per_s for k in cluster.links}
    total = sum(found.rates[n] for n in found.cut.engines)
    total += sum(by_name[n].nic_in_bytes_per_s / 1000 for n in found.cut.nics_in)
    total += sum(by_name[n].nic_out_bytes_per_s / 1000 for n in found.cut.nics_out)
    for a, b in found.cut.links:
        ends = (SOURCE if a == ROUTER else a, SINK if b == ROUTER else b)
        total += _link_rate(links[ends], ends, by_name)
    assert total == pytest.approx(found.tokens_per_s, rel=1e-4, abs=1e-2)
    for (a, b), rate in found.capacities.items():
        ends = (SOURCE if a == ROUTER else a, SINK if b == ROUTER else b)
        assert rate == pytest.approx(_link_rate(links[ends], ends, by_name))


def _link_rate(
    bytes_per_s: float, ends: tuple[NodeId, NodeId], nodes: dict[NodeId, ProblemNode]
) -> float:
    if ends[0] == SOURCE:
        return min(bytes_per_s, nodes[ends[1]].nic_in_bytes_per_s) / 4
    if ends[1] == SINK:
        return min(bytes_per_s, nodes[ends[0]].nic_out_bytes_per_s) / 4
    return bytes_per_s / 1000


def test_a_single_node_is_the_cut_and_not_the_wide_link_to_it() -> None:
    found = live_flow(LAYERS, [live(A, 0, 6)])
    assert found.cut == Cut(engines=(A,))
    assert found.capacities == {}
