"""What the router offers to those who run it: the cluster's state, drain, re-plan. The operator's
counterpart of router.service; edges know only this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from helix_mq.errors import CallerError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from router.cluster_core import ClusterCore
from router.membership import Member
from router.what_if_desk import WhatIfDesk


class UnknownNode(CallerError):
    code = "unknown_node"
    http_status = 404


class NodePicture(msgspec.Struct, frozen=True):
    node: str
    state: str
    layers: str
    """`0-9`, empty without any."""
    next_layers: str
    """What it is loading for the next placement."""
    epoch: int
    incarnation: int
    device: str
    leaving: bool
    region: str = ""


class ClusterPicture(msgspec.Struct, frozen=True):
    """`doing`: in words, empty when nothing is under way. `verdict`: of the last search."""

    serving: bool
    reason: str
    epoch: int
    flow_tokens_per_s: float
    doing: str
    verdict: str
    searches: int
    nodes: tuple[NodePicture, ...]


class Operator(Protocol):
    """Implemented by the router's app."""

    what_ifs: WhatIfDesk

    def picture(self) -> ClusterPicture: ...

    def drain(self, node: str) -> None:
        """Has a node leave when others hold its layers. Raises UnknownNode."""
        ...

    def replan(self) -> None:
        """Has a better placement looked for, and taken if it is worth the move."""
        ...

    def place(self, slices: Mapping[NodeId, LayerRange]) -> None:
        """Has these slices made. Raises ConfigError or CapacityError where that cannot be."""
        ...


def cluster_picture(cluster: ClusterCore) -> ClusterPicture:
    moves = cluster.moves
    return ClusterPicture(
        serving=cluster.serving,
        reason=cluster.why_not_serving(),
        epoch=cluster.epoch,
        flow_tokens_per_s=cluster.flow.tokens_per_s,
        doing=_doing(cluster),
        verdict=moves.replanner.last_text,
        searches=moves.replanner.ended,
        nodes=tuple(_node(cluster, m) for m in cluster.membership),
    )


def _node(cluster: ClusterCore, member: Member) -> NodePicture:
    moves = cluster.moves
    shift = moves.relocation.shift
    ahead = shift.slices.get(member.name) if shift is not None else None
    return NodePicture(
        node=member.name,
        state=member.state,
        layers=f"{member.layers.first}-{member.layers.end - 1}" if member.layers else "",
        next_layers=f"{ahead.first}-{ahead.end - 1}" if ahead else "",
        epoch=member.epoch,
        incarnation=member.register.incarnation,
        device=member.register.device,
        leaving=member.name in moves.leavers,
        region=member.register.region,
    )


def _doing(cluster: ClusterCore) -> str:
    moves = cluster.moves
    if moves.replanner.searching is not None:
        return "looking for a placement"
    shift = moves.relocation.shift
    if shift is not None:
        waits = sorted(shift.slices.keys() - shift.readies.keys())
        return f"waiting for {', '.join(waits)} to load for the next placement"
    if moves.busy:
        return "waiting for requests to leave old slices"
    if moves.leavers:
        return f"waiting for requests to leave {', '.join(moves.leavers.names())}"
    return ""
