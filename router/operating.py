"""What the router offers to those who run it: the cluster's state, drain, re-plan. The operator's
counterpart of router.service; edges know only this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from helix_mq.errors import CallerError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from router.pictures import ClusterPicture, RequestsPicture
from router.trace_book import TracePicture
from router.what_if_desk import WhatIfDesk


class UnknownNode(CallerError):
    code = "unknown_node"
    http_status = 404


class Operator(Protocol):
    """Implemented by the router's app."""

    what_ifs: WhatIfDesk

    def picture(self) -> ClusterPicture: ...

    def requests_picture(self) -> RequestsPicture:
        """The requests that have not ended, the oldest 200 of them."""
        ...

    async def trace(self, name: str) -> TracePicture:
        """What a request took, hop by hop; waits for nodes to tell. Raises UnknownTrace."""
        ...

    def drain(self, node: str) -> None:
        """Has a node leave when others hold its layers. Raises UnknownNode."""
        ...

    def replan(self) -> None:
        """Has a better placement looked for, and taken if it is worth the move."""
        ...

    def place(self, slices: Mapping[NodeId, LayerRange]) -> None:
        """Has these slices made. Raises ConfigError or CapacityError where that cannot be."""
        ...
