"""Bandwidth and latency of links as their senders report them, as far as they may be believed.
Pure.

What trains of probes found counts as the link's capacity, both ways: its sender has confirmed it
before it tells. The rate at which frames were acknowledged is something else. On a link with little
to do it says how little there was, not what the link could carry: one small frame per round trip
looks like a slow link. So it counts only if the link was full: bytes waited for it, not for the
receiver's credit, and it carried a good part of what it is said to; without probes, also if it is
above what was known. A full link's figure is kept for some time after the link was last full, then
the probes' counts again. An estimate that starves a link would never be corrected by use, so what
nothing confirms any more is forgotten.

A new flow is worth its while only where a link could matter: capacities that are ample for the
present flow, before and after, are no change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.control import LinkReport
from router.flows import LinkMeasured
from router.link_watch import Edge
from router.live_problem import (
    TOKEN_BYTES,
    UNMEASURED_BYTES_PER_S,
    UNMEASURED_LATENCY_S,
    LinkSpeed,
)

FULL_SHARE = 0.5
"""Of the reported rate that was sent between two reports, for the link to count as full."""
CREDIT_SHARE = 0.1
"""Of the time that the receiver's credit may have held frames up: more, and it was the receiver."""
TIMES_FULL = 2
"""Reports in a row. One may have caught a single prompt."""
KEPT = 0.5
"""Share of a full link's old estimate that a new one leaves. Probes' figures are averages."""
CHANGE = 1.25
"""Less than this factor of difference gives no new flow."""
AMPLE = 10.0
"""Times what the whole flow would need of a link: it is far from limiting anything. Fast links'
figures scatter by a factor of two on busy machines."""
FORGET_S = 60.0
LEAST_BYTES_PER_S = 1024.0
"""No link is believed to be slower: what limits everything else is not the place for a zero."""


@dataclass(slots=True)
class _Link:
    at_s: float
    sent_bytes: int
    blocked_s: float
    round_trip_s: float
    full: int = 0
    full_s: float = -math.inf
    known_s: float = -math.inf
    """When the estimate was last confirmed."""
    estimate: float = 0.0
    """Bytes/s; 0 where nothing is known."""
    used: float = 0.0
    """By the flow."""


def _unplanned(edge: Edge) -> float:
    return math.inf


class LinkSpeeds:
    def __init__(
        self, activation_bytes: int = 1, planned: Callable[[Edge], float] = _unplanned
    ) -> None:
        """`activation_bytes` of a token between nodes; `planned` gives the bytes/s that a link
        counts with as long as nothing is known."""
        self._activation_bytes = activation_bytes
        self._planned = planned
        self._links: dict[Edge, _Link] = {}

    def report(self, source: NodeId, reports: Iterable[LinkReport], now_s: float) -> None:
        """Of a member's links to members and to the router, at every beat; or of the router's."""
        for said in reports:
            edge = (source, NodeId(said.peer))
            link = self._links.get(edge)
            if link is None or said.sent_bytes < link.sent_bytes:
                link = _Link(now_s, said.sent_bytes, said.blocked_s, said.round_trip_s)
                self._links[edge] = link
            self._observe(link, said, now_s)

    def _observe(self, link: _Link, said: LinkReport, now_s: float) -> None:
        over_s = now_s - link.at_s
        rate = max(said.bytes_per_s, LEAST_BYTES_PER_S)
        if over_s > 0:
            sent = (said.sent_bytes - link.sent_bytes) / over_s
            credit = (said.blocked_s - link.blocked_s) / over_s
            busy = sent >= FULL_SHARE * said.bytes_per_s > 0
            full = busy and said.backlog_bytes > 0 and credit < CREDIT_SHARE
            link.full = link.full + 1 if full else 0
            link.at_s, link.sent_bytes, link.blocked_s = now_s, said.sent_bytes, said.blocked_s
        if link.full >= TIMES_FULL:
            link.full_s = link.known_s = now_s
            link.estimate = KEPT * link.estimate + (1 - KEPT) * rate if link.estimate else rate
        elif said.probed_bytes_per_s > 0:
            if now_s - link.full_s > FORGET_S:
                link.known_s = now_s
                link.estimate = max(said.probed_bytes_per_s, LEAST_BYTES_PER_S)
        elif link.estimate and said.bytes_per_s > link.estimate:
            link.estimate = rate
        link.round_trip_s = said.round_trip_s

    def forget(self, node: NodeId) -> None:
        for edge in [e for e in self._links if node in e]:
            del self._links[edge]

    def changed(self, now_s: float, flow_tokens_per_s: float = math.inf) -> bool:
        """Whether a capacity is another than the flow uses, by so much that it may matter to a flow
        of this size; the next `measured` gives the new."""
        found = False
        for edge, link in self._links.items():
            if link.estimate and now_s - link.known_s > FORGET_S:
                link.estimate = 0.0
            if link.estimate == link.used:
                continue
            size = TOKEN_BYTES if ROUTER in edge else self._activation_bytes
            before = link.used or self._planned(edge)
            after = link.estimate or self._planned(edge)
            low, high = min(before, after), max(before, after)
            if high > CHANGE * low and low < AMPLE * flow_tokens_per_s * size:
                link.used = link.estimate
                found = True
        return found

    def round_trip_s(self, source: NodeId, target: NodeId) -> float:
        """As last reported; 0 where it is not known."""
        link = self._links.get((source, target))
        return link.round_trip_s if link is not None else 0.0

    def measured(self) -> Mapping[Edge, LinkMeasured]:
        """Of the links of which anything is known."""
        return {
            edge: LinkMeasured(link.used, link.round_trip_s / 2)
            for edge, link in sorted(self._links.items())
            if link.used or link.round_trip_s
        }

    def bytes_per_s(self, edge: Edge) -> float:
        """That a link can carry, as last measured; 0 where that is not known."""
        link = self._links.get(edge)
        return link.estimate if link is not None else 0.0

    def planning(self, gain: Callable[[Edge], float] = lambda _: 1.0) -> Mapping[Edge, LinkSpeed]:
        """What a search for a placement is to assume: a view, always of the newest. `gain`: times
        as many tokens that a link carries as it would in the widest form."""
        return _Planning(self._links, gain)


class _Planning(Mapping[Edge, LinkSpeed]):
    def __init__(self, links: Mapping[Edge, _Link], gain: Callable[[Edge], float]) -> None:
        self._links = links
        self._gain = gain

    def __getitem__(self, edge: Edge) -> LinkSpeed:
        link = self._links[edge]
        return LinkSpeed(
            (link.estimate or UNMEASURED_BYTES_PER_S) * self._gain(edge),
            link.round_trip_s / 2 or UNMEASURED_LATENCY_S,
        )

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)
