"""The published schedulers on small graphs: shares, masks, restored loads, ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from bench.simulator.reference.parts import build_links, build_nodes
from bench.simulator.reference.routing import (
    MaxFlowScheduler,
    RandomScheduler,
    ShortestQueueScheduler,
    SwarmScheduler,
)
from bench.simulator.reference.setup import COORDINATOR, LinkSetup, Setup

BuildSetup = Callable[..., Setup]


def fork(build: BuildSetup, flows: tuple[float, ...], kv_entries: float = 1e9) -> Setup:
    """Parallel nodes that hold all layers, with these flows."""
    links = [LinkSetup(COORDINATOR, n, 1e6, 0.01, flow) for n, flow in enumerate(flows)]
    links += [LinkSetup(n, COORDINATOR, 1e6, 0.01, flow) for n, flow in enumerate(flows)]
    return build([(0, 2)] * len(flows), links, kv_entries=kv_entries)


def max_flow(setup: Setup) -> MaxFlowScheduler:
    nodes = build_nodes(setup)
    links = build_links(setup, nodes, by_flow=True)
    return MaxFlowScheduler(nodes, links, 2, output_ratio=1.0, high_water=0.85)


def first_hops(scheduler: MaxFlowScheduler, count: int, tokens: int = 10) -> list[int | None]:
    routes = [scheduler.route(query, tokens, 0.0) for query in range(count)]
    return [None if route is None else route[0].dst for route in routes]


def test_round_robin_gives_each_hop_its_share_of_flow(build_setup: BuildSetup) -> None:
    hops = Counter(first_hops(max_flow(fork(build_setup, (300.0, 100.0))), 400))
    assert hops == {0: 300, 1: 100}


def test_ties_go_to_the_first_link(build_setup: BuildSetup) -> None:
    assert first_hops(max_flow(fork(build_setup, (50.0, 50.0))), 4) == [0, 1, 0, 1]


def test_hops_under_a_twentieth_of_the_flow_are_never_chosen(build_setup: BuildSetup) -> None:
    assert set(first_hops(max_flow(fork(build_setup, (96.0, 4.0))), 200)) == {0}
    assert set(first_hops(max_flow(fork(build_setup, (95.0, 5.0))), 200)) == {0, 1}


def test_a_full_node_is_masked_and_freed_when_its_query_ends(build_setup: BuildSetup) -> None:
    # 250 expected tokens on two layers are 500 entries; 0.85 of 1200 holds two of them.
    scheduler = max_flow(fork(build_setup, (100.0,), kv_entries=1200))
    assert first_hops(scheduler, 3) == [0, 0, None]
    assert scheduler.bottleneck() == pytest.approx(1000 / 1200)
    scheduler.query_ended(0)
    assert scheduler.route(3, 10, 0.0) is not None


def test_a_failed_walk_leaves_the_loads_as_they_were(build_setup: BuildSetup) -> None:
    """Two first nodes, one of which leads to a full second node."""
    links = [
        LinkSetup(COORDINATOR, 0, 1e6, 0.01, 100.0),
        LinkSetup(COORDINATOR, 1, 1e6, 0.01, 100.0),
        LinkSetup(0, 2, 1e6, 0.01, 100.0),
        LinkSetup(1, 2, 1e6, 0.01, 100.0),
        LinkSetup(2, COORDINATOR, 1e6, 0.01, 200.0),
    ]
    setup = build_setup([(0, 1), (0, 1), (1, 2)], links, kv_entries=400)
    scheduler = max_flow(setup)
    assert first_hops(scheduler, 1) == [0]  # takes 250 of the 340 there are
    assert scheduler.route(1, 10, 0.0) is None
    scheduler.query_ended(0)
    route = scheduler.route(2, 10, 0.0)
    assert route is not None
    assert route[0].dst == 1  # the failed walk had gone there; its load was taken back


def test_decodes_weigh_on_the_way_of_their_prompt(build_setup: BuildSetup) -> None:
    scheduler = max_flow(fork(build_setup, (100.0, 100.0)))
    assert first_hops(scheduler, 1) == [0]
    assert first_hops(scheduler, 1) == [1]
    for _ in range(25):
        scheduler.decode_sent(0)  # query 0 took node 1 in the second walk
    assert first_hops(scheduler, 3) == [0, 0, 0]


def test_random_depends_on_its_seed_only(build_setup: BuildSetup) -> None:
    setup = fork(build_setup, (1.0, 1.0, 1.0))

    def ways(seed: int) -> list[int]:
        scheduler = RandomScheduler(build_links(setup, build_nodes(setup), by_flow=False), seed)
        routes = [scheduler.route(query, 10, 0.0) for query in range(60)]
        return [route[0].dst for route in routes if route is not None]

    assert ways(1) == ways(1)
    assert ways(1) != ways(2)
    assert set(ways(1)) == {0, 1, 2}


def test_shortest_queue_avoids_the_busy_node(build_setup: BuildSetup) -> None:
    setup = fork(build_setup, (1.0, 1.0))
    nodes = build_nodes(setup)
    scheduler = ShortestQueueScheduler(build_links(setup, nodes, by_flow=False), 0)
    nodes[0].queues[0] = [7]
    assert {route[0].dst for q in range(20) if (route := scheduler.route(q, 10, 0.0))} == {1}


def test_swarm_sends_more_to_the_faster_node(build_setup: BuildSetup) -> None:
    setup = fork(build_setup, (1.0, 1.0))
    nodes = build_nodes(setup)
    scheduler = SwarmScheduler(nodes, build_links(setup, nodes, by_flow=False))
    hops: Counter[int] = Counter()
    for query in range(400):
        route = scheduler.route(query, 10, 0.0)
        assert route is not None
        node = route[0].dst
        hops[node] += 1
        scheduler.sent(query, 0.0)
        scheduler.left(nodes[node], [query], 0.1 if node == 0 else 0.3)
        scheduler.query_ended(query)
    assert hops[0] / hops[1] == pytest.approx(3.0, rel=0.1)
