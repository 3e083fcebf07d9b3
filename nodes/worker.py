"""The node at work: frames in, steps on the device thread, frames and tokens out.

Owns the ledger, the batcher and one engine; no sockets (it is given `send`) and no membership.
While a step runs nothing touches the KV pages: frees wait in `_frees` until the device is idle.
A worker may serve several epochs of the placement; what comes of a row leaves under the row's.
The event loop only books and forwards; all tensor work happens on the device thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from time import perf_counter

from helix_mq.clock import Clock
from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Attempt, RequestId
from helix_mq.messages.data import (
    MAX_ROWS,
    FrameHeader,
    Refused,
    RefusedItem,
    Release,
    TokenItem,
    Tokens,
)
from nodes.admitting import admit, without_crowding
from nodes.batching import Batcher, SeqKey
from nodes.bell import Bell
from nodes.chores import Chores
from nodes.convoy import Convoy
from nodes.device import DeviceThread
from nodes.inbox import NodeView, Payload, accept_frame, cut_payload
from nodes.ledger import Ledger
from nodes.returning import Returns
from nodes.steps import (
    Batch,
    Links,
    OutFrame,
    StepEngine,
    StepResult,
    WorkerOptions,
    WorkerStatistics,
)
from nodes.tracing import Tracer

log = logging.getLogger(__name__)

STALL_GRACE_S = 1.0
"""An idle node whose rows all wait for credit lets one row pass this often; see helix_mq.credit."""

MAX_WAITING_ROWS = 131_072
"""Credit counts bytes, but a row of one token takes some 2 KiB here and a few bytes on the wire."""


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
        self._device = device
        self._links = links
        self._ledger = Ledger()
        self._batcher: Batcher[Payload] = Batcher(cut_payload, options.limits)
        self._next_hop: dict[SeqKey, str] = {}
        self._returns = Returns(view)
        self._convoy = Convoy(clock)
        self._convoy_due: asyncio.TimerHandle | None = None
        self._frees: list[SeqKey] = []
        self._refusals: deque[RefusedItem] = deque(maxlen=MAX_ROWS)
        self._busy = False
        self._chores = Chores()
        self._wake = Bell()
        self._stall_ends_s: float | None = None
        self._steps = 0
        self._step_s = 0.0
        self._expected_s = 0.0
        self._expectation = options.expectation
        self.tracer = options.tracer if options.tracer is not None else Tracer(clock)
        self._tokens = 0
        self._layer_tokens = 0

    @property
    def epoch(self) -> int:
        """The newest epoch it serves."""
        return max(self.view.epochs)

    def serve(self, epochs: frozenset[int], depth: int | None = None) -> None:
        """From now on these epochs, at least one: sequences of others are closed, rows refused."""
        self.view = replace(self.view, epochs=epochs)
        if depth is not None:
            self._depth = depth
        for seq in self._ledger.outside(epochs):
            self._close(seq)
        self._wake.ring()

    def close_epoch(self, epoch: int) -> None:
        """Gives the sequences of `epoch` up: a router that assigns it anew lost sight of them."""
        self._start_anew(s for s in self._ledger.sequences() if self._ledger.epoch(s) == epoch)
        self._wake.ring()

    async def between_steps(self, job: Callable[[], None]) -> None:
        """Runs `job` on the device thread while no step of this worker does; raises as it does.

        The step loop must be running; CancelledError when it ends first.
        """
        done = self._chores.add(job)
        self._wake.ring()
        await done

    @property
    def overloaded(self) -> bool:
        """More rows wait than any honest load brings: frames must be refused."""
        return len(self._batcher) >= MAX_WAITING_ROWS

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
        if accepted.work:
            accepted.work[0].payload.use.arrived_s = perf_counter()
        works = [self._returns.took(row, self._ledger) for row in accepted.work]
        for work in works:
            self._convoy.took(work)
            if work.seq not in self._next_hop:
                self.tracer.open(work.seq)
            self._next_hop[work.seq] = work.next_hop
        self._batcher.extend(works)
        # After adding: one frame may hold rows of the older attempt, too.
        for seq in accepted.superseded:
            self._close(seq)
        if accepted.refused:
            self._refuse(accepted.refused)
        self._wake.ring()
        return accepted.strange

    def on_release(self, release: Release) -> None:
        for item in release.items:
            self._close(SeqKey(RequestId(item.request), Attempt(item.attempt)))
        self._wake.ring()

    def on_link_lost(self, peer: str) -> None:
        """Frames to `peer` may be lost: everything that goes there must be routed anew."""
        if peer == ROUTER:
            # Refusals that were in the link may be lost, and nobody else would move those requests.
            # The router passes over what it knows already.
            self._say_refused(list(self._refusals))
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
        try:
            while True:
                if self._chores:
                    await self._chores.do_next(self._do)
                elif batch := self._next_batch():
                    self._stall_ends_s = None
                    await self._step(batch)
                else:
                    await self._idle()
        finally:
            self._chores.give_up()

    async def _step(self, batch: Batch) -> None:
        try:
            # KV pages stay as they are until _device_idle().
            self._busy = True
            result = await self._device.run(lambda: self._engine.run(batch))
        except HelixError as e:
            self._fail(batch, e.code, e.message)
        except Exception:
            about = {"request": [work.seq.request for work in batch]}
            log.exception("a step of %d rows failed", len(batch), extra=about)
            self._fail(batch, "step_failed", f"a step failed on {self.view.node}")
        else:
            if self._expectation is not None:
                self._expected_s += self._expectation.seconds(batch)
            self._forward(result)
            if result.began_s:
                self.tracer.stepped(batch, result.began_s, result.computed_s, perf_counter())
        finally:
            self._device_idle()
            for work in batch:
                work.payload.use.take(work.count)

    async def _do(self, job: Callable[[], None]) -> None:
        try:
            self._busy = True
            await self._device.run(job)
        finally:
            self._device_idle()

    def _device_idle(self) -> None:
        self._busy = False
        for seq in self._frees:
            self._engine.free(seq)
        self._frees.clear()

    async def _idle(self) -> None:
        """Waits for work; when all that waits is blocked, lets one row pass per grace period."""
        self._wake.listen()
        if not len(self._batcher) or self._convoy_due is not None:
            self._stall_ends_s = None
            await self._wake.wait()
            return
        # Kept over wake-ups: peers repeat their grants all the time, which must not put it off.
        if self._stall_ends_s is None:
            self._stall_ends_s = asyncio.get_running_loop().time() + STALL_GRACE_S
        try:
            async with asyncio.timeout_at(self._stall_ends_s):
                await self._wake.wait()
        except TimeoutError:
            self._stall_ends_s = None
            self._links.overdraft()

    def wake(self) -> None:
        """Credit came back: rows that were held may go now."""
        self._wake.ring()

    def _next_batch(self) -> Batch:
        now_ms = int(self._clock.wall_s() * 1000)
        if expired := self._ledger.expired(now_ms):
            self._give_up(expired, "deadline", "the deadline has passed")
        batch: Batch = []
        if not len(self._batcher):
            return batch
        # Decodes go whether there is credit or not.
        blocked = self._links.blocked_peers() if self._batcher.prompts_wait else ()
        held = self._held()
        # Again while all that was picked is refused: what waits behind it may run.
        while not batch and (
            picked := self._batcher.next_batch(
                open_requests=len(self._ledger), depth=self._depth, blocked=blocked, held=held
            )
        ):
            batch = self._admit(picked)
        self._convoy.left(batch)
        return batch

    def _held(self) -> Collection[SeqKey]:
        """Sequences whose decodes wait for others on their way; none beside a step of prompts."""
        if self._batcher.prompts_wait or not (wait_s := self._convoy.wait_s()):
            return ()
        if self._convoy_due is None:
            self._convoy_due = asyncio.get_running_loop().call_later(wait_s, self._convoy_is_due)
        return self._convoy.members

    def _convoy_is_due(self) -> None:
        self._convoy_due = None
        self._wake.ring()

    def _admit(self, picked: Batch) -> Batch:
        """Those of the picked rows that have pages; the others are refused."""
        batch: Batch = []
        for work in picked:
            if work.drafts:
                work = without_crowding(self._engine, self._ledger, work)
            refusal = admit(self._engine, work, self.view.node)
            if refusal is None:
                batch.append(work)
            else:
                work.payload.use.take(work.count)
                self._give_up([work.seq], refusal.code, refusal.reason)
        return batch

    def _forward(self, result: StepResult) -> None:
        self._steps += 1
        self._step_s += result.seconds
        self._tokens += result.num_tokens
        self._layer_tokens += result.layer_tokens
        for item in result.refused:
            seq = SeqKey(RequestId(item.request), Attempt(item.attempt))
            if seq in self._ledger:
                self._give_up([seq], item.code, item.reason)
        for frame in result.frames:
            if not self._ledger.any_open(frame.sequences):
                continue
            if not self._links.send(frame.peer, frame.header, frame.buffers):
                lost = [s for s in sorted(frame.sequences) if s in self._ledger]
                self._give_up(lost, "no_peer", f"{self.view.node} has no link to {frame.peer}")
        if result.tokens:
            self._tell(result.tokens)

    def _tell(self, items: Iterable[TokenItem]) -> None:
        """Sends new tokens, by epoch: to first hops where they return by themselves, and to the
        router."""
        tokens: dict[int, list[TokenItem]] = {}
        for token in items:
            seq = SeqKey(RequestId(token.request), Attempt(token.attempt))
            if seq in self._ledger:
                tokens.setdefault(self._ledger.epoch(seq), []).append(token)
        stuck = [
            frame
            for epoch, items in tokens.items()
            for frame in self._returns.frames(items, epoch)
            if not self._return(frame)
        ]
        for epoch, items in tokens.items():
            # Rows with drafts give several tokens each.
            for start in range(0, len(items), MAX_ROWS):
                part = tuple(items[start : start + MAX_ROWS])
                self._links.send(ROUTER, Tokens(epoch, self.view.node, part), ())
        for frame in stuck:
            lost = [s for s in sorted(frame.sequences) if s in self._ledger]
            self._give_up(lost, "no_return", f"{self.view.node} has no link to {frame.peer}")

    def _return(self, frame: OutFrame) -> bool:
        """Hands tokens to their first hop; False if there is no way to it."""
        if frame.peer != self.view.node:
            return self._links.send(frame.peer, frame.header, frame.buffers)
        self.on_frame(frame.header, tuple(map(memoryview, frame.buffers)), lambda: None)
        return True

    def _fail(self, batch: Batch, code: str, reason: str) -> None:
        self._give_up([w.seq for w in batch], code, reason)

    def _give_up(self, sequences: Sequence[SeqKey], code: str, reason: str) -> None:
        refused = [RefusedItem(s.request, s.attempt, code, reason) for s in sequences]
        for seq in sequences:
            self._close(seq)
        self._refuse(refused)

    def _refuse(self, items: list[RefusedItem]) -> None:
        self._refusals.extend(items)
        self._say_refused(items)

    def _say_refused(self, items: list[RefusedItem]) -> None:
        for start in range(0, len(items), MAX_ROWS):
            part = tuple(items[start : start + MAX_ROWS])
            self._links.send(ROUTER, Refused(self.epoch, self.view.node, part), ())

    def _close(self, seq: SeqKey) -> None:
        for work in self._batcher.remove(seq):
            work.payload.use.take(work.count)
        self._next_hop.pop(seq, None)
        self._returns.forget(seq)
        self._convoy.forget(seq)
        self.tracer.close(seq)
        if not self._ledger.close(seq):
            return
        if self._busy:
            self._frees.append(seq)
        else:
            self._engine.free(seq)

    def check(self) -> None:
        """Raises AssertionError if pages, rows or sequences are unaccounted for; device idle."""
        self._engine.check()
        assert sorted(self._next_hop) == sorted(self._ledger.sequences())

    def statistics(self) -> WorkerStatistics:
        waiting = self._batcher.statistics()
        return WorkerStatistics(
            open_requests=len(self._ledger),
            waiting_rows=waiting.waiting_rows,
            waiting_tokens=waiting.waiting_tokens,
            kv_free_pages=self._engine.free_pages,
            kv_total_pages=self._engine.total_pages,
            steps=self._steps,
            step_s=self._step_s,
            tokens=self._tokens,
            layer_tokens=self._layer_tokens,
            expected_s=self._expected_s,
            kv_cached_pages=self._engine.cached_pages,
        )
