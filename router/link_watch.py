"""Which data links routes may not use, as their senders tell it. Pure; no clock of its own.

An edge closes when its sender reports it unconnected for too long, or has lost rows on it. It opens
again when its sender says that it is connected, and after a loss not before a pause. The pause
doubles with every loss, until a token has come over the edge: a link that keeps breaking is tried
less and less often, and by senders that report nothing the same holds for one that is down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route

Edge = tuple[NodeId, NodeId]
"""Sender and receiver; ROUTER is the first hop's sender and the last hop's receiver."""

_NAMED = 4
"""Edges that a message spells out; the others are counted."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """`down_after_s`: how long a link may be unconnected before it closes. The pauses are those
    after the first loss, and the longest."""

    down_after_s: float = 3.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0


@dataclass(slots=True)
class _Trouble:
    """`pause_s`: for the next loss. `down`: its sender said last that it is not connected."""

    pause_s: float
    until_s: float
    down: bool = False


class LinkWatch:
    def __init__(self, settings: LinkSettings) -> None:
        self.closed: frozenset[Edge] = frozenset()
        self._settings = settings
        self._troubles: dict[Edge, _Trouble] = {}

    def report(
        self, source: NodeId, down_s: Iterable[tuple[NodeId, float]], now_s: float
    ) -> list[Edge]:
        """How long each link out of `source` has been unconnected, 0 for those that work. Gives
        the edges that this closes; `expire` opens the others."""
        limit_s, troubles = self._settings.down_after_s, self._troubles
        newly: list[Edge] = []
        for target, for_s in down_s:
            if not for_s and not troubles:
                continue
            edge = (source, target)
            trouble = troubles.get(edge)
            if edge in self.closed:
                assert trouble is not None
                trouble.down = for_s > 0
            elif for_s > limit_s:
                if trouble is None:
                    trouble = troubles[edge] = _Trouble(self._settings.first_pause_s, now_s)
                trouble.down = True
                newly.append(edge)
        if newly:
            self.closed = self.closed.union(newly)
        return newly

    def lost(self, edge: Edge, now_s: float) -> bool:
        """Rows were lost on the edge, or could not be sent. True if that closes it: one break
        comes as many refusals."""
        if edge in self.closed:
            return False
        trouble = self._troubles.get(edge)
        if trouble is None:
            trouble = self._troubles[edge] = _Trouble(self._settings.first_pause_s, now_s)
        trouble.until_s = now_s + trouble.pause_s
        trouble.pause_s = min(2 * trouble.pause_s, self._settings.longest_pause_s)
        self.closed = self.closed | {edge}
        return True

    def expire(self, now_s: float) -> list[Edge]:
        """Opens the edges that may be tried again; gives them."""
        if not self.closed:
            return []
        troubles = self._troubles
        opened = sorted(
            e for e in self.closed if not troubles[e].down and troubles[e].until_s <= now_s
        )
        self.closed = self.closed.difference(opened)
        return opened

    def worked(self, route: Route, *, direct: bool = False) -> None:
        """A token came round a route: what broke on it before is forgiven."""
        if self._troubles:
            for edge in edges_of(route, direct=direct):
                if edge not in self.closed:
                    self._troubles.pop(edge, None)

    def forget(self, node: NodeId) -> None:
        """The process is gone; the next one of this name has other links."""
        for edge in [e for e in self._troubles if node in e]:
            del self._troubles[edge]
        if self.closed:
            self.closed = frozenset(e for e in self.closed if node not in e)

    def text(self) -> str:
        """`a cannot reach b`; empty if every edge is open."""
        edges = sorted(self.closed)
        named = [f"{_who(source)} cannot reach {_who(target)}" for source, target in edges[:_NAMED]]
        if len(edges) > _NAMED:
            named.append(f"{len(edges) - _NAMED} more such links")
        return ", ".join(named)


def edges_of(route: Route, *, direct: bool = False) -> list[Edge]:
    """From the router along the hops and back to it; for direct return also from the last hop to
    the first."""
    edges = list(pairwise((ROUTER, *route.nodes, ROUTER)))
    if direct and len(route.hops) > 1:
        edges.append((route.hops[-1].node, route.hops[0].node))
    return edges


def _who(node: NodeId) -> str:
    return "the router" if node == ROUTER else node
