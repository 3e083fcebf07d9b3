"""What an event changed in the cluster: the answer of its core to the core of requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from helix_mq.ids import NodeId
from helix_mq.messages.control import Assign, Leave, Ready, Register, Rejected, Retain
from router import events as ev
from router.link_watch import Edge


@dataclass(slots=True)
class ClusterChange:
    """Effects to carry out, nodes lost, nodes ready, nodes whose former slice takes no more
    requests, links that closed, and whether there is another flow.

    `placed`: nodes are due other slices than before. `given_up`: what was being made is not any
    more, and nobody is to wait for it. `fallback`: no plan was found to begin with.
    """

    effects: list[ev.Effect] = field(default_factory=list)
    gone: list[NodeId] = field(default_factory=list)
    ready: list[tuple[NodeId, Ready]] = field(default_factory=list)
    moved: list[NodeId] = field(default_factory=list)
    closed: list[Edge] = field(default_factory=list)
    flow_changed: bool = False
    flow_fresh: bool = False
    """The other flow is there already."""
    placed: bool = False
    given_up: bool = False
    fallback: bool = False

    def note(self, level: int, text: str, node: str = "", kind: str = "") -> None:
        self.effects.append(ev.Note(level, text, node=node, kind=kind))


def to_member(register: Register, message: Assign | Rejected | Leave | Retain) -> ev.ToNode:
    return ev.ToNode(NodeId(register.node), register.incarnation, message)
