"""Which epochs requests on their way need on which node, and who stays too long. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from helix_mq.ids import Epoch, NodeId
from router.sessions import Session

OLDEST_EPOCHS = 8
"""A request that stays on nodes which keep their slices may see so many re-placements go by."""


def review(
    sessions: Iterable[Session], epoch: Epoch, overdue: Collection[NodeId]
) -> tuple[list[tuple[Session, str]], dict[NodeId, set[Epoch]]]:
    """Sessions to be moved, with the reason, and the epochs that the others use by node.

    `epoch` serves now; `overdue` are nodes whose old slices have waited long enough.
    """
    outstaying: list[tuple[Session, str]] = []
    in_use: dict[NodeId, set[Epoch]] = {}
    for session in sessions:
        route = session.route
        if route is None:
            continue
        if session.epoch != epoch and any(node in overdue for node in route.nodes):
            outstaying.append((session, "a slice it is on is to go"))
        elif session.epoch < epoch - OLDEST_EPOCHS:
            outstaying.append((session, "its epoch is long over"))
        else:
            for node in route.nodes:
                in_use.setdefault(node, set()).add(session.epoch)
    return outstaying, in_use
