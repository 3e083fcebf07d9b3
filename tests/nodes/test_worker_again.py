"""The worker and frames that were foreseen: which go past the line, and that all else stays as it
is by the line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import numpy as np

from helix_mq.frames import pack_route
from helix_mq.ids import ROUTER
from helix_mq.inlink import InLink
from helix_mq.layers import Route
from helix_mq.messages.data import DIRECT, DRAFTING, SAMPLE, FrameHeader, Row
from helix_mq.packing import PACK
from nodes.batching import BatchLimits
from nodes.steps import Batch, StepResult
from tests.nodes.worker_bench import LAST, ONWARD, SPEC, Bench, bench, decode, key, prompt

_AFTER = 4
"""Where the next tokens of prompts are."""


class _Link:
    """Of the router, as far as a course asks."""

    sender = ROUTER

    def __init__(self, b: Bench) -> None:
        self._bench = b

    def has_room(self, nbytes: int) -> bool:
        return True

    def received(self, nbytes: int) -> None:
        self._bench.frames += 1

    def consumed(self, nbytes: int) -> None:
        self._bench._consumed()


class Own:
    """Steps of the bench's engine that go on from the last one, until a test rings."""

    def __init__(self, b: Bench) -> None:
        self.asked: list[list[tuple[int, int]]] = []
        self.takes = True
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._bench, self._batch = b, cast(Batch, [])
        b.engine.again = self._again  # type: ignore[method-assign]
        b.engine.end = self._end  # type: ignore[method-assign]

    def _again(self, batch: Batch, payload: memoryview) -> int | None:
        engine = self._bench.engine
        self.asked.append([(w.seq.request, w.position) for w in batch])
        assert bytes(payload) == b"".join(bytes(w.payload.data) for w in batch)
        if not self.takes:
            return None
        engine.running, self._batch = True, batch
        for work in batch:
            engine.held[work.seq] = work.position + 1
        return self.bell

    def _end(self) -> StepResult | None:
        os.eventfd_read(self.bell)
        self._bench.engine.running = False
        return self._bench.engine.run(self._batch)

    def ring(self) -> None:
        os.eventfd_write(self.bell, 1)


@asynccontextmanager
async def running(
    *requests: int, limits: BatchLimits | None = None
) -> AsyncIterator[tuple[Bench, Own]]:
    """A worker whose next frame of these is foreseen, at position _AFTER + 2."""
    async with bench(limits=limits) as b:
        own = Own(b)
        b.frame(*map(prompt, requests))
        await b.until(lambda: len(b.tokens) == len(requests))
        for step in range(2):
            b.frame(*(decode(n, _AFTER + step) for n in requests))
            await b.until(lambda step=step: len(b.tokens) == (2 + step) * len(requests))
        assert len(b.foreseen) == 1
        try:
            yield b, own
        finally:
            if b.worker._loop.busy:
                own.ring()
    os.close(own.bell)


def came(b: Bench, rows: Sequence[Row], route: Route = LAST, token: int = 3) -> bool:
    """Whether it was taken as foreseen."""
    header = PACK(FrameHeader(1, ROUTER, "int32", 1, tuple(rows), (pack_route(route),)))
    payload = np.full(len(rows), token, np.int32).data.cast("B")
    course = b.foreseen.get(header)
    return course is not None and course.came(cast(InLink, _Link(b)), payload, 100)


def step(at: int, *requests: int) -> list[Row]:
    return [decode(n, _AFTER + at) for n in requests]


async def test_all_that_is_open_in_one_frame_goes_past_the_line() -> None:
    async with running(1, 2) as (b, own):
        before = b.worker.statistics()
        for at in (2, 3, 4):
            assert came(b, step(at, 1, 2))
            assert b.worker._loop.busy
            assert b.worker.statistics().waiting_rows == 0
            count = len(b.tokens)
            assert b.credited < b.frames, "what came is held until the step is over"
            own.ring()
            await b.until(lambda count=count: len(b.tokens) == count + 2)
        assert own.asked == [[(1, _AFTER + at), (2, _AFTER + at)] for at in (2, 3, 4)]
        assert [t.position for t in b.tokens[-2:]] == [_AFTER + 5] * 2
        after = b.worker.statistics()
        assert after.steps - before.steps == 3
        assert after.tokens - before.tokens == 6
        batches = b.worker._batcher.statistics()
        assert (batches.batches, batches.rows, batches.decode_rows) == (6, 12, 10)
        assert b.worker._batcher.only_decodes


async def test_who_else_is_open_may_come_in_the_same_turn() -> None:
    async with running(1) as (b, own):
        b.frame(prompt(2))
        await b.until(lambda: len(b.tokens) == 4)
        assert came(b, step(2, 1))
        assert not b.worker._loop.busy
        b.frame(decode(2, 4))
        await b.until(lambda: len(b.tokens) == 6)
        assert own.asked == []
        assert sorted(b.engine.batches[-1]) == [(key(1), 6, 1), (key(2), 4, 1)]


async def test_what_waits_goes_first_or_along() -> None:
    async with running(1) as (b, own):
        b.frame(prompt(2))
        assert came(b, step(2, 1))
        await b.until(lambda: len(b.tokens) >= 5)
        assert own.asked == []


async def test_during_a_step_it_waits() -> None:
    async with running(1) as (b, own):
        assert came(b, step(2, 1))
        assert came(b, step(3, 1))
        assert own.asked == [[(1, _AFTER + 2)]]
        assert b.worker.statistics().waiting_rows == 1
        own.ring()
        await b.until(lambda: len(b.tokens) == 5)
        assert [t.position for t in b.tokens[-2:]] == [_AFTER + 3, _AFTER + 4]


async def test_what_the_engine_does_not_take_goes_by_the_line() -> None:
    async with running(1) as (b, own):
        own.takes = False
        assert came(b, step(2, 1))
        assert b.worker._loop.busy
        await b.until(lambda: len(b.tokens) == 4)
        assert own.asked == [[(1, _AFTER + 2)]]
        assert b.engine.batches[-1] == [(key(1), _AFTER + 2, 1)]


async def test_a_chore_is_done_first() -> None:
    async with running(1) as (b, own):
        done: list[int] = []
        chore = asyncio.ensure_future(b.worker.between_steps(lambda: done.append(len(own.asked))))
        await asyncio.sleep(0)
        assert came(b, step(2, 1))
        await chore
        await b.until(lambda: len(b.tokens) == 4)
        assert done == [0]
        assert own.asked == []


async def test_more_than_a_step_may_have_are_cut_as_ever() -> None:
    limits = BatchLimits(max_rows=2, min_decodes=1)
    async with running(1, 2, 3, limits=limits) as (b, own):
        assert came(b, step(2, 1, 2, 3))
        await b.until(lambda: len(b.tokens) == 12)
        assert own.asked == []
        assert [len(batch) for batch in b.engine.batches[-2:]] == [2, 1]


async def test_a_sequence_closed_meanwhile_is_freed_after_the_step() -> None:
    async with running(1, 2) as (b, own):
        assert came(b, step(2, 1, 2))
        b.release(1)
        assert b.engine.freed == []
        assert b.foreseen == {}
        own.ring()
        await b.until(lambda: len(b.tokens) == 7)
        assert b.tokens[-1].request == 2
        assert b.engine.freed == [key(1)]


async def test_a_step_that_comes_to_nothing_is_run_by_the_device() -> None:
    async with running(1) as (b, own):
        ends = b.engine.end

        def nothing() -> None:
            ends()
            b.engine.batches.pop()

        b.engine.end = nothing  # type: ignore[method-assign]
        assert came(b, step(2, 1))
        own.ring()
        await b.until(lambda: len(b.tokens) == 4)
        assert b.engine.batches[-1] == [(key(1), _AFTER + 2, 1)]


async def test_who_travels_together_has_left() -> None:
    async with running(1) as (b, own):
        convoy = b.worker._convoy
        convoy.members.add(key(1))
        for at in (2, 3):
            assert came(b, step(at, 1))
            assert list(convoy.away) == [key(1)]
            own.ring()
            await b.until(lambda at=at: len(b.tokens) == 2 + at)
        assert len(own.asked) == 2
        convoy.members.add(key(9))
        convoy.away[key(9)] = b.clock.now_s()
        assert came(b, step(4, 1))
        assert len(own.asked) == 2, "somebody is to be waited for"
        convoy.forget(key(9))
        b.worker._loop.ring()
        await b.until(lambda: len(b.tokens) == 6)


async def test_rows_that_get_drafts_go_by_the_line() -> None:
    """Those of a text that is drafted for go past it as others do where nothing is found."""
    flags = SAMPLE | DIRECT
    async with bench() as b:
        own = Own(b)
        b.frame(Row(1, 0, 0, 4, 0, 0, flags | DRAFTING, 0, SPEC), route=ONWARD)
        await b.until(lambda: len(b.sent) == 1)
        for at, token in enumerate((5, 6, 7, 3, 3), 4):
            row, seen = Row(1, 0, at, 1, 0, 0, flags, 0), len(b.sent)
            if at < 6:
                b.frame(row, route=ONWARD, ids=token)
            else:
                assert came(b, [row], ONWARD, token)
            if own.asked[-1:] == [[(1, at)]]:
                own.ring()
            await b.until(lambda seen=seen: len(b.sent) == seen + 1)
        assert own.asked == [[(1, 6)], [(1, 7)]]
        (batch,) = b.engine.batches[-1:]
        assert batch[0][:2] == (key(1), 8)
        assert batch[0][2] > 1, "with drafts"
    os.close(own.bell)
