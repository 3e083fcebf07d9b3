"""A worker between a fake engine and fake links, for tests at that seam."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import msgspec
import numpy as np

from helix_mq.clock import SystemClock, VirtualClock
from helix_mq.foreseen import Foreseen
from helix_mq.frames import Buffer, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import (
    SAMPLE,
    VERIFY,
    FrameHeader,
    Refused,
    RefusedItem,
    Release,
    ReleaseItem,
    Row,
    SampleSpec,
    TokenItem,
    Tokens,
)
from helix_mq.sampling import SamplingParams
from nodes.batching import BatchLimits, SeqKey, Work
from nodes.device import DeviceThread
from nodes.inbox import NodeView
from nodes.payload import Payload
from nodes.steps import Batch, OutFrame, StepResult, WorkerOptions
from nodes.worker import Worker

LAST = Route((Hop(NodeId("me"), LayerRange(0, 4)),))
ONWARD = Route((Hop(NodeId("me"), LayerRange(0, 3)), Hop(NodeId("z"), LayerRange(3, 4))))
VIEW = NodeView("me", frozenset({1}), LayerRange(0, 4), 4, 8, 100, 4096)
SPEC = SampleSpec(SamplingParams(), 2, 0)
WAIT_S = 240.0


class FakeEngine:
    """Pages of one token each. `gate` holds steps; `faults` is raised by the next steps,
    `admit_faults` by the next rows that are admitted."""

    def __init__(self, pages: int) -> None:
        self.total_pages = pages
        self.held: dict[SeqKey, int] = {}
        self.freed: list[SeqKey] = []
        self.batches: list[list[tuple[SeqKey, int, int]]] = []
        self.faults: list[Exception] = []
        self.admit_faults: list[Exception] = []
        self.disturbed = False
        """Rows were admitted while a step read pages."""
        self.gate = threading.Event()
        self.gate.set()
        self.running = False
        self.stamp = False
        """Whether steps say when they began and ended."""
        self.started = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def free_pages(self) -> int:
        return self.total_pages - sum(self.held.values())

    @property
    def cached_pages(self) -> int:
        return 0

    def begin(self, batch: Batch) -> int | None:
        return None

    def again(self, batch: Batch, payload: memoryview) -> int | None:
        return None

    def end(self) -> StepResult | None:
        raise AssertionError("nothing was begun")

    def draft_room(self, work: Work[Payload]) -> int:
        room = self.free_pages - (work.position + 1 - self.held[work.seq])
        return max(0, min(len(work.drafts), room))

    def admit(self, work: Work[Payload]) -> RefusedItem | None:
        self.disturbed |= self.running
        need = work.position + work.count
        self.held.setdefault(work.seq, 0)
        if self.admit_faults:
            raise self.admit_faults.pop(0)
        if need - self.held[work.seq] > self.free_pages:
            return RefusedItem(work.seq.request, work.seq.attempt, "kv_exhausted", "no page")
        self.held[work.seq] = need
        return None

    def free(self, seq: SeqKey) -> None:
        assert not self.running, "pages freed while a step reads them"
        self.held.pop(seq, None)
        self.freed.append(seq)

    def check(self) -> None:
        assert self.free_pages >= 0

    def run(self, batch: Batch) -> StepResult:
        self.running = True
        began_s = perf_counter()
        self._loop.call_soon_threadsafe(self.started.set)
        assert self.gate.wait(WAIT_S)
        self.batches.append([(w.seq, w.position, w.count) for w in batch])
        self.running = False
        if self.faults:
            raise self.faults.pop(0)
        tokens = [
            TokenItem(w.seq.request, w.seq.attempt, w.position + w.count, 7)
            for w in batch
            if w.sample and w.next_hop == ROUTER
        ]
        onward = [w for w in batch if w.next_hop != ROUTER]
        frames = []
        if onward:
            rows = tuple(
                Row(w.seq.request, w.seq.attempt, w.position, w.count, 0, 1, SAMPLE, 0)
                for w in onward
            )
            count = sum(w.count for w in onward)
            header = FrameHeader(1, "me", "float32", 8, rows, (onward[0].payload.route_blob,))
            data = np.zeros(count * 8, np.float32).data.cast("B")
            frames = [OutFrame("z", header, (data,), frozenset(w.seq for w in onward))]
        total = sum(w.count for w in batch)
        result = StepResult(frames, tokens, 0.001, total, total * 4)
        if not self.stamp:
            return result
        return msgspec.structs.replace(result, began_s=began_s, computed_s=perf_counter())


class Bench:
    """A worker at work, what it sent, and the credit that came back."""

    def __init__(self, device: DeviceThread, pages: int, limits: BatchLimits) -> None:
        self.engine = FakeEngine(pages)
        self.clock = VirtualClock()
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.unreachable: set[str] = set()
        self.blocked: set[str] = set()
        self.overdrafts = 0
        self.frames = self.credited = 0
        self.foreseen: dict[bytes, Foreseen] = {}
        self._changed = asyncio.Event()
        self.worker = Worker(
            VIEW,
            self.engine,
            options=WorkerOptions(limits=limits),
            clock=self.clock,
            device=device,
            links=self,
        )

    def blocked_peers(self) -> set[str]:
        return self.blocked

    def send(self, peer: str, header: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> bool:
        if peer in self.unreachable:
            return False
        self.sent.append((peer, header))
        self._changed.set()
        return True

    def overdraft(self) -> None:
        self.overdrafts += 1
        self._changed.set()

    def _consumed(self) -> None:
        self.credited += 1
        self._changed.set()

    def frame(self, *rows: Row, route: Route = LAST, ids: int = 3) -> None:
        header = FrameHeader(1, ROUTER, "int32", 1, rows, (pack_route(route),))
        values = np.full(sum(r.count for r in rows), ids, np.int32)
        self.frames += 1
        self.worker.on_frame(header, (values.data.cast("B"),), self._consumed)

    def release(self, request: int, attempt: int = 0) -> None:
        self.worker.on_release(Release((ReleaseItem(request, attempt),)))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something the worker does; fails after WAIT_S."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @property
    def tokens(self) -> list[TokenItem]:
        return [t for _, m in self.sent if isinstance(m, Tokens) for t in m.items]

    @property
    def refused(self) -> list[tuple[int, str]]:
        return [
            (r.request, r.code) for _, m in self.sent if isinstance(m, Refused) for r in m.items
        ]


@asynccontextmanager
async def bench(
    pages: int = 1000, limits: BatchLimits | None = None, *, run: bool = True
) -> AsyncIterator[Bench]:
    """A running worker; afterwards no page, row or credit may be missing."""
    with DeviceThread(SystemClock()) as device:
        one = Bench(device, pages, limits or BatchLimits())
        task = asyncio.create_task(one.worker.run()) if run else None
        try:
            yield one
        finally:
            one.engine.gate.set()
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        assert task is None or task.cancelled(), "the step loop died"
        one.worker.check()
        one.worker.close_all()
        one.worker.check()
        assert one.engine.held == {}
        assert not one.engine.disturbed
        assert one.engine.free_pages == pages
        assert one.worker.statistics().waiting_rows == 0
        assert one.credited == one.frames, "credit lost or given twice"


def prompt(request: int, count: int = 4, attempt: int = 0, deadline_ms: int = 0) -> Row:
    return Row(request, attempt, 0, count, 0, 0, SAMPLE, deadline_ms, SPEC)


def decode(request: int, position: int) -> Row:
    return Row(request, 0, position, 1, 0, 0, SAMPLE, 0)


def guessed(request: int, position: int, drafts: int) -> Row:
    return Row(request, 0, position, 1 + drafts, 0, 0, SAMPLE | VERIFY, 0)


def key(request: int, attempt: int = 0) -> SeqKey:
    return SeqKey(RequestId(request), Attempt(attempt))
