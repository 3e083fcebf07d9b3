"""The worker around an engine of the test's: closing while a step runs, refusals, stalls, credit.

The engine books pages as the real one does and fails loudly when it is touched during a step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest

import nodes.worker
from helix_mq.clock import VirtualClock
from helix_mq.errors import FrameError, KvExhausted
from helix_mq.frames import Buffer, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import (
    SAMPLE,
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
from nodes.inbox import NodeView, Payload
from nodes.worker import Batch, OutFrame, StepResult, Worker, WorkerOptions

LAST = Route((Hop(NodeId("me"), LayerRange(0, 4)),))
ONWARD = Route((Hop(NodeId("me"), LayerRange(0, 3)), Hop(NodeId("z"), LayerRange(3, 4))))
VIEW = NodeView("me", frozenset({1}), LayerRange(0, 4), 4, 8, 100, 4096)
SPEC = SampleSpec(SamplingParams(), 2, 0)
WAIT_S = 10.0


class FakeEngine:
    """Pages of one token each. `gate` holds steps; `faults` is raised by the next steps."""

    def __init__(self, pages: int) -> None:
        self.total_pages = pages
        self.held: dict[SeqKey, int] = {}
        self.freed: list[SeqKey] = []
        self.batches: list[list[tuple[SeqKey, int, int]]] = []
        self.faults: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = False
        self.started = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def free_pages(self) -> int:
        return self.total_pages - sum(self.held.values())

    def admit(self, work: Work[Payload]) -> RefusedItem | None:
        assert not self.running
        need = work.position + work.count
        self.held.setdefault(work.seq, 0)
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

    def run(self, batch: Batch, epoch: int) -> StepResult:
        assert epoch == 1
        self.running = True
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
        return StepResult(frames, tokens, 0.001, total, total * 4)


class Bench:
    """A worker at work, what it sent, and the credit that came back."""

    def __init__(self, device: ThreadPoolExecutor, pages: int, limits: BatchLimits) -> None:
        self.engine = FakeEngine(pages)
        self.clock = VirtualClock()
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.unreachable: set[str] = set()
        self.blocked: set[str] = set()
        self.overdrafts = 0
        self.frames = self.credited = 0
        self._changed = asyncio.Event()
        self.worker = Worker(
            VIEW,
            self.engine,
            options=WorkerOptions(epoch=1, limits=limits),
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
    with ThreadPoolExecutor(1) as device:
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
        assert one.engine.free_pages == pages
        assert one.worker.statistics().waiting_rows == 0
        assert one.credited == one.frames, "credit lost or given twice"


def prompt(request: int, count: int = 4, attempt: int = 0, deadline_ms: int = 0) -> Row:
    return Row(request, attempt, 0, count, 0, 0, SAMPLE, deadline_ms, SPEC)


def decode(request: int, position: int) -> Row:
    return Row(request, 0, position, 1, 0, 0, SAMPLE, 0)


def key(request: int, attempt: int = 0) -> SeqKey:
    return SeqKey(RequestId(request), Attempt(attempt))


async def test_a_prompt_then_decodes_become_tokens() -> None:
    async with bench() as b:
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        b.frame(decode(1, 4))
        await b.until(lambda: len(b.tokens) == 2)
        assert [(t.position, t.token) for t in b.tokens] == [(4, 7), (5, 7)]
        b.release(1)
        assert b.engine.freed == [key(1)]
        statistics = b.worker.statistics()
        assert (statistics.steps, statistics.tokens, statistics.layer_tokens) == (2, 5, 20)


async def test_a_sequence_closed_during_a_step_is_freed_after_it_and_says_nothing() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1), prompt(2))
        await b.engine.started.wait()
        b.release(1)
        assert b.engine.freed == [], "the device still reads these pages"
        assert b.worker.statistics().open_requests == 1
        b.engine.gate.set()
        await b.until(lambda: bool(b.tokens))
        assert [t.request for t in b.tokens] == [2]
        assert b.engine.freed == [key(1)]


async def test_a_frame_of_closed_sequences_only_is_not_sent() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1), route=ONWARD)
        await b.engine.started.wait()
        b.release(1)
        b.engine.gate.set()
        await b.until(lambda: b.credited == 1)
        assert b.sent == []


async def test_without_pages_only_that_sequence_is_refused() -> None:
    async with bench(pages=10) as b:
        b.frame(prompt(1, 8), prompt(2, 8), prompt(3, 2))
        await b.until(lambda: len(b.tokens) == 2)
        assert [t.request for t in b.tokens] == [1, 3]
        assert b.refused == [(2, "kv_exhausted")]
        assert key(2) in b.engine.freed


async def test_a_batch_refused_whole_does_not_hold_up_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No grace period, no overdraft: the next batch follows at once."""
    monkeypatch.setattr(nodes.worker, "STALL_GRACE_S", 3600.0)
    async with bench(pages=4, limits=BatchLimits(step_tokens=8, chunk_tokens=8)) as b:
        b.frame(prompt(1, 8), prompt(2, 4))
        await b.until(lambda: len(b.tokens) == 1)
        assert b.refused == [(1, "kv_exhausted")]
        assert b.overdrafts == 0


async def test_a_step_that_fails_refuses_its_rows_and_the_node_goes_on() -> None:
    async with bench() as b:
        b.engine.faults = [RuntimeError("device fault"), KvExhausted("pages went")]
        b.frame(prompt(1))
        await b.until(lambda: len(b.refused) == 1)
        b.frame(prompt(2))
        await b.until(lambda: len(b.refused) == 2)
        assert b.refused == [(1, "step_failed"), (2, "kv_exhausted")]
        b.frame(prompt(3))
        await b.until(lambda: bool(b.tokens))
        assert b.worker.statistics().open_requests == 1


async def test_a_lost_link_gives_up_what_crosses_it_and_nothing_else() -> None:
    async with bench() as b:
        b.frame(prompt(1), route=ONWARD)
        b.frame(prompt(2))
        await b.until(lambda: len(b.sent) == 2)
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "link_lost")]
        assert b.engine.freed == [key(1)]
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "link_lost")], "said once"
        b.frame(decode(2, 4))
        await b.until(lambda: len(b.tokens) == 2)


async def test_refusals_that_a_broken_link_may_have_lost_are_said_again() -> None:
    """The sequence is closed here: were the refusal lost, its request would wait for ever."""
    async with bench(pages=4) as b:
        b.frame(prompt(1, 8), route=ONWARD)
        await b.until(lambda: bool(b.refused))
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "kv_exhausted")]
        b.worker.on_link_lost(ROUTER)
        assert b.refused == [(1, "kv_exhausted")] * 2


async def test_without_a_link_to_the_next_hop_the_rows_are_refused() -> None:
    async with bench() as b:
        b.unreachable.add("z")
        b.frame(prompt(1), route=ONWARD)
        await b.until(lambda: bool(b.refused))
        assert b.refused == [(1, "no_peer")]


async def test_passed_deadlines_close_running_sequences() -> None:
    async with bench() as b:
        deadline_ms = int((b.clock.wall_s() + 5) * 1000)
        b.frame(prompt(1, deadline_ms=deadline_ms))
        await b.until(lambda: bool(b.tokens))
        b.clock.advance(6)
        b.worker.wake()
        await b.until(lambda: bool(b.refused))
        assert b.refused == [(1, "deadline")]
        assert b.engine.freed == [key(1)]


async def test_a_newer_attempt_takes_over_from_the_older_one() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1, 100))
        await b.engine.started.wait()
        b.frame(prompt(1, 50, attempt=1))
        b.engine.gate.set()
        await b.until(lambda: bool(b.tokens))
        assert [(t.attempt, t.position) for t in b.tokens] == [(1, 50)]
        assert b.engine.freed == [key(1)]


async def test_two_attempts_in_one_frame_leave_only_the_newer_one() -> None:
    async with bench() as b:
        b.frame(prompt(1, 4), prompt(1, 4, attempt=1))
        b.worker.check()
        await b.until(lambda: bool(b.tokens))
        assert [t.attempt for t in b.tokens] == [1]


async def test_blocked_prefill_waits_for_credit_and_decodes_go_on() -> None:
    async with bench() as b:
        b.frame(prompt(2))
        await b.until(lambda: len(b.tokens) == 1)
        b.blocked.add("z")
        b.frame(prompt(1), route=ONWARD)
        b.frame(decode(2, 4))
        await b.until(lambda: len(b.tokens) == 2)
        assert not [m for p, m in b.sent if p == "z"]
        b.blocked.clear()
        b.worker.wake()
        await b.until(lambda: bool([m for p, m in b.sent if p == "z"]))
        assert b.overdrafts == 0


async def test_a_stall_ends_in_an_overdraft_however_often_it_is_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peers repeat their grants all the time; that alone must not put the overdraft off."""
    monkeypatch.setattr(nodes.worker, "STALL_GRACE_S", 0.05)
    async with bench() as b:
        b.blocked.add("z")
        b.frame(prompt(1), route=ONWARD)

        async def keep_waking() -> None:
            while not b.overdrafts:
                b.worker.wake()
                await asyncio.sleep(0)

        async with asyncio.timeout(WAIT_S):
            await keep_waking()
        b.release(1)


async def test_cancelling_the_loop_waits_for_the_step() -> None:
    """The device thread must not run on with pages that are already someone else's."""
    async with bench(run=False) as b:
        task = asyncio.create_task(b.worker.run())
        b.engine.gate.clear()
        b.frame(prompt(1))
        await b.engine.started.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        b.engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not b.engine.running
        assert b.tokens == []


async def test_a_bad_frame_is_an_error_for_its_sender_and_credit_comes_back() -> None:
    async with bench() as b:
        with pytest.raises(FrameError):
            b.frame(prompt(1), ids=100)
        assert b.credited == 1
        b.frame(prompt(1))
        await b.until(lambda: bool(b.tokens))


async def test_closing_all_gives_back_rows_that_wait() -> None:
    async with bench(run=False) as b:
        b.frame(prompt(1), prompt(2))
        b.frame(prompt(3), route=ONWARD)
        b.worker.close_all()
        assert b.worker.statistics().waiting_rows == 0
        assert b.credited == 2
