"""When queries enter a compatibility run: offline (keep it full) and online (a trace of arrivals).

Offline with max flow: 20 queries, then one more whenever a prefill or a query ends while the
fullest layer is expected to use at most 80% of its KV room. Offline otherwise: a fixed number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.simulator.reference.reading import ReferenceDataError
from bench.simulator.reference.routing import MaxFlowScheduler

if TYPE_CHECKING:
    from bench.simulator.reference.engine import Engine

FIRST_QUERIES = 20
SPACING_S = 0.1
FEEDING_MARK = 0.8


class FillingFeeder:
    """Feeds up to the mark of expected KV use. A refused query is dropped."""

    def __init__(self, start_s: float, scheduler: MaxFlowScheduler) -> None:
        self._start_s = start_s
        self._scheduler = scheduler
        self.dropped = 0

    def begin(self, engine: Engine) -> None:
        for position in range(FIRST_QUERIES):
            engine.arrive_at(self._start_s + position * SPACING_S)

    def prompt_ended(self, engine: Engine, now_s: float) -> None:
        if self._scheduler.bottleneck() <= FEEDING_MARK:
            engine.arrive_at(now_s + SPACING_S)

    def query_ended(self, engine: Engine, now_s: float) -> None:
        self.prompt_ended(engine, now_s)

    def refused(self, query: int, now_s: float) -> None:
        self.dropped += 1


class FixedFeeder:
    """Keeps `in_flight` queries in the system: a new one whenever one ends."""

    def __init__(self, start_s: float, in_flight: int) -> None:
        self._start_s = start_s
        self._in_flight = in_flight

    def begin(self, engine: Engine) -> None:
        for position in range(self._in_flight):
            engine.arrive_at(self._start_s + position * SPACING_S)

    def prompt_ended(self, engine: Engine, now_s: float) -> None: ...

    def query_ended(self, engine: Engine, now_s: float) -> None:
        engine.arrive_at(now_s + SPACING_S)

    def refused(self, query: int, now_s: float) -> None:
        raise ReferenceDataError(f"query {query} found no way at {now_s} s", param="scheduler")


class TraceFeeder:
    """Queries enter at their own times; one that finds no way ends the run with an error."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s

    def begin(self, engine: Engine) -> None:
        for query in engine.queries:
            engine.arrive_at(self._start_s + query.arrival_s)

    def prompt_ended(self, engine: Engine, now_s: float) -> None: ...

    def query_ended(self, engine: Engine, now_s: float) -> None: ...

    def refused(self, query: int, now_s: float) -> None:
        raise ReferenceDataError(
            f"query {query} found no way at {now_s} s: online, the published simulator ends here",
            param="scheduler",
        )
