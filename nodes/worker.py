"""The node at work: frames in, steps on the device thread, frames and tokens out.

Owns the ledger, the batcher and one engine; no sockets (it is given `send`) and no membership.
While a step runs nothing touches the KV pages: frees wait in `_frees` until the device is idle.
A worker may serve several epochs of the placement; what comes of a row leaves under the row's.
The event loop only books and forwards; tensors are worked on by the device thread or engine's own.

What a decode takes here is counted in Python calls: each costs some 3 us when a step's weights have
driven it out of the processor's caches. So there are callbacks where tasks and futures would be
(`nodes.step_loop`), and attributes where methods would be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from time import perf_counter

from helix_mq.clock import Clock
from helix_mq.errors import DeviceLost, HelixError
from helix_mq.ids import ROUTER, Attempt, RequestId
from helix_mq.messages.data import FrameHeader, RefusedItem, Release, TokenItem
from nodes.admitting import not_admitted, without_crowding
from nodes.batching import MAX_WAITING_ROWS, Batcher, SeqKey
from nodes.convoy import Convoy
from nodes.courses import Courses
from nodes.device import DeviceThread
from nodes.inbox import NodeView, accept_frame
from nodes.ledger import Ledger
from nodes.payload import Payload, cut_payload
from nodes.returning import Returns
from nodes.step_counts import StepCounts
from nodes.step_loop import StepCalls, StepLoop
from nodes.steps import (
    Batch,
    Links,
    OutFrame,
    StepEngine,
    StepResult,
    WorkerOptions,
    WorkerStatistics,
    use_up,
)
from nodes.telling import Teller
from nodes.tracing import Tracer

log = logging.getLogger(__name__)

STALL_GRACE_S = 1.0
"""An idle node whose rows all wait for credit lets one row pass this often; see helix_mq.credit."""


class Worker:
    def __init__(
        self,
        view: NodeView,
        engine: StepEngine,
        *,
        options: WorkerOptions,
        clock: Clock,
        device: DeviceThread,
        links: Links,
    ) -> None:
        self.view = view
        self._engine = engine
        self._depth = options.depth
        self._clock = clock
        self._links = links
        self._ledger = Ledger()
        self._batcher: Batcher[Payload] = Batcher(cut_payload, options.limits)
        self._next_hop: dict[SeqKey, str] = {}
        self._returns = Returns(view)
        self._convoy = Convoy(clock)
        self._convoy_due: asyncio.TimerHandle | None = None
        self._teller = Teller(view.node, self._ledger, self._returns, links)
        self._frees: list[SeqKey] = []
        self._loop = StepLoop(device)
        self._courses = Courses(self._ledger, links.foreseen, clock)
        self._counts = StepCounts(options.expectation)
        self.tracer = options.tracer if options.tracer is not None else Tracer(clock)

    @property
    def epoch(self) -> int:
        """The newest epoch it serves."""
        return max(self.view.epochs)

    def serve(self, epochs: frozenset[int], depth: int | None = None) -> None:
        """From now on these epochs, at least one: sequences of others are closed, rows refused."""
        self.view = replace(self.view, epochs=epochs)
        self._courses.serve(self.view)
        if depth is not None:
            self._depth = depth
        for seq in self._ledger.outside(epochs):
            self._close(seq)
        self._loop.ring()

    def retire(self) -> None:
        """Nobody is to hand it frames any more: what was foreseen is nobody's either."""
        self._courses.stop()

    def close_epoch(self, epoch: int) -> None:
        """Gives the sequences of `epoch` up: a router that assigns it anew lost sight of them."""
        self._start_anew(s for s in self._ledger.sequences() if self._ledger.epoch(s) == epoch)
        self._loop.ring()

    async def between_steps(self, job: Callable[[], None]) -> None:
        """Runs `job` on the device thread while no step of this worker does; raises as it does.

        The step loop must be running; CancelledError when it ends first.
        """
        done = self._loop.chores.add(job)
        self._loop.ring()
        await done

    @property
    def overloaded(self) -> bool:
        """More rows wait than any honest load brings: frames must be refused."""
        return self._batcher.waiting_rows >= MAX_WAITING_ROWS

    def on_frame(
        self,
        header: FrameHeader,
        buffers: tuple[memoryview, ...],
        on_consumed: Callable[[], None],
    ) -> int:
        """A frame from a peer; raises FrameError when it does not fit this model at all. Gives the
        number of rows that its sender had no business to send."""
        now_ms = int(self._clock.wall_s() * 1000)
        accepted = accept_frame(self.view, self._ledger, header, buffers, on_consumed, now_ms)
        works = accepted.work
        if works:
            works[0].payload.use.arrived_s = perf_counter()
            self._book(works)
            self._batcher.extend(works)
        # After adding: one frame may hold rows of the older attempt, too.
        for seq in accepted.superseded:
            self._close(seq)
        if accepted.refused:
            self._teller.refuse(self.epoch, accepted.refused)
        self._more_is_here()
        if len(works) == len(header.rows):
            # Behind what waits for it.
            self._courses.saw(header, works)
        return accepted.strange

    def _on_foreseen(self, works: Batch, payload: memoryview) -> None:
        """The same of a frame that was foreseen: all its sequences are known here."""
        convoy, batcher, drafted = self._convoy, self._batcher, False
        if self._returns.drafts or convoy.away:
            self._book(works)
            drafted = any(work.drafts for work in works)
        if (
            not drafted
            and not convoy.away
            and len(works) == len(self._ledger.opened)
            and batcher.passes(len(works), self._depth)
            and self._loop.again(works, payload)
        ):
            # The same as by the line, in which nobody is.
            batcher.passed(len(works))
            if convoy.members:
                convoy.left(works)
        else:
            batcher.extend(works)
            self._more_is_here()

    def _book(self, works: Batch) -> None:
        convoy, next_hop = self._convoy, self._next_hop
        for at, work in enumerate(works):
            payload = work.payload
            if payload.direct and (payload.spec is not None or not payload.hop):
                work = works[at] = self._returns.took(work, self._ledger)
            if payload.together or convoy.away:
                convoy.took(work)
            if work.seq not in next_hop:
                self.tracer.open(work.seq)
            next_hop[work.seq] = work.next_hop

    def _more_is_here(self) -> None:
        all_here = self._batcher.waiting_rows >= len(self._ledger.opened)
        if all_here and not self._batcher.prompts_wait:
            self._loop.now()
        else:
            self._loop.ring()

    def on_release(self, release: Release) -> None:
        for item in release.items:
            self._close(SeqKey(RequestId(item.request), Attempt(item.attempt)))
        self._loop.ring()

    def on_link_lost(self, peer: str) -> None:
        """Frames to `peer` may be lost: everything that goes there must be routed anew."""
        if peer == ROUTER:
            self._teller.again(self.epoch)
        lost = [s for s, hop in self._next_hop.items() if hop == peer and s in self._ledger]
        self._give_up(lost, "link_lost", f"the link {self.view.node} > {peer} broke")
        # What was to go there is lost; of those that are closed by now nothing is left here.
        back = self._returns.to(peer)
        self._give_up(back, "no_return", f"the link {self.view.node} > {peer} broke")

    def close_all(self) -> None:
        """Gives every sequence up, e.g. when the slice is to go."""
        self._start_anew(self._ledger.sequences())

    def _start_anew(self, sequences: Iterable[SeqKey]) -> None:
        """Refused and not just closed: an order that comes twice may find requests of now, which
        the router would wait for until their deadline. Refusals of others it passes over."""
        text = f"{self.view.node} starts its slice anew"
        self._give_up(list(sequences), "not_ready", text)

    async def run(self) -> None:
        """Steps for ever; ends by cancellation, after the step in progress."""
        choose, over, idle = self._next_batch, self._over, self._device_idle
        calls = StepCalls(self._engine, choose, over, idle, self._stall_s, self._links.overdraft)
        self._courses.go(self.view, self._batcher, self._on_foreseen)
        try:
            await self._loop.run(calls)
        finally:
            self._courses.stop()
            if self._convoy_due is not None:
                self._convoy_due.cancel()
                self._convoy_due = None

    def _over(self, batch: Batch, result: StepResult | None, error: BaseException | None) -> bool:
        """See StepCalls."""
        try:
            if result is not None:
                self._forward(result)
                self._counts.count(batch, result, only_decodes=self._batcher.only_decodes)
                if result.began_s:
                    self.tracer.stepped(batch, result.began_s, result.computed_s, perf_counter())
            elif isinstance(error, HelixError):
                self._fail(batch, error.code, error.message)
                if isinstance(error, DeviceLost):
                    raise error
            elif isinstance(error, Exception):
                about = {"request": [work.seq.request for work in batch]}
                log.error("a step of %d rows failed", len(batch), extra=about, exc_info=error)
                self._fail(batch, "step_failed", f"a step failed on {self.view.node}")
            elif error is not None:
                raise error
        finally:
            self._loop.busy = False
            if self._frees:
                self._device_idle()
            if len(batch) > 1:
                use_up(batch)
            else:
                batch[0].payload.use.take(batch[0].count)
        return self._batcher.waiting_rows > 0

    def _device_idle(self) -> None:
        self._loop.busy = False
        if self._frees:
            for seq in self._frees:
                self._engine.free(seq)
            self._frees.clear()

    def _stall_s(self) -> float | None:
        """When all that waits is blocked, one row may pass per grace period."""
        waits = self._batcher.waiting_rows and self._convoy_due is None
        return STALL_GRACE_S if waits else None

    def wake(self) -> None:
        """Credit came back, as it does all the time: rows that were held may go now. Also how
        deadlines are seen while nothing comes."""
        if self._batcher.waiting_rows or self._clock.wall_s() * 1000 >= self._ledger.due_ms:
            self._loop.ring()

    def _next_batch(self) -> Batch:
        ledger, batcher = self._ledger, self._batcher
        now_ms = int(self._clock.wall_s() * 1000)
        if now_ms >= ledger.due_ms and (expired := ledger.expired(now_ms)):
            self._give_up(expired, "deadline", "the deadline has passed")
        batch: Batch = []
        if not batcher.waiting_rows:
            return batch
        blocked: Collection[str] = ()
        held: Collection[SeqKey] = ()
        if batcher.prompts_wait:
            # Decodes go whether there is credit or not.
            blocked = self._links.blocked_peers()
        elif self._convoy.away:
            held = self._held()
        # Again while all that was picked is refused: what waits behind it may run.
        while not batch and (
            picked := batcher.next_batch(
                open_requests=len(ledger.opened), depth=self._depth, blocked=blocked, held=held
            )
        ):
            batch = self._admit(picked)
        if self._convoy.members:
            self._convoy.left(batch)
        return batch

    def _held(self) -> Collection[SeqKey]:
        """Sequences whose decodes wait for others on their way; none beside a step of prompts."""
        wait_s = self._convoy.wait_s()
        if not wait_s:
            return ()
        if self._convoy_due is None:
            self._convoy_due = asyncio.get_running_loop().call_later(wait_s, self._convoy_is_due)
        return self._convoy.members

    def _convoy_is_due(self) -> None:
        self._convoy_due = None
        self._loop.ring()

    def _admit(self, picked: Batch) -> Batch:
        """Those of the picked rows that have pages; the others are refused."""
        batch: Batch = []
        for work in picked:
            if work.drafts:
                work = without_crowding(self._engine, self._ledger, work)
            try:
                refusal = self._engine.admit(work)
            except Exception:
                refusal = not_admitted(work, self.view.node)
            if refusal is None:
                batch.append(work)
            else:
                work.payload.use.take(work.count)
                self._give_up([work.seq], refusal.code, refusal.reason)
        return batch

    def _forward(self, result: StepResult) -> None:
        for item in result.refused:
            seq = SeqKey(RequestId(item.request), Attempt(item.attempt))
            if seq in self._ledger:
                self._give_up([seq], item.code, item.reason)
        opened = self._ledger.opened
        for frame in result.frames:
            if frame.sequences.isdisjoint(opened):
                continue
            if not self._links.send(frame.peer, frame.header, frame.buffers):
                self._lost(frame, "no_peer")
        if result.tokens:
            self._tell(result.tokens)

    def _tell(self, items: Sequence[TokenItem]) -> None:
        for frame in self._teller.tell(items):
            if frame.peer == self.view.node and isinstance(frame.header, FrameHeader):
                self.on_frame(frame.header, tuple(map(memoryview, frame.buffers)), _nothing)
            else:
                self._lost(frame, "no_return")

    def _lost(self, frame: OutFrame, code: str) -> None:
        lost = [s for s in sorted(frame.sequences) if s in self._ledger]
        self._give_up(lost, code, f"{self.view.node} has no link to {frame.peer}")

    def _fail(self, batch: Batch, code: str, reason: str) -> None:
        self._give_up([w.seq for w in batch], code, reason)

    def _give_up(self, sequences: Sequence[SeqKey], code: str, reason: str) -> None:
        refused = [RefusedItem(s.request, s.attempt, code, reason) for s in sequences]
        for seq in sequences:
            self._close(seq)
        self._teller.refuse(self.epoch, refused)

    def _close(self, seq: SeqKey) -> None:
        for work in self._batcher.remove(seq):
            work.payload.use.take(work.count)
        self._next_hop.pop(seq, None)
        self._returns.forget(seq)
        self._courses.forget(seq)
        self._convoy.forget(seq)
        self.tracer.close(seq)
        if not self._ledger.close(seq):
            return
        if self._loop.busy:
            self._frees.append(seq)
        else:
            self._engine.free(seq)

    def check(self) -> None:
        """Raises AssertionError if pages, rows or sequences are unaccounted for; device idle."""
        self._engine.check()
        assert sorted(self._next_hop) == sorted(self._ledger.sequences())

    def statistics(self) -> WorkerStatistics:
        waiting, counts = self._batcher.statistics(), self._counts
        return WorkerStatistics(
            open_requests=len(self._ledger),
            waiting_rows=waiting.waiting_rows,
            waiting_tokens=waiting.waiting_tokens,
            kv_free_pages=self._engine.free_pages,
            kv_total_pages=self._engine.total_pages,
            steps=counts.steps,
            step_s=counts.step_s,
            tokens=counts.tokens,
            layer_tokens=counts.layer_tokens,
            expected_s=counts.expected_s,
            kv_cached_pages=self._engine.cached_pages,
        )


def _nothing() -> None:
    """Of a frame that no link brought, nothing is to be given back."""
