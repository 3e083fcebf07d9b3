"""Which requests something that broke concerns, and how that is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from helix_mq.ids import NodeId
from router.link_watch import Edge, edges_of
from router.sessions import Session

Affected = Iterator[tuple[Session, str]]


def crossing_node(sessions: Iterable[Session], node: NodeId, why: str) -> Affected:
    """Those whose route goes by the node."""
    for session in sessions:
        if session.route is not None and node in session.route.nodes:
            yield session, f"{node} {why}"


def crossing_links(sessions: Iterable[Session], closed: frozenset[Edge]) -> Affected:
    """Those whose tokens or rows cross one of the links."""
    for session in sessions:
        if session.route is None:
            continue
        if crossed := closed.intersection(edges_of(session.route, direct=session.direct)):
            source, target = min(crossed)
            yield session, f"no link {source} > {target}"


def sent_over(sessions: Iterable[Session], node: NodeId) -> Affected:
    """Those whose next row the router has sent to the node; tokens that a last hop hands to it are
    on another link."""
    for session in sessions:
        if session.route is None or session.route.hops[0].node != node:
            continue
        if session.prefilling or not session.direct:
            yield session, f"link to {node} broke"
