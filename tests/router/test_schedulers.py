"""Every scheduler: valid routes with room, found whenever there is one; equal by seed; shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop, LayerRange, Placement, Route
from helix_mq.messages.control import Heartbeat
from router.flows import LiveNode, live_flow
from router.routes import FlowWeights
from router.schedulers import MaxFlowScheduler, new_scheduler
from router.schedulers_base import METHODS, Method, Scheduling
from router.schedulers_simple import RandomScheduler, ShortestQueueScheduler
from router.schedulers_swarm import FIRST_HOP_S, SwarmScheduler

LAYERS = 8
A, B, C, D, E = (NodeId(n) for n in "abcde")


@st.composite
def clusters(draw: st.DrawFn) -> list[LiveNode]:
    """Up to nine nodes that cover eight layers between them, more or less overlapping."""
    ranges = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), min_size=1, max_size=9))
    nodes = [
        LiveNode(
            NodeId(f"n{i}"),
            LayerRange(first, min(first + count, LAYERS)),
            draw(st.floats(1.0, 1e4)),
        )
        for i, (first, count) in enumerate(ranges)
    ]
    placement = Placement(LAYERS, {n.name: n.layers for n in nodes})
    for i, gap in enumerate(placement.missing()):
        nodes.append(LiveNode(NodeId(f"m{i}"), gap, 100.0))
    return nodes


def holds(nodes: Sequence[LiveNode]) -> dict[NodeId, LayerRange]:
    return {n.name: n.layers for n in nodes}


def a_way(nodes: Sequence[LiveNode], full: set[NodeId]) -> bool:
    """Whether layers 0 to the last can be walked over nodes that are not full, tried by layers."""
    reached = {0}
    for layer in range(LAYERS):
        if layer in reached:
            reached |= {
                n.layers.end
                for n in nodes
                if n.name not in full and n.layers.first <= layer < n.layers.end
            }
    return LAYERS in reached


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(clusters(), st.data())
def test_routes_are_contiguous_have_room_and_cover_the_model(
    method: Method, nodes: list[LiveNode], data: st.DataObject
) -> None:
    weights = live_flow(LAYERS, nodes).weights
    scheduler = new_scheduler(Scheduling(method, 3), weights)
    for _ in range(data.draw(st.integers(1, 6))):
        full = set(data.draw(st.lists(st.sampled_from([n.name for n in nodes]), unique=True)))
        route = scheduler.choose(data.draw(st.integers(1, 500)), lambda h, f=full: h.node not in f)  # type: ignore[misc]
        if method != "maxflow" or not full:
            # The flow may leave edges unused; the others go wherever there is a way.
            assert (route is not None) == a_way(nodes, full)
        if route is None:
            continue
        assert route.num_layers == LAYERS
        assert not full & set(route.nodes)
        assert all(holds(nodes)[hop.node].covers(hop.layers) for hop in route.hops)
        for source, node in pairwise([ROUTER, *route.nodes]):
            assert node in scheduler.next_nodes(source)
        scheduler.on_token(route, data.draw(st.floats(0, 10)))
        if data.draw(st.booleans()):
            scheduler.on_left(route, 1)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(clusters(), st.integers(0, 2**32), st.lists(st.integers(1, 900), max_size=20))
def test_equal_calls_give_equal_routes(
    method: Method, nodes: list[LiveNode], seed: int, works: list[int]
) -> None:
    """Whatever order the nodes are listed in."""
    texts = []
    for order in (nodes, nodes[::-1]):
        scheduler = new_scheduler(Scheduling(method, seed), live_flow(LAYERS, order).weights)
        routes = []
        for work in works:
            route = scheduler.choose(work, lambda hop: True)
            assert route is not None
            scheduler.on_token(route, work / 1000)
            routes.append(str(route))
        texts.append(routes)
    assert texts[0] == texts[1]


def test_the_settings_name_all_methods_and_no_others() -> None:
    assert get_args(Method) == METHODS
    with pytest.raises(ConfigError, match=r"scheduling.method = 'best': choose one of maxflow, "):
        Scheduling("best")  # type: ignore[arg-type]


def stage(*nodes: NodeId, flows: Iterable[float] | None = None, **more: object) -> FlowWeights:
    """A choice of nodes that each hold the whole model."""
    flow = list(flows) if flows is not None else [1.0] * len(nodes)
    edges = {ROUTER: tuple(zip(nodes, flow, strict=True))}
    return FlowWeights(4, edges, dict.fromkeys(nodes, 4), **more)  # type: ignore[arg-type]


def chosen(scheduler: object, times: int, work: int = 10) -> Counter[NodeId]:
    counts: Counter[NodeId] = Counter()
    for _ in range(times):
        route = scheduler.choose(work, lambda hop: True)  # type: ignore[attr-defined]
        counts.update(route.nodes)
    return counts


# -- max flow -----------------------------------------------------------------


@given(st.lists(st.integers(10, 100), min_size=1, max_size=6), st.integers(1, 1000))
def test_max_flow_shares_work_as_the_flow_says(flows: list[int], work: int) -> None:
    nodes = [NodeId(f"n{i}") for i in range(len(flows))]
    scheduler = MaxFlowScheduler(stage(*nodes, flows=map(float, flows)))
    times = 3 * sum(flows)
    counts = chosen(scheduler, times, work)
    for node, flow in zip(nodes, flows, strict=True):
        assert abs(counts[node] - times * flow / sum(flows)) <= len(flows)


def test_equal_flows_are_taken_by_expected_latency_to_the_end() -> None:
    """b is the nearer, but what follows it is far."""
    weights = FlowWeights(
        4,
        {ROUTER: ((A, 1.0), (B, 1.0), (C, 1.0)), A: ((D, 1.0),), B: ((E, 1.0),)},
        {A: 2, B: 2, C: 4, D: 4, E: 4},
        hop_s={(ROUTER, A): 0.02, (A, D): 0.01, (ROUTER, B): 0.01, (B, E): 0.05, (ROUTER, C): 0.04},
    )
    scheduler = MaxFlowScheduler(weights)
    firsts = []
    for _ in range(6):
        route = scheduler.choose(10, lambda hop: True)
        assert route is not None
        firsts.append(route.nodes[0])
    assert firsts == [A, C, B] * 2


def test_latency_only_breaks_ties() -> None:
    hop_s = {(ROUTER, A): 5.0, (ROUTER, B): 0.001}
    scheduler = MaxFlowScheduler(stage(A, B, flows=(30.0, 10.0), hop_s=hop_s))
    assert chosen(scheduler, 400) == {A: 300, B: 100}


# -- random -------------------------------------------------------------------


def test_random_is_uniform_over_what_has_room() -> None:
    nodes = [NodeId(f"n{i}") for i in range(5)]
    scheduler = RandomScheduler(stage(*nodes, flows=[1, 1, 1, 1, 1000]), 1)
    counts: Counter[NodeId] = Counter()
    for _ in range(4000):
        route = scheduler.choose(1, lambda hop: hop.node != nodes[0])
        assert route is not None
        counts.update(route.nodes)
    assert sorted(counts) == nodes[1:]
    # Four standard deviations of a binomial with p = 1/4.
    assert all(abs(count - 1000) < 4 * 27.4 for count in counts.values())


def test_random_differs_by_seed() -> None:
    weights = stage(A, B)

    def drawn(seed: int) -> list[str]:
        scheduler = RandomScheduler(weights, seed)
        return [str(scheduler.choose(1, lambda hop: True)) for _ in range(64)]

    assert drawn(1) == drawn(1) != drawn(2)


# -- shortest queue -----------------------------------------------------------


def test_shortest_queue_joins_the_node_with_the_fewest_requests() -> None:
    scheduler = ShortestQueueScheduler(stage(A, B, C))
    routes = [scheduler.choose(10, lambda hop: True) for _ in range(5)]
    assert [r.nodes for r in routes if r is not None] == [(A,), (B,), (C,), (A,), (B,)]
    assert routes[1] is not None
    scheduler.on_left(routes[1], 10)
    scheduler.replace(stage(A, B, C))
    assert [scheduler.outstanding(n) for n in (A, B, C)] == [2, 1, 1]
    assert chosen(scheduler, 2) == {B: 1, C: 1}


def test_shortest_queue_breaks_ties_by_tokens() -> None:
    scheduler = ShortestQueueScheduler(stage(A, B))
    scheduler.choose(900, lambda hop: True)
    scheduler.choose(10, lambda hop: True)
    assert chosen(scheduler, 1) == {B: 1}


def test_shortest_queue_forgets_whom_everybody_left() -> None:
    scheduler = ShortestQueueScheduler(stage(A, B))
    routes = [scheduler.choose(7, lambda hop: True) for _ in range(6)]
    for route in routes:
        assert route is not None
        scheduler.on_left(route, 7)
    assert not scheduler._requests
    assert not scheduler._tokens


# -- swarm --------------------------------------------------------------------


def serve(scheduler: SwarmScheduler, times: int, seconds: dict[NodeId, float]) -> Counter[NodeId]:
    """Requests of one decode each; a node always takes the same time."""
    counts: Counter[NodeId] = Counter()
    for _ in range(times):
        route = scheduler.choose(10, lambda hop: True)
        assert route is not None
        counts.update(route.nodes)
        scheduler.on_token(route, sum(seconds[node] for node in route.nodes))
    return counts


def test_swarm_chooses_in_proportion_to_speed() -> None:
    counts = serve(SwarmScheduler(stage(A, B)), 3000, {A: 0.01, B: 0.03})
    assert counts[A] / counts[B] == pytest.approx(3.0, rel=0.02)


def test_swarm_tries_every_node_before_any_twice() -> None:
    nodes = [NodeId(f"n{i}") for i in range(7)]
    scheduler = SwarmScheduler(stage(*nodes))
    assert chosen(scheduler, 7) == dict.fromkeys(nodes, 1)


TWO_STAGES = FlowWeights(
    4,
    {ROUTER: ((A, 1.0), (B, 1.0)), A: ((C, 1.0), (D, 1.0)), B: ((C, 1.0), (D, 1.0))},
    {A: 2, B: 2, C: 4, D: 4},
)


def test_swarm_finds_the_slow_node_from_whole_rounds_alone() -> None:
    scheduler = SwarmScheduler(TWO_STAGES)
    counts = serve(scheduler, 2000, {A: 0.01, B: 0.05, C: 0.01, D: 0.01})
    assert scheduler.hop_s(ROUTER, B) > 2.5 * scheduler.hop_s(ROUTER, A)
    assert counts[A] > 2 * counts[B]
    assert counts[C] == pytest.approx(counts[D], rel=0.1)


def beat(node: NodeId, incarnation: int, steps: int, step_s: float) -> Heartbeat:
    return Heartbeat(node, incarnation, 1, 1, 0, 0, 0, 0, 0, steps, step_s, 0, 0, 0, ())


def test_swarm_divides_rounds_by_the_step_times_nodes_report() -> None:
    scheduler = SwarmScheduler(TWO_STAGES)
    for node, step_s in ((A, 0.03), (B, 0.03), (C, 0.01), (D, 0.01)):
        scheduler.on_beat(beat(node, 1, 100, 5.0))
        scheduler.on_beat(beat(node, 1, 200, 5.0 + 100 * step_s))
    serve(scheduler, 200, dict.fromkeys((A, B, C, D), 0.04))
    for node in (A, B):
        assert scheduler.hop_s(ROUTER, node) == pytest.approx(0.06, rel=0.01)
        assert scheduler.hop_s(node, C) == pytest.approx(0.02, rel=0.01)


def test_swarm_forgets_the_steps_of_an_earlier_process() -> None:
    scheduler = SwarmScheduler(stage(A))
    route = scheduler.choose(1, lambda hop: True)
    assert route is not None
    scheduler.on_beat(beat(A, 1, 100, 5.0))
    scheduler.on_beat(beat(A, 2, 90, 4.0))
    scheduler.on_beat(beat(A, 2, 90, 4.0))
    scheduler.on_token(route, 1.0)
    assert scheduler.hop_s(ROUTER, A) == pytest.approx(0.8 * FIRST_HOP_S + 0.2)


def test_swarm_keeps_what_it_knows_of_nodes_that_stay() -> None:
    scheduler = SwarmScheduler(stage(A, B))
    serve(scheduler, 100, {A: 0.01, B: 0.03})
    scheduler.replace(stage(B, C))
    assert scheduler.hop_s(ROUTER, B) == pytest.approx(0.03, rel=0.01)
    assert scheduler.hop_s(ROUTER, C) == FIRST_HOP_S
    assert scheduler.hop_s(ROUTER, A) == FIRST_HOP_S
    gone = Route((Hop(A, LayerRange(0, 4)),))
    scheduler.on_token(gone, 1.0)
    assert chosen(scheduler, 2) == {B: 1, C: 1}


def test_swarm_survives_rounds_that_took_no_time() -> None:
    scheduler = SwarmScheduler(TWO_STAGES)
    serve(scheduler, 500, dict.fromkeys((A, B, C, D), 0.0))
    counts = serve(scheduler, 2000, {A: 0.01, B: 0.05, C: 0.01, D: 0.01})
    assert counts[A] > 2 * counts[B]
