"""Which way tokens return, and what the core makes of requests whose tokens do not pass it."""

from __future__ import annotations

import pytest
from msgspec import structs

from helix_mq.features import DIRECT
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import Refused, RefusedItem, TokenItem
from helix_mq.sampling import SamplingParams
from helix_mq.token_return import TokenReturn
from router import events as ev
from router.core import CoreSettings
from router.link_watch import Edge, LinkSettings, LinkWatch, edges_of
from router.membership import Membership
from router.outgoing import build_frame
from router.refusals import MAX_REROUTES
from router.service import Broken, Finished
from router.token_return import ReturnWays, Way
from tests.router.world import World, register

A, B, C = (NodeId(n) for n in "abc")
ROUTE = Route((Hop(A, LayerRange(0, 3)), Hop(B, LayerRange(3, 6))))
ALONE = Route((Hop(A, LayerRange(0, 6)),))
OLD = Route((Hop(A, LayerRange(0, 3)), Hop(C, LayerRange(3, 6))))
FAR = {(ROUTER, A): 0.08, (B, ROUTER): 0.08, (A, ROUTER): 0.08, (B, A): 0.004}
NEAR = dict.fromkeys(FAR, 0.0008)
PAIR = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}
LONG = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)


def ways(
    wanted: TokenReturn,
    trips: dict[Edge, float],
    links: LinkWatch | None = None,
    devices: str = "   ",
) -> ReturnWays:
    """Node `c` runs an older program. `devices`: what each says of its device."""
    members = Membership(6)
    for node, device in zip("abc", devices, strict=True):
        features = (DIRECT,) if node != "c" else ()
        said = structs.replace(register(node, 1), features=features, device_id=device.strip())
        members.join(said, 0.0)
    links = links or LinkWatch(LinkSettings())
    return ReturnWays(
        wanted,
        members,
        links,
        lambda one, other: trips.get((one, other), 0.0),
        lambda route: route == ROUTE,
    )


@pytest.mark.parametrize("route", [ROUTE, ALONE])
def test_as_wanted_where_nodes_can(route: Route) -> None:
    assert ways("direct", {}).direct(route)
    assert not ways("router", FAR).direct(route)
    assert not ways("direct", FAR).direct(OLD)
    assert not ways("auto", FAR | {(C, ROUTER): 0.08, (C, A): 0.001}).direct(OLD)


def test_by_itself_only_where_it_is_measured_to_save_time() -> None:
    assert ways("auto", FAR).direct(ROUTE)
    assert not ways("auto", NEAR).direct(ROUTE)
    for edge in FAR.keys() & set(edges_of(ROUTE, direct=True)):
        assert not ways("auto", FAR | {edge: 0.0}).direct(ROUTE), f"{edge} is not known"
    # The straight way may be the longer one.
    assert not ways("auto", FAR | {(B, A): 0.16}).direct(ROUTE)


def test_a_node_that_is_the_whole_route_keeps_its_batch_by_itself() -> None:
    for trips in (FAR, NEAR, {}):
        assert ways("auto", trips).direct(ALONE)
    assert not ways("router", FAR).direct(ALONE)
    assert not ways("auto", FAR).direct(Route((Hop(C, LayerRange(0, 6)),))), "an older program"


def test_nodes_on_one_device_keep_their_batch_together() -> None:
    for wanted, direct in (("auto", True), ("direct", True), ("router", False)):
        way = ways(wanted, NEAR, devices="xx ").of(ROUTE)  # type: ignore[arg-type]
        assert way == Way(direct, drafting=direct, together=True)
    for devices in ("xy ", "x  ", "   "):
        assert ways("auto", NEAR, devices=devices).of(ROUTE) == Way(), devices
    # One node has nobody to travel with.
    assert ways("auto", NEAR, devices="xx ").of(ALONE) == Way(direct=True)
    # By the router where the other one cannot do without, or the link is down; together even so.
    assert ways("auto", NEAR, devices="x x").of(OLD) == Way(together=True)
    links = LinkWatch(LinkSettings())
    assert links.lost((B, A), 0.0)
    assert ways("auto", NEAR, links, "xx ").of(ROUTE) == Way(together=True)


def test_first_hops_draft_where_tokens_come_back_to_them_without_the_router() -> None:
    assert ways("direct", {}).of(ROUTE) == Way(direct=True, drafting=True)
    assert ways("direct", {}).of(ALONE) == Way(direct=True)
    assert ways("router", {}).of(ROUTE) == Way()


def test_not_over_a_link_that_does_not_work() -> None:
    links = LinkWatch(LinkSettings())
    links.lost((B, A), 10.0)
    assert not ways("direct", FAR, links).direct(ROUTE)
    assert ways("direct", FAR, links).direct(ALONE)
    links.expire(100.0)
    assert ways("direct", FAR, links).direct(ROUTE)


def test_a_token_that_came_straight_forgives_that_link_too() -> None:
    links = LinkWatch(LinkSettings())
    for at_s in (0.0, 100.0):
        links.lost((B, A), at_s)
        links.expire(at_s + 50)
    links.worked(ROUTE)
    links.lost((B, A), 200.0)
    assert links.expire(203.9) == [], "its pause has doubled twice"
    links.expire(204.0)
    links.worked(ROUTE, direct=True)
    links.lost((B, A), 300.0)
    assert links.expire(301.0) == [(B, A)]


@pytest.fixture
def world() -> World:
    world = World(CoreSettings(token_return="direct"), PAIR, features=(DIRECT,))
    world.join_all()
    return world


def rows(world: World) -> list[tuple[int, bool]]:
    """Position and way of every row that the router has sent."""
    return [(e.position, e.direct) for e in world.effects if isinstance(e, ev.SendRow)]


def test_the_router_sends_the_prompt_and_reads_the_rest(world: World) -> None:
    requests = [world.submit((n, 2), LONG) for n in range(3)]
    world.run()
    # World.check has compared every token with an undisturbed run's.
    assert all(isinstance(world.streams[r].end, Finished) for r in requests)
    assert rows(world) == [(0, True)] * 3


def test_rows_say_on_the_wire_who_sends_the_next(world: World) -> None:
    world.submit((1, 2), LONG)
    header, _ = build_frame(world.in_flight, 7)
    assert [row.flags for row in header.rows] == [5]


def test_tokens_that_were_lost_are_missed(world: World) -> None:
    request = world.submit((1, 2), LONG)
    world.answer()
    row = world.in_flight[0]
    session = world.core.sessions()[request]
    later = TokenItem(request, 0, row.position + 2, 3)
    world.tokens("a", later)
    world.tokens("b", structs.replace(later, attempt=1))
    assert session.attempt == 0, "of another attempt, or from another node"
    world.tokens("b", later)
    assert (session.attempt, session.reroutes) == (1, 1)
    world.in_flight = world.in_flight[-1:]
    world.run()
    assert isinstance(world.streams[request].end, Finished)


def test_a_node_that_only_ever_says_that_tokens_were_lost_is_believed_so_often(
    world: World,
) -> None:
    """Each time the whole prompt goes out again."""
    request = world.submit((1, 2), LONG)
    sent = len(world.in_flight)
    for attempt in range(3 * MAX_REROUTES):
        world.tokens("b", TokenItem(request, attempt, 50, 3))
    assert isinstance(world.streams[request].end, Broken)
    assert len(world.in_flight) - sent == MAX_REROUTES


def test_by_way_of_the_router_a_token_too_many_is_passed_over() -> None:
    world = World(CoreSettings(token_return="router"), PAIR, features=(DIRECT,))
    world.join_all()
    request = world.submit((1, 2), LONG)
    world.answer()
    world.tokens("b", TokenItem(request, 0, 9, 3))
    assert world.core.sessions()[request].attempt == 0
    world.run()
    assert isinstance(world.streams[request].end, Finished)


@pytest.mark.parametrize("hop", [0, 1])
def test_a_last_hop_without_its_way_back_goes_on_by_the_router(world: World, hop: int) -> None:
    request = world.submit((1, 2), LONG)
    world.answer()
    world.refuse(0, hop, "no_return")
    session = world.core.sessions()[request]
    assert session.attempt == 1
    # Only the last hop's word is taken for it; else the node that says so is avoided.
    closed = world.core.cluster.links.closed
    assert closed == ({(B, A)} if hop else frozenset())
    world.pass_time(2)
    world.run()
    assert isinstance(world.streams[request].end, Finished)
    assert rows(world)[1] == (0, not hop)


def test_a_closed_way_back_moves_the_requests_that_use_it(world: World) -> None:
    request = world.submit((1, 2), LONG)
    world.answer()
    world.beat("b", a=4.0)
    assert world.core.sessions()[request].attempt == 1
    assert rows(world)[1:] == [(0, False)]
    world.in_flight = world.in_flight[-1:]
    world.run()
    assert isinstance(world.streams[request].end, Finished)


def test_the_routers_link_to_the_first_hop_carries_only_prompts(world: World) -> None:
    running = world.submit((1, 2), LONG)
    world.answer()
    prompt = world.submit((3, 4), LONG)
    world.handle(ev.LinkLost(A))
    sessions = world.core.sessions()
    assert (sessions[running].attempt, sessions[prompt].attempt) == (0, 1)


def test_no_return_said_by_who_was_not_asked_changes_nothing() -> None:
    world = World(CoreSettings(token_return="router"), PAIR, features=(DIRECT,))
    world.join_all()
    request = world.submit((1, 2), LONG)
    item = RefusedItem(request, 0, "no_return", "because")
    world.handle(ev.RowsRefused(Refused(7, "c", (item,))))
    assert world.core.sessions()[request].attempt == 0
    assert not world.core.cluster.links.closed
