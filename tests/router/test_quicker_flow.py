"""Of flows that are as large, the router follows one whose tokens are least long on their way."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from router import quicker_flow
from router.flows import LinkMeasured, LiveFlow, LiveNode, MeasuredLinks, live_flow
from router.quicker_flow import quicker

Arc = tuple[int, int, int, int]
"""From, to, units, and milliseconds."""


def arranged(arcs: list[Arc]) -> tuple[list[int], list[int], np.ndarray, list[float]]:
    tails, heads, units, ms = zip(*arcs, strict=True)
    return list(tails), list(heads), np.array(units, np.int32), [t / 1000 for t in ms]


def most(arcs: list[Arc]) -> int:
    tails, heads, units, _ = arranged(arcs)
    size = 1 + max(*tails, *heads)
    graph = csr_array((units, (tails, heads)), shape=(size, size))
    return int(maximum_flow(graph, 0, 1).flow_value)


@st.composite
def graphs(draw: st.DrawFn) -> list[Arc]:
    """Each pair of vertices one way at most, none into the source or out of the sink."""
    size = draw(st.integers(2, 8))
    order = draw(st.permutations(range(2, size)))
    line = [0, *order, 1]
    pairs = [(a, b) for at, a in enumerate(line) for b in line[at + 1 :]]
    some = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    units = st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 2**26))
    ms = st.one_of(st.just(0), st.integers(1, 200))
    return [(a, b, draw(units), draw(ms)) for a, b in some]


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_it_is_as_large_and_the_cheapest(arcs: list[Arc]) -> None:
    """By networkx's network simplex, in whole numbers."""
    passes = most(arcs)
    found = quicker(*arranged(arcs), passes)
    if not passes or not any(ms for *_, ms in arcs):
        assert found is None
        return
    assert found is not None
    flow = {(a, b): int(found[a, b]) for a, b, *_ in arcs}
    assert all(0 <= flow[a, b] <= units for a, b, units, _ in arcs)
    vertices = {a for a, *_ in arcs} | {b for _, b, *_ in arcs}
    for vertex in vertices - {0, 1}:
        comes = sum(n for (_, b), n in flow.items() if b == vertex)
        assert comes == sum(n for (a, _), n in flow.items() if a == vertex)
    total = sum(n for (a, _), n in flow.items() if a == 0)
    assert total == pytest.approx(passes, rel=1e-4)
    graph: nx.DiGraph[int] = nx.DiGraph()
    for a, b, units, ms in arcs:
        graph.add_edge(a, b, capacity=units, weight=ms)
    graph.add_nodes_from((0, 1))
    least = nx.cost_of_flow(graph, nx.max_flow_min_cost(graph, 0, 1))
    spent = sum(flow[a, b] * ms for a, b, _, ms in arcs)
    # What the programme's tolerances let by, at the longest way there is.
    assert spent <= least + 1e-4 * passes * sum(ms for *_, ms in arcs)


def test_nothing_to_choose_by_and_too_much_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    arcs = [(0, 2, 5, 0), (2, 1, 5, 0), (0, 1, 3, 0)]
    assert quicker(*arranged(arcs), 8) is None
    timed = [(a, b, units, 7) for a, b, units, _ in arcs]
    assert quicker(*arranged(timed), 8) is not None
    assert quicker(*arranged(timed), 0) is None
    # A value that does not get through.
    assert quicker(*arranged(timed), 9) is None
    monkeypatch.setattr(quicker_flow, "MOST_ARCS", 2)
    assert quicker(*arranged(timed), 8) is None


HERE, THERE = ("a1", "b1", "c1"), ("b2", "c0")
"""By their names the other c comes first."""
OCEAN_S = 0.03


def two_regions(jitter: list[float]) -> LiveFlow:
    """Three thirds of a model here, the last two of them there once more; all links measured."""
    slices = {"a": LayerRange(0, 2), "b": LayerRange(2, 4), "c": LayerRange(4, 6)}
    nodes = [
        LiveNode(NodeId(n), slices[n[0]], 2 * (2000.0 if n[0] == "a" else 1000.0))
        for n in (*HERE, *THERE)
    ]
    ends = [(a.name, b.name) for a in nodes for b in nodes if a.layers.end == b.layers.first]
    links = {}
    for number, (a, b) in enumerate(ends):
        far = (a in HERE) != (b in HERE)
        rate = (4e6 if far else 1e9) * jitter[number % len(jitter)]
        links[a, b] = LinkMeasured(rate, OCEAN_S if far else 0.0005)
    return live_flow(6, nodes, None, (), MeasuredLinks(links, 4, 2000))


@given(st.lists(st.floats(0.8, 1.25), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_tokens_cross_an_ocean_no_more_often_than_they_must(jitter: list[float]) -> None:
    """Whatever little is measured otherwise from link to link."""
    flow = two_regions(jitter)
    assert flow.tokens_per_s == pytest.approx(2000.0)
    crossing = [
        (source, target, rate)
        for source, out in flow.weights.edges.items()
        for target, rate in out
        if source != "router" and (source in HERE) != (target in HERE)
        if source in (*HERE, *THERE)
    ]
    assert [(source, target) for source, target, _ in crossing] == [("a1", "b2")]
    assert crossing[0][2] == pytest.approx(1000.0, rel=1e-3)


def test_the_first_flow_found_may_cross_it_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would say nothing."""
    monkeypatch.setattr(quicker_flow, "MOST_ARCS", 0)
    edges = two_regions([1.0, 1.1, 0.9, 1.0, 1.2, 0.8]).weights.edges
    back = [t for s in THERE for t, _ in edges.get(NodeId(s), ()) if t in HERE]
    assert back
