"""One attempt of a request on its way: the legs of its route, as rows carry them. Plain data.

Takes the place of what travels in a frame's header: each row points at the leg it is on, the leg at
the next. Made once per attempt, so that passing a row on costs no lookup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from helix_mq.ids import ROUTER, Attempt, NodeId
from helix_mq.layers import Hop
from helix_mq.messages.data import SampleSpec
from nodes.batching import SeqKey, Work
from router.events import SendRow

if TYPE_CHECKING:
    from bench.simulator.node import SimNode
    from bench.simulator.wires import Wire, Wires


class Leg:
    """One hop of one attempt. `next` is None on the last, whose `wire` leads to the router; `back`
    is the first, on the last of a direct sequence."""

    __slots__ = (
        "back",
        "closed",
        "deadline_ms",
        "layers",
        "live",
        "next",
        "next_hop",
        "node",
        "prompt_tokens",
        "room",
        "sampling",
        "seq",
        "wire",
    )

    def __init__(
        self, seq: SeqKey, hop: Hop, node: SimNode, deadline_ms: int, spec: SampleSpec
    ) -> None:
        self.seq = seq
        self.layers = node.same(hop.layers)
        self.node = node
        self.deadline_ms = deadline_ms
        self.room = 0
        """Tokens that the node's pool has pages for."""
        self.live = False
        """Its first row has come, and it is not closed."""
        self.closed = False
        """Released or refused on this node: its rows are dropped."""
        self.next: Leg | None = None
        self.next_hop: str = ROUTER
        self.wire: Wire | None = None
        """To the next hop; None where the problem has no such link."""
        self.back: Leg | None = None
        self.sampling = spec.sampling
        self.prompt_tokens = spec.prompt_tokens


Row = Work[Leg]


def legs_of(order: SendRow, nodes: Mapping[NodeId, SimNode], wires: Wires) -> Leg:
    """The first leg of the route that an attempt's first row goes on, linked to those behind it."""
    seq = SeqKey(order.request, Attempt(order.attempt))
    assert order.spec is not None
    behind: Leg | None = None
    legs: list[Leg] = []
    for hop in reversed(order.route.hops):
        leg = Leg(seq, hop, nodes[hop.node], order.deadline_ms, order.spec)
        if behind is not None:
            leg.next, leg.next_hop = behind, behind.node.name
        leg.wire = wires.between(hop.node, leg.next_hop)
        legs.append(leg)
        behind = leg
    last, first = legs[0], legs[-1]
    if order.direct:
        last.back = first
    return first


def whole(leg: Leg, start: int, stop: int) -> Leg:
    """A batcher's `cut`: rows here carry no data that would have to be cut."""
    return leg


def sequences_of(rows: list[Row]) -> list[SeqKey]:
    return [row.seq for row in rows]


def pieces_of(rows: list[Row], most: int) -> list[list[Row]]:
    """Rows in lists of at most `most` tokens each, rows cut where need be."""
    if sum([row.count for row in rows]) <= most:
        return [rows]
    pieces: list[list[Row]] = [[]]
    held = 0
    for row in rows:
        done = 0
        while done < row.count:
            if held == most:
                pieces.append([])
                held = 0
            count = min(row.count - done, most - held)
            last = done + count == row.count
            pieces[-1].append(
                Work(
                    row.seq,
                    row.position + done,
                    count,
                    row.layers,
                    row.next_hop,
                    row.sample and last,
                    row.payload,
                )
            )
            held += count
            done += count
    return pieces
