"""The cheap parts of the router's picture say what the whole of it says."""

from __future__ import annotations

from pathlib import Path

from helix_mq.ids import ROUTER, NodeId
from helix_mq.outlink import OutLinkStatistics
from router.cluster_core import ClusterCore
from router.link_watch import Edge
from router.metrics import RouterMetrics
from router.picturing import cluster_picture
from router.seeing import Seeing
from router.service import NodeStanding, Standing
from router.settings import RouterSettings
from router.status import node_standings, service_status, standing
from tests.router.world import World


def test_the_standing_is_that_of_the_whole_status() -> None:
    world = World()
    seen = [_agreed(world)]
    world.join_all()
    seen.append(_agreed(world))
    for name in ("a", "c"):
        world.lose(name)
    seen.append(_agreed(world))
    world.clock.advance(31.0)
    seen.append(_agreed(world))
    said = [(s.serving, s.recovering, bool(s.reason)) for s in seen]
    assert said == [
        (False, False, True),
        (True, False, False),
        (False, True, True),
        (False, False, True),
    ]


def test_links_to_who_has_left_leave_with_it() -> None:
    """Before the others have spoken again."""
    world = World()
    world.join_all()
    world.beat("a", b=0.0, c=2.5, router=0.0, zed=9.0)
    world.beat("b", a=0.0, c=2.5)
    own = [OutLinkStatistics("c", 0, 0, 1, 0.0, 0.0, 0.0, 2.5)]

    def ends() -> tuple[set[Edge], set[Edge]]:
        status = service_status(world.core, own)
        seeing = Seeing(RouterMetrics(world.clock), world.core.cluster.membership, world.clock)
        settings = RouterSettings(model=Path("m"))
        picture = cluster_picture(world.core, seeing, settings, [s.report() for s in own])
        shown = {(NodeId(x.sender), NodeId(x.receiver)) for x in picture.links}
        return {(NodeId(x.sender), NodeId(x.receiver)) for x in status.links}, shown

    told, shown = ends()
    a, b, c = (NodeId(n) for n in "abc")
    assert told == {(ROUTER, c), (a, b), (a, c), (a, ROUTER), (b, a), (b, c)}
    assert {(ROUTER, c), (a, c), (b, c)} <= shown
    world.lose("c")
    told, shown = ends()
    assert told == {(a, b), (a, ROUTER), (b, a)}
    assert not any("c" in edge for edge in shown)


def _agreed(world: World) -> Standing:
    cluster: ClusterCore = world.core.cluster
    status, now = service_status(world.core, ()), standing(cluster)
    assert now == Standing(status.serving, status.reason, status.recovering)
    assert node_standings(cluster) == tuple(
        NodeStanding(n.node, n.state, n.layers, n.suspect) for n in status.nodes
    )
    return now
