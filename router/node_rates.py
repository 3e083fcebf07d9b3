"""What nodes did lately, from the cumulative counters of their heartbeats. Pure.

Kept per node: a few beats' counters over some seconds, and what its links had counted one beat ago;
so a cluster of 256 nodes with all links takes a few MiB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from helix_mq.ids import NodeId
from helix_mq.messages.control import Heartbeat, LinkReport

SPAN_S = 5.0
"""Over which rates are taken, where beats go back that far."""
LEAST_GAP_S = 0.4
"""Between two beats that are kept; nodes may beat far more often."""


@dataclass(frozen=True, slots=True)
class NodeRate:
    """Over the last seconds: tokens through the slice, share of the time in steps, seconds of a
    step and what it should have taken by the node's own measurements (0: not known)."""

    tokens_per_s: float = 0.0
    busy_share: float = 0.0
    steps_per_s: float = 0.0
    step_s: float = 0.0
    expected_step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkRate:
    """`blocked_share`: of the time that frames waited for the receiver's credit."""

    bytes_per_s: float = 0.0
    blocked_share: float = 0.0


@dataclass(frozen=True, slots=True)
class _Counters:
    at_s: float
    steps: int
    step_s: float
    expected_s: float
    tokens: int


@dataclass(slots=True)
class _Links:
    at_s: float
    counts: dict[str, tuple[int, float]]
    rates: dict[str, LinkRate] = field(default_factory=dict)


class NodeRates:
    def __init__(self) -> None:
        self._counters: dict[NodeId, deque[_Counters]] = {}
        self._links: dict[NodeId, _Links] = {}

    def beat(self, beat: Heartbeat, now_s: float) -> None:
        name = NodeId(beat.node)
        ring = self._counters.setdefault(name, deque(maxlen=16))
        now = _Counters(now_s, beat.steps, beat.step_s, beat.expected_s, beat.tokens)
        if ring and (now.steps < ring[-1].steps or now.tokens < ring[-1].tokens):
            # Another process of that name.
            ring.clear()
        if not ring or now_s - ring[-1].at_s >= LEAST_GAP_S:
            ring.append(now)
            while len(ring) > 2 and now_s - ring[1].at_s >= SPAN_S:
                ring.popleft()
            self.links(name, beat.links, now_s)

    def links(self, source: NodeId, reports: Sequence[LinkReport], now_s: float) -> None:
        """Of a node's links, or of the router's own."""
        counts = {said.peer: (said.sent_bytes, said.blocked_s) for said in reports}
        before = self._links.get(source)
        if before is not None and now_s - before.at_s < LEAST_GAP_S:
            return
        fresh = _Links(now_s, counts)
        if before is not None:
            over_s = now_s - before.at_s
            for peer, (sent, blocked_s) in counts.items():
                past = before.counts.get(peer)
                if past is not None and sent >= past[0]:
                    share = min(1.0, max(0.0, (blocked_s - past[1]) / over_s))
                    if sent > past[0] or share:
                        fresh.rates[peer] = LinkRate((sent - past[0]) / over_s, share)
        self._links[source] = fresh

    def keep(self, names: set[NodeId]) -> None:
        """Forgets all others."""
        for table in (self._counters, self._links):
            for name in table.keys() - names:
                del table[name]

    def node(self, name: NodeId) -> NodeRate:
        ring = self._counters.get(name)
        if ring is None or len(ring) < 2:
            return NodeRate()
        first, last = ring[0], ring[-1]
        over_s, steps = last.at_s - first.at_s, last.steps - first.steps
        step_s, expected_s = last.step_s - first.step_s, last.expected_s - first.expected_s
        return NodeRate(
            tokens_per_s=(last.tokens - first.tokens) / over_s,
            busy_share=min(1.0, max(0.0, step_s / over_s)),
            steps_per_s=steps / over_s,
            step_s=max(0.0, step_s / steps) if steps else 0.0,
            expected_step_s=max(0.0, expected_s / steps) if steps else 0.0,
        )

    def busy(self, source: NodeId) -> Collection[str]:
        """Peers to which something was sent, or waits."""
        known = self._links.get(source)
        return known.rates.keys() if known is not None else ()

    def link(self, source: NodeId, target: NodeId) -> LinkRate:
        known = self._links.get(source)
        return known.rates.get(target, LinkRate()) if known is not None else LinkRate()
