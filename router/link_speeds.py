"""Bandwidth and latency of links as their senders report them, as far as they may be believed.
Pure.

A sender reports the best rate at which bytes were acknowledged lately. On a link with little to do
that says how little there was, not what the link could carry: one small frame per round trip looks
like a slow link. So a report lowers a link's capacity only if the link was full: bytes waited for
it, not for the receiver's credit, and it carried a good part of what it is said to. A rate above
what is assumed is proof of itself. An estimate that starves a link would never be corrected by use,
so what was found is forgotten some time after the link was last full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from helix_mq.ids import NodeId
from helix_mq.messages.control import LinkReport
from router.flows import LinkMeasured
from router.link_watch import Edge

FULL_SHARE = 0.5
"""Of the reported rate that was sent between two reports, for the link to count as full."""
CREDIT_SHARE = 0.1
"""Of the time that the receiver's credit may have held frames up: more, and it was the receiver."""
TIMES_FULL = 2
"""Reports in a row. One may have caught a single prompt."""
KEPT = 0.5
"""Share of the old estimate that a new one leaves."""
CHANGE = 1.25
"""Less than this factor of difference gives no new flow."""
FORGET_S = 60.0


@dataclass(slots=True)
class _Link:
    at_s: float
    sent_bytes: int
    blocked_s: float
    round_trip_s: float
    full: int = 0
    full_s: float = 0.0
    estimate: float = 0.0
    """Bytes/s; 0 where nothing is known."""
    used: float = 0.0
    """By the flow."""


class LinkSpeeds:
    def __init__(self) -> None:
        self._links: dict[Edge, _Link] = {}

    def report(self, source: NodeId, reports: Iterable[LinkReport], now_s: float) -> None:
        """Of a member's links to members and to the router, at every beat."""
        for said in reports:
            edge = (source, NodeId(said.peer))
            link = self._links.get(edge)
            if link is None or said.sent_bytes < link.sent_bytes:
                self._links[edge] = _Link(now_s, said.sent_bytes, said.blocked_s, said.round_trip_s)
                continue
            self._observe(link, said, now_s)

    def _observe(self, link: _Link, said: LinkReport, now_s: float) -> None:
        over_s = now_s - link.at_s
        if over_s <= 0:
            return
        sent = (said.sent_bytes - link.sent_bytes) / over_s
        credit = (said.blocked_s - link.blocked_s) / over_s
        rate = said.bytes_per_s
        full = said.backlog_bytes > 0 and credit < CREDIT_SHARE and sent >= FULL_SHARE * rate > 0
        link.full = link.full + 1 if full else 0
        if link.full >= TIMES_FULL:
            link.full_s = now_s
            link.estimate = KEPT * link.estimate + (1 - KEPT) * rate if link.estimate else rate
        elif link.estimate and rate > link.estimate:
            link.estimate = rate
        link.at_s, link.sent_bytes, link.blocked_s = now_s, said.sent_bytes, said.blocked_s
        link.round_trip_s = said.round_trip_s

    def forget(self, node: NodeId) -> None:
        for edge in [e for e in self._links if node in e]:
            del self._links[edge]

    def changed(self, now_s: float) -> bool:
        """Whether a capacity is another than the flow uses; the next `measured` gives the new."""
        found = False
        for link in self._links.values():
            if link.estimate and now_s - link.full_s > FORGET_S:
                link.estimate = 0.0
            if _apart(link.estimate, link.used):
                link.used = link.estimate
                found = True
        return found

    def measured(self) -> Mapping[Edge, LinkMeasured]:
        """Of the links of which anything is known."""
        return {
            edge: LinkMeasured(link.used, link.round_trip_s / 2)
            for edge, link in sorted(self._links.items())
            if link.used or link.round_trip_s
        }


def _apart(one: float, other: float) -> bool:
    return one != other and max(one, other) > CHANGE * min(one, other)
