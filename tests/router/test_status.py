"""The cheap parts of the router's picture say what the whole of it says."""

from __future__ import annotations

from router.cluster_core import ClusterCore
from router.service import NodeStanding, Standing
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


def _agreed(world: World) -> Standing:
    cluster: ClusterCore = world.core.cluster
    status, now = service_status(world.core, ()), standing(cluster)
    assert now == Standing(status.serving, status.reason, status.recovering)
    assert node_standings(cluster) == tuple(
        NodeStanding(n.node, n.state, n.layers, n.suspect) for n in status.nodes
    )
    return now
