"""What each request takes on this node: queueing, computing, serialising. Bounded.

Three readings of the clock per step, shared by its rows: a row was in a step for as long as the
step took, whoever else was in it. Of a sequence only what does not overlap is counted, so the parts
add up to the time it spent here. When it leaves, its sums wait for the next heartbeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Protocol

from helix_mq.clock import Clock
from helix_mq.messages.control import HopTrace, PhaseTimes, Traces, TraceWanted
from nodes.batching import SeqKey

MAX_LEFT = 4096
"""Of requests that have left and were not told of yet: the oldest are forgotten."""
MAX_ITEMS = 512
"""In one message."""


class _Use(Protocol):
    arrived_s: float


class _Payload(Protocol):
    @property
    def use(self) -> _Use: ...


class TracedRow(Protocol):
    """A row of a step; nodes.batching.Work is one."""

    @property
    def seq(self) -> SeqKey: ...

    @property
    def count(self) -> int: ...

    @property
    def sample(self) -> bool: ...

    @property
    def payload(self) -> _Payload: ...


class _Phase:
    __slots__ = ("compute_s", "queue_s", "serialise_s", "steps", "tokens")

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.queue_s = self.compute_s = self.serialise_s = 0.0

    def times(self) -> PhaseTimes:
        return PhaseTimes(
            self.steps,
            self.tokens or self.steps,
            self.queue_s,
            self.compute_s,
            self.serialise_s,
        )


class _Record:
    __slots__ = ("began_ms", "began_s", "decode", "last_s", "prefill", "sampled")

    def __init__(self, began_s: float, began_ms: int) -> None:
        self.began_s = self.last_s = began_s
        self.began_ms = began_ms
        self.sampled = False
        """Its prompt has been computed to the end: what follows is decoding."""
        self.prefill = _Phase()
        self.decode = _Phase()

    def trace(self, seq: SeqKey, *, open_: bool) -> HopTrace:
        return HopTrace(
            request=seq.request,
            attempt=seq.attempt,
            began_ms=self.began_ms,
            span_s=self.last_s - self.began_s,
            prefill=self.prefill.times(),
            decode=self.decode.times(),
            open=open_,
        )


class Tracer:
    """Of one node; as many records as there are open sequences, which the ledger bounds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[SeqKey, _Record] = {}
        self._left: deque[HopTrace] = deque(maxlen=MAX_LEFT)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, seq: SeqKey) -> None:
        """Its first row is here."""
        self._open[seq] = _Record(perf_counter(), max(0, int(self._clock.wall_s() * 1000)))

    def stepped(
        self, rows: Sequence[TracedRow], began_s: float, computed_s: float, sent_s: float
    ) -> None:
        """A step with these rows ended well; times are of the process's performance counter."""
        compute_s, serialise_s = computed_s - began_s, sent_s - computed_s
        records = self._open
        for row in rows:
            record = records.get(row.seq)
            if record is None:
                continue
            arrived_s = row.payload.use.arrived_s
            last_s = record.last_s
            record.last_s = sent_s
            # Not by the row's own size: the last piece of a prompt may be one token long.
            if record.sampled:
                phase = record.decode
            else:
                phase = record.prefill
                phase.tokens += row.count
                record.sampled = row.sample
            phase.steps += 1
            phase.queue_s += began_s - (arrived_s if arrived_s > last_s else last_s)
            phase.compute_s += compute_s
            phase.serialise_s += serialise_s

    def close(self, seq: SeqKey) -> None:
        """It has left, if it was here."""
        record = self._open.pop(seq, None)
        if record is not None and (record.prefill.steps or record.decode.steps):
            self._left.append(record.trace(seq, open_=False))

    def take(self) -> Iterator[Traces]:
        """Of those that have left since it was last asked."""
        while self._left:
            items = [self._left.popleft() for _ in range(min(MAX_ITEMS, len(self._left)))]
            yield Traces(tuple(items))

    def answer(self, wanted: TraceWanted) -> Traces:
        """All that is known of a request, whether it has left or not."""
        items = [t for t in self._left if t.request == wanted.request]
        items += [
            record.trace(seq, open_=True)
            for seq, record in self._open.items()
            if seq.request == wanted.request
        ]
        return Traces(tuple(items[-MAX_ITEMS:]), wanted.number)
