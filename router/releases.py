"""Releases that nodes were told of lately, said again when the link they went over broke. Pure.

A lost release would hold pages until the request's deadline; a repeated one does no harm.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from helix_mq.ids import NodeId
from helix_mq.messages.data import ReleaseItem, TokenItem
from router.events import SendRelease
from router.membership import Membership
from router.sessions import Session

REMEMBERED: Final = 1024
"""Per node: what may have been on its way when a link broke."""


class Releases:
    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._said: dict[NodeId, deque[ReleaseItem]] = {}

    def of(self, session: Session) -> list[SendRelease]:
        """To every hop of its route that is still there."""
        if session.route is None:
            return []
        item = ReleaseItem(session.request, session.attempt)
        nodes = [n for n in sorted(set(session.route.nodes)) if n in self._membership]
        for node in nodes:
            self._said.setdefault(node, deque(maxlen=REMEMBERED)).append(item)
        return [SendRelease(node, item) for node in nodes]

    def stale(self, session: Session | None, node: NodeId, item: TokenItem) -> list[SendRelease]:
        """To who sends tokens of an attempt that is over: a process that was taken for dead may
        have gone on, and passed rows to one that has started since and was never told."""
        if session is not None and item.attempt >= session.attempt:
            return []
        if node not in self._membership:
            return []
        return [SendRelease(node, ReleaseItem(item.request, item.attempt))]

    def again(self, node: NodeId) -> list[SendRelease]:
        """What may have been lost on the way to the node."""
        return [SendRelease(node, item) for item in self._said.get(node, ())]

    def forget(self, node: NodeId) -> None:
        self._said.pop(node, None)
