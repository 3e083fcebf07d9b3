"""What requests took, hop by hop: the nodes' measurements beside the router's own. Pure, bounded.

A node counts the time that a request spends there; what is left of the time between two tokens is
the wire's: links, their queues, and the router's own turn. Clocks of two hosts cannot be compared
to the millisecond, so the wire is that rest and never a difference of two hosts' clocks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from helix_mq.ids import ROUTER, NodeId, RequestId
from helix_mq.layers import Route
from helix_mq.messages.control import HopTrace, PhaseTimes
from router.service import Broken, Finished
from router.sessions import Session, State

KEPT = 2000
"""Traces of requests that have ended."""
MAX_ATTEMPTS = 4
"""Of one request, the newest."""


class PhasePicture(msgspec.Struct, frozen=True):
    """Sums in seconds over `steps` steps with `tokens` tokens."""

    steps: int
    tokens: int
    queue_s: float
    compute_s: float
    serialise_s: float


class HopTimes(msgspec.Struct, frozen=True):
    """One hop of one attempt. `began_s` is Unix time by the node's own clock."""

    node: str
    layers: str
    attempt: int
    known: bool
    """Whether the node has told; all figures are 0 if not."""
    began_s: float
    span_s: float
    prefill: PhasePicture
    decode: PhasePicture


class WireTimes(msgspec.Struct, frozen=True):
    """A link that each decode of the newest route crosses: those from and to the router only where
    tokens return by it. `decode_s`: per token, null where it cannot be told."""

    sender: str
    receiver: str
    decode_s: float | None
    round_trip_s: float
    """As measured by probes; 0 where it was not."""


class TracePicture(msgspec.Struct, frozen=True):
    """`outcome`: a finish reason or an error's code, empty while it lives. `decode_s`: from the
    first token to the last, `decodes` steps. `wire_s`: per decode, over all links, null where it
    cannot be told; `wire_basis` says in words how it is known, or why not."""

    id: str
    state: str
    outcome: str
    submitted_s: float
    """Unix time by the router's clock."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, not computed on its route: kept there from other requests."""
    output_tokens: int
    attempts: int
    queue_s: float
    ttft_s: float
    total_s: float
    decodes: int
    decode_s: float
    hops: tuple[HopTimes, ...]
    wires: tuple[WireTimes, ...]
    wire_s: float | None
    wire_basis: str
    missing: tuple[str, ...]
    """Nodes on its route that have not told."""


@dataclass(slots=True)
class Record:
    """A request that has been on a route: its attempts, what nodes told, how it ended."""

    submitted_s: float
    """Unix time."""
    attempts: list[tuple[int, Route]] = field(default_factory=list)
    direct: bool = False
    """Whether the tokens of the newest attempt go from the last hop to the first by themselves."""
    told: dict[tuple[int, NodeId], HopTrace] = field(default_factory=dict)
    end: Finished | Broken | None = None
    ended_s: float = 0.0
    """Unix time."""

    def untold(self) -> set[NodeId]:
        """Nodes whose last word on some attempt is still to come."""
        return {
            node
            for attempt, route in self.attempts
            for node in route.nodes
            if (known := self.told.get((attempt, node))) is None or known.open
        }


RoundTrip = Callable[[NodeId, NodeId], float]
"""Seconds there and back over a link, 0 where it is not known."""


class TraceBook:
    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._live: dict[RequestId, Record] = {}
        self._ended: OrderedDict[RequestId, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    def get(self, request: RequestId) -> Record | None:
        return self._live.get(request) or self._ended.get(request)

    def routed(
        self,
        request: RequestId,
        attempt: int,
        route: Route,
        submitted_s: float,
        *,
        direct: bool = False,
    ) -> None:
        record = self._live.get(request)
        if record is None:
            record = self._live[request] = Record(submitted_s)
        record.attempts.append((attempt, route))
        record.direct = direct
        if len(record.attempts) > MAX_ATTEMPTS:
            gone, _ = record.attempts.pop(0)
            record.told = {k: v for k, v in record.told.items() if k[0] != gone}

    def ended(self, request: RequestId, end: Finished | Broken, at_s: float) -> Record | None:
        """None where it never was on a route."""
        record = self._live.pop(request, None)
        if record is None:
            return None
        record.end, record.ended_s = end, at_s
        self._ended[request] = record
        while len(self._ended) > self._kept:
            self._ended.popitem(last=False)
        return record

    def told(self, node: NodeId, trace: HopTrace) -> bool:
        """What a node says of a request; False if it is none that went through it."""
        record = self.get(RequestId(trace.request))
        if record is None:
            return False
        for attempt, route in record.attempts:
            if attempt == trace.attempt and node in route.nodes:
                record.told[attempt, node] = trace
                return True
        return False


def trace_picture(
    request: RequestId,
    record: Record,
    session: Session | None,
    now_s: float,
    round_trip_s: RoundTrip,
) -> TracePicture:
    """`session` while it lives, with `now_s` on the same clock as its times."""
    run = _run(record, session, now_s)
    hops = tuple(
        _hop(attempt, node, layers, record.told.get((attempt, node)))
        for attempt, route in record.attempts
        for node, layers in ((h.node, str(h.layers)) for h in route.hops)
    )
    wire_s, basis = _wire(run, record)
    route = record.attempts[-1][1]
    return TracePicture(
        id=f"{request:x}",
        state=run.state,
        outcome=run.outcome,
        submitted_s=record.submitted_s,
        prompt_tokens=run.prompt_tokens,
        cached_tokens=run.cached_tokens,
        output_tokens=run.output_tokens,
        attempts=record.attempts[-1][0] + 1,
        queue_s=run.queue_s,
        ttft_s=run.ttft_s,
        total_s=run.total_s,
        decodes=run.decodes,
        decode_s=run.decode_s,
        hops=hops,
        wires=_wires(route, record.direct, wire_s, round_trip_s),
        wire_s=wire_s,
        wire_basis=basis,
        missing=tuple(sorted({h.node for h in hops if not h.known})),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """The router's own measurements. `decodes` took `decode_s` together."""

    state: str
    outcome: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    decodes: int = 0
    decode_s: float = 0.0


def _run(record: Record, session: Session | None, now_s: float) -> _Run:
    end = record.end
    if isinstance(end, Finished):
        decodes = max(0, end.output_tokens - 1)
        return _Run(
            state="finished",
            outcome=end.finish_reason,
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
            output_tokens=end.output_tokens,
            queue_s=end.queue_s,
            ttft_s=end.ttft_s,
            total_s=end.total_s,
            decodes=decodes,
            decode_s=end.total_s - end.ttft_s if decodes else 0.0,
        )
    if isinstance(end, Broken):
        return _Run("failed", end.error.code, total_s=record.ended_s - record.submitted_s)
    if session is None:
        return _Run("running")
    first_s, started_s = session.first_token_s, session.started_s
    decodes = max(0, len(session.output) - 1)
    return _Run(
        state="running" if session.state is State.RUNNING else "queued",
        prompt_tokens=session.prompt_tokens,
        cached_tokens=session.cached_tokens,
        output_tokens=len(session.output),
        queue_s=(started_s if started_s is not None else now_s) - session.arrived_s,
        ttft_s=first_s - session.arrived_s if first_s is not None else 0.0,
        total_s=now_s - session.arrived_s,
        decodes=decodes,
        decode_s=session.sent_s - first_s if first_s is not None and decodes else 0.0,
    )


_NOTHING = PhaseTimes()


def _hop(attempt: int, node: NodeId, layers: str, told: HopTrace | None) -> HopTimes:
    return HopTimes(
        node=node,
        layers=layers,
        attempt=attempt,
        known=told is not None,
        began_s=told.began_ms / 1000 if told is not None else 0.0,
        span_s=told.span_s if told is not None else 0.0,
        prefill=_phase(told.prefill if told is not None else _NOTHING),
        decode=_phase(told.decode if told is not None else _NOTHING),
    )


def _phase(times: PhaseTimes) -> PhasePicture:
    return PhasePicture(
        times.steps, times.tokens, times.queue_s, times.compute_s, times.serialise_s
    )


def _wire(run: _Run, record: Record) -> tuple[float | None, str]:
    """Seconds per decode that no node accounts for, and how that is known."""
    attempt, route = record.attempts[-1]
    if attempt:
        return None, "not told apart: the request was re-routed, and waited in between"
    if not run.decodes or run.decode_s <= 0:
        return None, "not known: no token after the first"
    own_s, steps = 0.0, 0
    for node in route.nodes:
        told = record.told.get((attempt, node))
        if told is None or not told.decode.steps:
            return None, f"not known: {node} has not told what it measured"
        # A live request's hops are a token apart: means, not sums, are comparable.
        own_s += _spent(told.decode) / told.decode.steps
        steps = max(steps, told.decode.steps)
    # With drafts there are fewer decodes than tokens.
    rest_s = run.decode_s / min(run.decodes, steps) - own_s
    whose = "links and their queues" if record.direct else "links, their queues and the router"
    return max(0.0, rest_s), (
        f"the time between two tokens less what the hops account for: {whose}; told apart by the "
        "links' measured round trips where all are known, else evenly"
    )


def _spent(phase: PhaseTimes) -> float:
    return phase.queue_s + phase.compute_s + phase.serialise_s


def _wires(
    route: Route, direct: bool, wire_s: float | None, round_trip_s: RoundTrip
) -> tuple[WireTimes, ...]:
    nodes = route.nodes
    if direct:
        # A node alone hands its tokens to itself.
        edges = list(pairwise((*nodes, nodes[0]))) if len(nodes) > 1 else []
    else:
        edges = list(pairwise((ROUTER, *nodes, ROUTER)))
    trips = [round_trip_s(*edge) for edge in edges]
    shares = _shares(trips)
    return tuple(
        WireTimes(a, b, wire_s * share if wire_s is not None else None, trip)
        for (a, b), trip, share in zip(edges, trips, shares, strict=True)
    )


def _shares(trips: Sequence[float]) -> list[float]:
    if not trips:
        return []
    total = math.fsum(trips)
    if min(trips) <= 0:
        return [1 / len(trips)] * len(trips)
    return [trip / total for trip in trips]
