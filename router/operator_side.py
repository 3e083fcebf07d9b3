"""The operator's side of the router's app: what it shows, and what it is told to do. And what all
edges ask about the cluster's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from helix_mq.clock import Clock
from helix_mq.dataplane import DataPlane
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import LinkReport
from router import events as ev
from router.core import Core
from router.operating import UnknownNode
from router.pictures import ClusterPicture, RequestsPicture
from router.picturing import cluster_picture, requests_picture
from router.seeing import Seeing
from router.service import NodeStanding, Standing
from router.settings import RouterSettings
from router.status import node_standings, standing
from router.trace_book import TracePicture
from router.trace_desk import TraceDesk


class OperatorSide(ABC):
    """Part of RouterApp, which has all of these; see router.operating.Operator, and the standings
    of router.service.Service."""

    core: Core
    seeing: Seeing
    traces: TraceDesk
    _settings: RouterSettings
    _plane: DataPlane
    _clock: Clock

    @abstractmethod
    def apply(self, event: ev.Event) -> None:
        """Lets the core decide about an event, and carries out what it wants."""

    def standing(self) -> Standing:
        return standing(self.core.cluster)

    def node_standings(self) -> tuple[NodeStanding, ...]:
        return node_standings(self.core.cluster)

    def own_links(self) -> tuple[LinkReport, ...]:
        """The router's own data links."""
        return tuple(link.report() for link in self._plane.statistics())

    def picture(self) -> ClusterPicture:
        return cluster_picture(self.core, self.seeing, self._settings, self.own_links())

    def requests_picture(self) -> RequestsPicture:
        return requests_picture(self.core.sessions(), self._clock.now_s())

    async def trace(self, name: str) -> TracePicture:
        return await self.traces.trace(name)

    def drain(self, node: str) -> None:
        if node not in self.core.cluster.membership:
            names = [m.name for m in self.core.cluster.membership]
            there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UnknownNode(
                f"no node {node[:80]!r} is in the cluster: there are {there or 'none'}",
                param="node",
            )
        self.apply(ev.DrainWanted(NodeId(node)))

    def replan(self) -> None:
        self.apply(ev.ReplanWanted())

    def place(self, slices: Mapping[NodeId, LayerRange]) -> None:
        self.apply(ev.PlacementWanted(slices))
