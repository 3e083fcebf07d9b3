"""Members that may be dead: not heard of for two heartbeats, or no longer connected. Pure.

New requests avoid a suspect where the others hold its layers; those on it stay, since most suspects
are merely late. It is one until it is heard again, or is dead (router.cluster_core).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from helix_mq.ids import NodeId
from router.membership import Member, NodeState

MISSED_BEATS = 2
LATE_S = 0.25
"""Beyond the beats that are due: one that is late by a turn of a busy machine is not missed."""


class Suspects:
    def __init__(self) -> None:
        self.reasons: Mapping[NodeId, str] = {}
        """Of those that are suspect at present: `not heard for 2.1 s`."""
        self._broken: dict[NodeId, str] = {}
        self._connected: set[NodeId] = set()
        self._unconnected: set[NodeId] = set()

    def broke(self, node: NodeId, what: str) -> None:
        """A connection to the node broke; forgiven when it is heard again."""
        self._broken[node] = f"its {what} connection broke"

    def heard(self, node: NodeId) -> None:
        self._broken.pop(node, None)

    def own_links(self, down_s: Iterable[tuple[NodeId, float]]) -> None:
        """The router's own data links. One that never was connected is no bad sign yet."""
        for node, for_s in down_s:
            if for_s:
                if node in self._connected:
                    self._unconnected.add(node)
            else:
                self._connected.add(node)
                self._unconnected.discard(node)

    def forget(self, node: NodeId) -> None:
        """The process is gone."""
        self._broken.pop(node, None)
        self._connected.discard(node)
        self._unconnected.discard(node)
        self.reasons = {n: why for n, why in self.reasons.items() if n != node}

    def judge(self, members: Iterable[Member], now_s: float) -> tuple[list[NodeId], list[NodeId]]:
        """Those that have become suspects, and those that no longer are. Sets `reasons`."""
        before = self.reasons
        self.reasons = {m.name: why for m in members if (why := self._why(m, now_s))}
        newly = [n for n in self.reasons if n not in before]
        return newly, [n for n in before if n not in self.reasons]

    def _why(self, member: Member, now_s: float) -> str:
        name, silent_s = member.name, now_s - member.last_heard_s
        if member.state is NodeState.LOADING:
            return ""
        if silent_s > MISSED_BEATS * member.register.heartbeat_s + LATE_S:
            return f"not heard for {silent_s:.1f} s"
        if name in self._broken:
            return self._broken[name]
        return "its data connection is down" if name in self._unconnected else ""
