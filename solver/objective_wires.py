"""The links that a placement's flow takes, and those that its tokens return over, as the serving
estimate reckons with them. Pure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.ids import NodeId
from helix_mq.outlink import MIN_PIECE_BYTES
from helix_mq.pacing import QUEUE_S
from solver.flow import FlowSolution
from solver.problem import SINK, SOURCE, Problem, ProblemLink
from solver.token_return import LEAST_SHARE, Straight


@dataclass(frozen=True, slots=True)
class Wire:
    """Shares are of all requests: `prompts` pass it on their first trip, `rows` of the decodes pass
    it, and `waits` of them cannot go on before they have. A token that has gone straight to the
    first hop passes the link to the router, but nobody waits for it."""

    name: str
    prompts: float
    rows: float
    waits: float
    row_s: float
    """To send one token's worth."""
    piece_s: float
    """What a decode may find on the wire before it."""
    latency_s: float


def wires_of(problem: Problem, flow: FlowSolution, straight: Sequence[Straight] = ()) -> list[Wire]:
    """Of the flow in its own order, then those that lead straight back."""
    links: dict[tuple[NodeId, NodeId], ProblemLink] = {(k.src, k.dst): k for k in problem.links}
    by_first: dict[NodeId, float] = defaultdict(float)
    by_last: dict[NodeId, float] = defaultdict(float)
    for way in straight:
        by_first[way.first] += way.share
        by_last[way.last] += way.share
    wires = []
    for edge in flow.edges:
        if edge.tokens_per_s > flow.tokens_per_s * LEAST_SHARE:
            share = edge.tokens_per_s / flow.tokens_per_s
            rows = waits = share
            if edge.src == SOURCE:
                rows = waits = max(0.0, share - by_first[edge.dst])
            elif edge.dst == SINK:
                waits = max(0.0, share - by_last[edge.src])
            router = edge.src == SOURCE or edge.dst == SINK
            size = problem.token_bytes if router else problem.activation_bytes
            wires.append(_wire(links[edge.src, edge.dst], size, share, rows, waits))
    size = problem.token_bytes
    back = [(w.link, w.share) for w in straight if w.link is not None]
    return wires + [_wire(link, size, 0.0, share, share) for link, share in back]


def _wire(link: ProblemLink, size: int, prompts: float, rows: float, waits: float) -> Wire:
    return Wire(
        name=f"{link.src} -> {link.dst}",
        prompts=prompts,
        rows=rows,
        waits=waits,
        row_s=size / link.bytes_per_s,
        piece_s=max(QUEUE_S / 2, max(MIN_PIECE_BYTES, size) / link.bytes_per_s),
        latency_s=link.latency_s,
    )


@dataclass(slots=True)
class Trips:
    """Seconds of a round trip, summed as its parts are met: of a decode; of a request's first, by
    the router; and what its prompt takes longer than a row."""

    decode: list[float]
    first: list[float]
    prompt_extra: list[float]

    def passed(self, wire: Wire, over_s: float, prompt_s: float) -> None:
        """A row takes `over_s` over the wire, waiting included; a prompt `prompt_s` to send."""
        self.decode.append(wire.waits * over_s)
        self.first.append(wire.prompts * over_s)
        self.prompt_extra.append(wire.prompts * (prompt_s - wire.row_s))

    def visited(self, visit_s: float) -> None:
        """A node, decode or prompt."""
        self.decode.append(visit_s)
        self.first.append(visit_s)

    @property
    def round_trip_s(self) -> float:
        return math.fsum(self.decode)

    def life_s(self, output_tokens: float) -> float:
        """Of a request: a trip per token, and the first."""
        first_s = math.fsum(self.first) + math.fsum(self.prompt_extra)
        return output_tokens * self.round_trip_s + first_s
