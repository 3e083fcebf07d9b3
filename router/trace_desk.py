"""Traces as the router offers them: kept as nodes tell, and asked for where somebody wants one now.

Nodes tell of requests that have left them with their heartbeats; of one that lives they are asked.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from helix_mq.clock import Clock
from helix_mq.errors import CallerError
from helix_mq.ids import ROUTER, NodeId, RequestId
from helix_mq.messages.control import LinkReport, Traces, TraceWanted
from router.core import Core
from router.events import Emit, SendRow
from router.service import Delta
from router.trace_book import Record, TraceBook, TracePicture, trace_picture

ANSWER_S = 2.0
"""How long nodes are waited for; one that does not answer has its hop left out."""
MAX_ASKED = 64
"""At once; more are answered with what is known."""
_ID = re.compile(r"[0-9a-f]{1,16}", re.ASCII | re.IGNORECASE)


class UnknownTrace(CallerError):
    code = "not_found"
    http_status = 404


class TraceDesk:
    def __init__(
        self,
        core: Core,
        to_node: Callable[[str, int, msgspec.Struct], None],
        own_links: Callable[[], Iterable[LinkReport]],
        clock: Clock,
    ) -> None:
        self.book = TraceBook()
        self.ended: deque[RequestId] | None = None
        """Where an exporter wants to know: requests that have ended, oldest first."""
        self._core = core
        self._to_node = to_node
        self._own_links = own_links
        self._clock = clock
        self._number = 0
        self._asked: dict[int, tuple[set[NodeId], asyncio.Event]] = {}

    # -- what happens -----------------------------------------------------------

    def routed(self, row: SendRow) -> None:
        """A row goes out; only the first of an attempt says anything new."""
        if row.spec is None:
            return
        session = self._core.sessions().get(row.request)
        age_s = self._clock.now_s() - session.arrived_s if session is not None else 0.0
        submitted_s = self._clock.wall_s() - age_s
        self.book.routed(row.request, row.attempt, row.route, submitted_s, direct=row.direct)

    def emitted(self, emit: Emit) -> None:
        if isinstance(emit.event, Delta):
            return
        record = self.book.ended(emit.request, emit.event, self._clock.wall_s())
        if record is not None and self.ended is not None:
            self.ended.append(emit.request)

    def told(self, node: NodeId, traces: Traces) -> None:
        """By the node that a connection belongs to."""
        for trace in traces.items:
            self.book.told(node, trace)
        asked = self._asked.get(traces.number)
        if asked is not None:
            asked[0].discard(node)
            if not asked[0]:
                asked[1].set()

    # -- what is asked ----------------------------------------------------------

    async def trace(self, name: str) -> TracePicture:
        """By the id of a request, or the name its answer carries. Raises UnknownTrace."""
        request = _request_of(name)
        record = self.book.get(request) if request is not None else None
        if request is None or record is None:
            if request is not None and request in self._core.sessions():
                raise UnknownTrace(
                    f"request {name[:100]} waits for a route: nothing is known of it yet",
                    param="id",
                )
            raise UnknownTrace(
                f"no trace of a request {name[:100]!r}: it never was on a route, ended too long "
                "ago, or was another router's",
                param="id",
            )
        await self._ask(request, record)
        return self.picture(request, record)

    def picture(self, request: RequestId, record: Record) -> TracePicture:
        """With what is known now."""
        session = self._core.sessions().get(request)
        return trace_picture(request, record, session, self._clock.now_s(), self._round_trip_s)

    async def _ask(self, request: RequestId, record: Record) -> None:
        members = self._core.cluster.membership
        wanted = {n for n in record.untold() if n in members}
        if not wanted or len(self._asked) >= MAX_ASKED:
            return
        self._number += 1
        number = self._number
        answered = asyncio.Event()
        self._asked[number] = (wanted, answered)
        for node in sorted(wanted):
            member = members.get(node)
            assert member is not None
            self._to_node(node, member.register.incarnation, TraceWanted(request, number))
        try:
            async with asyncio.timeout(ANSWER_S):
                await answered.wait()
        except TimeoutError:
            pass
        finally:
            del self._asked[number]

    def _round_trip_s(self, sender: NodeId, receiver: NodeId) -> float:
        reports: Iterable[LinkReport] = ()
        if sender == ROUTER:
            reports = self._own_links()
        else:
            member = self._core.cluster.membership.get(sender)
            if member is not None and member.beat is not None:
                reports = member.beat.links
        return next((x.round_trip_s for x in reports if x.peer == receiver), 0.0)


def _request_of(name: str) -> RequestId | None:
    """`chatcmpl-18f3c2.Zm9v`, `18f3c2.Zm9v` and `18f3c2` are the same request."""
    digits = name.partition(".")[0].rpartition("-")[2]
    return RequestId(int(digits, 16)) if _ID.fullmatch(digits) else None
