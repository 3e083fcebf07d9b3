"""The engine against a plain twin that has one event per request and link, on random clusters."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from bench.simulator.reference.engine import Engine
from bench.simulator.reference.feeding import TraceFeeder
from bench.simulator.reference.parts import LinkState, build_links, build_nodes
from bench.simulator.reference.queries import Query
from bench.simulator.reference.setup import COORDINATOR, Limits, LinkSetup, Setup
from bench.simulator.reference.tally import Tally

BuildSetup = Callable[..., Setup]
COPY_S = 998 * (1 / 4e9 + 1 / 5e9)


class FixedRoutes:
    """Query i goes the way it was given."""

    def __init__(self, routes: Sequence[Sequence[int]], links: Sequence[LinkState]) -> None:
        self._routes = [[links[k] for k in route] for route in routes]

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        return self._routes[query]

    def decode_sent(self, query: int) -> None: ...

    def query_ended(self, query: int) -> None: ...


def random_case(
    seed: int, build: BuildSetup
) -> tuple[Setup, list[Query], list[list[int]], list[list[int]]]:
    """Three stages of one or two nodes each, every link between stages; random ways."""
    rng = random.Random(seed)
    slices: list[tuple[int, int]] = []
    stages: list[list[int]] = []
    for stage in range(3):
        members = []
        for _ in range(rng.choice((1, 2))):
            members.append(len(slices))
            slices.append((2 * stage, 2 * stage + 2))
        stages.append(members)
    pairs = [(COORDINATOR, n) for n in stages[0]]
    for before, after in pairwise(stages):
        pairs += [(a, b) for a in before for b in after]
    pairs += [(n, COORDINATOR) for n in stages[2]]
    links = [
        LinkSetup(a, b, rng.uniform(2e5, 2e6), rng.uniform(0.001, 0.05), 1.0) for a, b in pairs
    ]
    limits = Limits(rng.choice((1, 3)), 400, rng.choice((3, 100)), rng.choice((900, 100_000)))
    queries = [
        Query(rng.randint(5, 300), rng.randint(1, 12), rng.uniform(0, 3.0)) for _ in range(30)
    ]
    routes, ways = [], []
    for _ in queries:
        way = [COORDINATOR, *(rng.choice(stage) for stage in stages), COORDINATOR]
        ways.append(way)
        routes.append([pairs.index(hop) for hop in pairwise(way)])
    return build(slices, links, limits=limits), queries, routes, ways


def twin(setup: Setup, queries: list[Query], ways: list[list[int]]) -> list[tuple[float, int, int]]:
    """Times at which (query, iteration) came back, by the most direct reading of the rules."""
    speed = {(k.src, k.dst): k for k in setup.links}
    outward: dict[int, int] = defaultdict(int)
    for link in setup.links:
        outward[link.src] += 1
    free: dict[tuple[int, int], float] = defaultdict(float)
    waiting: dict[int, list[list[tuple[int, int]]]] = {n.number: [[], []] for n in setup.nodes}
    unpaid: dict[int, int] = defaultdict(int)
    running: dict[int, tuple[int, list[tuple[int, int]]] | None] = defaultdict(lambda: None)
    # Steps end after what arrives at the same time: nodes in lockstep make such ties common.
    events: list[tuple[float, bool, int, str, tuple[int, ...]]] = []
    back: list[tuple[float, int, int]] = []
    count = 0
    limits = setup.nodes[0].limits

    def at(time_s: float, what: str, *values: int) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (time_s, what == "step", count, what, values))

    def tokens(query: int, iteration: int) -> int:
        return queries[query].prompt_tokens if iteration == 0 else 1

    def send(now: float, hop: int, query: int, iteration: int) -> None:
        way = (ways[query][hop], ways[query][hop + 1])
        size = tokens(query, iteration) * (2 if COORDINATOR in way else 1000)
        bytes_per_s = min(speed[way].bytes_per_s, 1e9 / outward[way[0]])
        free[way] = max(now, free[way]) + size / bytes_per_s
        at(free[way] + speed[way].latency_s, "arrive", hop + 1, query, iteration)

    def start(now: float, node: int, layer: int) -> None:
        for candidate in (layer % 2, (layer + 1) % 2):
            queue = waiting[node][candidate]
            if queue:
                break
        else:
            return
        batch, prompts, prompt_tokens, decodes, context = [], 0, 0, 0, 0
        for query, iteration in queue:
            size = tokens(query, iteration)
            length = queries[query].prompt_tokens + iteration - 1
            if iteration == 0:
                fits = (
                    prompts < limits.prompt_requests
                    and prompt_tokens + size <= limits.prompt_tokens
                )
                prompts, prompt_tokens = prompts + fits, prompt_tokens + fits * size
            else:
                fits = (
                    decodes < limits.decode_requests
                    and context + length <= limits.decode_context_tokens
                )
                decodes, context = decodes + fits, context + fits * length
            if fits:
                batch.append((query, iteration))
        waiting[node][candidate] = [x for x in queue if x not in batch]
        duration = 0.001 * prompt_tokens + (0.002 if decodes else 0.0)
        if candidate == 0:
            duration += unpaid[node] * COPY_S
            unpaid[node] = 0
        running[node] = (candidate, batch)
        at(now + duration, "step", node)

    for query, entry in enumerate(queries):
        at(entry.arrival_s, "launch", query, 0)
    while events:
        now, _, _, what, values = heapq.heappop(events)
        if what == "launch":
            send(now, 0, *values)
        elif what == "arrive":
            hop, query, iteration = values
            node = ways[query][hop]
            if node == COORDINATOR:
                back.append((now, query, iteration))
                if iteration < queries[query].output_tokens:
                    send(now, 0, query, iteration + 1)
            else:
                waiting[node][0].append((query, iteration))
                unpaid[node] += tokens(query, iteration)
                if running[node] is None:
                    start(now, node, 0)
        else:
            (node,) = values
            state = running[node]
            assert state is not None
            layer, batch = state
            running[node] = None
            if layer == 0:
                waiting[node][1] += batch
            else:
                for query, iteration in batch:
                    send(now, ways[query].index(node), query, iteration)
            start(now, node, layer + 1)
    return back


class Recording(Tally):
    """A tally that also keeps each return."""

    def __init__(self) -> None:
        super().__init__(0.0, 1e9)
        self.back: list[tuple[float, int]] = []

    def prompt_done(self, now_s: float, query: int, tokens: int, latency_s: float) -> None:
        self.back.append((now_s, query))
        super().prompt_done(now_s, query, tokens, latency_s)

    def decode_done(self, now_s: float, query: int, latency_s: float) -> None:
        self.back.append((now_s, query))
        super().decode_done(now_s, query, latency_s)


@pytest.mark.parametrize("seed", range(40))
def test_returns_are_those_of_the_plain_twin(seed: int, build_setup: BuildSetup) -> None:
    setup, queries, routes, ways = random_case(seed, build_setup)
    nodes = build_nodes(setup)
    links = build_links(setup, nodes, by_flow=False)
    tally = Recording()
    engine = Engine(nodes, queries, FixedRoutes(routes, links), TraceFeeder(0.0), tally)
    engine.begin()
    engine.advance(1e9)
    expected = twin(setup, queries, ways)
    assert [query for _, query in tally.back] == [query for _, query, _ in expected]
    assert [now for now, _ in tally.back] == pytest.approx([now for now, _, _ in expected])
    assert tally.finished_decodes == sum(query.output_tokens for query in queries)
    assert engine.in_flight == 0
    assert not any(node.inbox or node.occupied or node.next_link for node in nodes)
