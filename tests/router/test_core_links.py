"""The core and links that do not work: requests take the detour, with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import router.solving
from helix_mq.ids import NodeId, RequestId
from helix_mq.layers import LayerRange
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.core import CoreSettings
from router.flows import LiveFlow, LiveNode, MeasuredLinks, live_flow
from router.planned_speeds import PlannedSpeeds
from router.schedulers_base import METHODS, Method, Scheduling
from router.service import Finished
from tests.router.world import SLICES, World

DETOUR = {"a": LayerRange(0, 3), "b": LayerRange(3, 6), "c": LayerRange(3, 6)}
PAIR = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}
LONG = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)


def routes(world: World) -> dict[RequestId, tuple[str, ...]]:
    sessions = world.core.sessions().items()
    return {r: tuple(s.route.nodes) for r, s in sessions if s.route is not None}


def crosses(nodes: Sequence[str], source: str, target: str) -> bool:
    return (source, target) in pairwise(nodes)


def drop_stale(world: World) -> None:
    """Rows of attempts that are over get nowhere."""
    sessions = world.core.sessions()
    world.in_flight = [
        row
        for row in world.in_flight
        if row.request in sessions and sessions[row.request].attempt == row.attempt
    ]


def finish(world: World, requests: Sequence[RequestId]) -> None:
    drop_stale(world)
    world.run()
    for request in requests:
        # World.check has compared every token with an undisturbed run's.
        assert isinstance(world.streams[request].end, Finished)


@pytest.fixture(params=METHODS)
def world(request: pytest.FixtureRequest) -> World:
    world = World(CoreSettings(scheduling=Scheduling(request.param)), DETOUR)
    world.join_all()
    return world


def test_refused_for_its_link_a_request_takes_the_detour_and_so_do_all_others(world: World) -> None:
    requests = [world.submit((i, 2), LONG) for i in range(8)]
    for _ in range(10):
        world.answer()
    assert "b" in {nodes[-1] for nodes in routes(world).values()}
    at = next(i for i, row in enumerate(world.in_flight) if crosses(row.route.nodes, "a", "b"))
    world.refuse(at, 0, "link_lost")
    assert set(routes(world).values()) == {("a", "c")}
    assert world.core.cluster.links.closed == {("a", "b")}
    later = world.submit((9, 9), LONG)
    assert routes(world)[later] == ("a", "c")
    finish(world, [*requests, later])
    assert max(s.reroutes for s in map(_end, [world] * 8, requests)) == 1


def _end(world: World, request: RequestId) -> Finished:
    end = world.streams[request].end
    assert isinstance(end, Finished)
    return end


def test_a_link_reported_down_is_left_before_any_request_has_to_wait_for_it(world: World) -> None:
    requests = [world.submit((i, 2), LONG) for i in range(8)]
    world.beat("a", b=2.9, c=0.0)
    assert "b" in {nodes[-1] for nodes in routes(world).values()}
    world.beat("a", b=3.1, c=0.0)
    assert set(routes(world).values()) == {("a", "c")}
    world.pass_time(100)
    world.beat("a", b=103.1, c=0.0)
    later = world.submit((7,), LONG)
    assert routes(world)[later] == ("a", "c")
    finish(world, requests)
    world.beat("a", b=0.0, c=0.0)
    world.handle(ev.Tick())
    for i in range(8):
        world.submit((i, 3), LONG)
    assert "b" in {nodes[-1] for nodes in routes(world).values()}, "it is used again"


def test_a_last_hop_that_cannot_reach_the_router_gets_no_requests(world: World) -> None:
    requests = [world.submit((i, 2), LONG) for i in range(8)]
    world.beat("b", router=3.5)
    assert set(routes(world).values()) == {("a", "c")}
    finish(world, requests)


def test_the_routers_own_links_count_as_well() -> None:
    world = World()
    world.join_all()
    requests = [world.submit((i, 2), LONG) for i in range(8)]
    world.handle(ev.OwnLinks(((NodeId("a"), 3.5), (NodeId("c"), 0.0))))
    assert {nodes[0] for nodes in routes(world).values()} == {"c"}
    finish(world, requests)
    world.handle(ev.OwnLinks(((NodeId("a"), 0.0), (NodeId("c"), 4.0))))
    world.handle(ev.Tick())
    later = world.submit()
    assert routes(world)[later][0] == "a"


def test_without_a_detour_requests_wait_and_are_told_which_link_it_is() -> None:
    world = World(slices=PAIR)
    world.join_all()
    running = world.submit((1,), LONG, deadline_s=50.0)
    effects = world.beat("a", b=3.5)
    notes = [e.text for e in effects if isinstance(e, ev.Note)]
    assert any("no requests over the link a > b" in text for text in notes)
    cluster = world.core.cluster
    assert (cluster.serving, cluster.recovering) == (False, True)
    assert "a cannot reach b" in cluster.why_not_serving()
    assert not routes(world)
    world.in_flight.clear()
    world.beat("a", b=0.0)
    world.handle(ev.Tick())
    assert (cluster.serving, cluster.why_not_serving()) == (True, "")
    assert routes(world)[running] == ("a", "b")
    finish(world, [running])


def test_what_a_link_keeps_losing_is_tried_less_and_less_often() -> None:
    """A sender that reports nothing of its links: the refusals alone must do."""
    world = World(slices=PAIR)
    world.join_all()
    world.submit((1,), LONG, deadline_s=300.0)
    tries_s: list[float] = []
    while len(tries_s) < 8:
        if world.in_flight:
            tries_s.append(world.clock.now_s())
            world.refuse(0, 0, "link_lost")
        world.pass_time(1)
    waits = [b - a for a, b in pairwise(tries_s)]
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_reports_about_strangers_are_not_kept() -> None:
    world = World(slices=DETOUR)
    world.join_all()
    world.beat("a", zed=50.0)
    assert world.core.cluster.links.closed == frozenset()
    assert not world.core.cluster.links._troubles


def test_a_token_over_the_link_begins_the_pauses_anew() -> None:
    world = World(slices=PAIR)
    world.join_all()
    request = world.submit((1,), LONG)
    for _ in range(3):
        world.refuse(0, 0, "link_lost")
        while not world.in_flight:
            world.pass_time(1)
    world.answer()
    world.refuse(0, 0, "link_lost")
    world.pass_time(1)
    assert routes(world)[request] == ("a", "b")
    finish(world, [request])


def test_a_node_that_starts_anew_has_new_links() -> None:
    world = World(slices=PAIR)
    world.join_all()
    world.beat("a", b=100.0)
    assert not world.core.cluster.serving
    world.join("b")
    assert world.core.cluster.serving
    finish(world, [world.submit((1,), LONG)])


# -- the flow ------------------------------------------------------------------


class Counted:
    """How often the flow was computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        monkeypatch.setattr(router.solving, "live_flow", self._computed)

    def _computed(
        self,
        num_layers: int,
        nodes: Sequence[LiveNode],
        planned: PlannedSpeeds | None = None,
        closed: frozenset[tuple[NodeId, NodeId]] = frozenset(),
        measured: MeasuredLinks | None = None,
    ) -> LiveFlow:
        self.times += 1
        return live_flow(num_layers, nodes, planned, closed, measured)


def test_nodes_that_get_ready_cost_no_flow_until_a_request_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slices = {f"{side}{i}": r for side, r in PAIR.items() for i in range(20)}
    world = World(slices=slices)
    counted = Counted(monkeypatch)
    world.join_all()
    assert counted.times == 1, "when it began to serve"
    world.pass_time(3)
    assert counted.times == 1
    world.submit()
    assert counted.times == 2
    world.run()
    world.submit()
    assert counted.times == 2
    nodes = [LiveNode(NodeId(n), r, 1000.0) for n, r in sorted(slices.items())]
    assert world.core.cluster.flow == live_flow(6, nodes)
    assert world.core.statistics().flow_tokens_per_s == live_flow(6, nodes).tokens_per_s


def test_losing_many_nodes_at_once_costs_one_flow_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = {f"{side}{i}": r for side, r in PAIR.items() for i in range(20)}
    world = World(slices=slices)
    world.join_all()
    world.submit()
    world.in_flight.clear()
    counted = Counted(monkeypatch)
    world.pass_time(5, frozenset(f"{side}{i}" for side in PAIR for i in range(1, 20)))
    assert len(world.members) == 2
    assert counted.times <= 1
    assert world.core.cluster.serving


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "lose", "down", "up", "tick"]),
        st.sampled_from(sorted(SLICES)),
        st.sampled_from([*sorted(SLICES), "router"]),
    ),
    max_size=25,
)


@given(STEPS, st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_what_is_told_without_computing_is_what_computing_tells(
    steps: list[tuple[str, str, str]], method: Method
) -> None:
    world = World(CoreSettings(scheduling=Scheduling(method)), recover_s=1e6)
    for what, node, other in steps:
        match what:
            case "join":
                world.join(node)
            case "lose" if node in world.members:
                world.lose(node)
            case "down" if node in world.members:
                world.beat(node, **{other: 4.0})
            case "up" if node in world.members:
                world.beat(node, **{other: 0.0})
            case "tick":
                world.clock.advance(0.25)
                world.handle(ev.Tick())
            case _:
                pass
        cluster = world.core.cluster
        nodes = [LiveNode(m.name, SLICES[m.name], 1000.0) for m in cluster.membership.serving()]
        eager = live_flow(6, nodes, None, cluster.links.closed)
        assert cluster.serving == (eager.tokens_per_s > 0)
        assert cluster.flow == eager
        assert bool(cluster.why_not_serving()) == (not cluster.serving)
