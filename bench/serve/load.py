"""Sends one process's part of a load when it is due, and tells what became of each request.

Requests are made ready before they are due, so that the making of a long prompt makes none late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.serve.arrivals import Due
from bench.serve.prompts import Prompts
from bench.serve.seen import Seen, judge
from bench.serve.tallies import BySecond, Gaps, add_served
from bench.serve.target import Prepared, Target
from bench.serve.types import SERVED, Outcome
from helix_mq.clock import Clock
from helix_mq.errors import HelixError

LAG_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Armed:
    due: Due
    prepared: Prepared


class Load:
    """`run` once, `stop` whenever. `on_outcome` is told of each request at its end."""

    def __init__(
        self,
        target: Target,
        prompts: Prompts,
        clock: Clock,
        deadline_s: float,
        exact: bool,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._target = target
        self._prompts = prompts
        self._clock = clock
        self._deadline_s = deadline_s
        self._exact = exact
        self._on_outcome = on_outcome
        self._start_s = 0.0
        self._stopping = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self.gaps = Gaps()
        self.lag = Gaps()
        self.tokens_by_s = BySecond()
        self.sent = 0
        self.events = 0
        self.late_most_s = 0.0
        self.left = 0

    async def run(
        self, load: Iterator[Due], start_s: float, at_once: int | None, until_s: float | None
    ) -> None:
        """Until all that is due has ended. `start_s`: on the clock. `at_once`: of loads without
        times, how many are under way; none of them starts after `until_s`."""
        self._start_s = start_s
        lag = asyncio.create_task(self._watch_lag())
        try:
            if at_once is None:
                await self._by_the_clock(load)
            else:
                await self._one_after_another(load, at_once, until_s)
            stopped = asyncio.create_task(self._stopping.wait())
            while self._open and not self._stopping.is_set():
                await asyncio.wait([*self._open, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        finally:
            lag.cancel()
            self.left = len(self._open)
            for task in self._open:
                task.cancel()
            await asyncio.gather(lag, *self._open, return_exceptions=True)

    def stop(self) -> None:
        """Sends no more and leaves what is under way."""
        self._stopping.set()

    def now_s(self) -> float:
        return self._clock.now_s() - self._start_s

    async def _by_the_clock(self, load: Iterator[Due]) -> None:
        for due in load:
            armed = self._arm(due)
            assert due.at_s is not None
            if await self._stopped_before(due.at_s):
                return
            self._begin(self._one(armed, due.at_s))

    async def _one_after_another(
        self, load: Iterator[Due], at_once: int, until_s: float | None
    ) -> None:
        ahead: deque[Armed] = deque()

        def refill(most: int = 1) -> None:
            for due in _some(load, most if len(ahead) < at_once else 0):
                ahead.append(self._arm(due))

        async def place() -> None:
            due_s = 0.0
            while not self._stopping.is_set():
                if until_s is not None and due_s >= until_s:
                    return
                if not ahead:
                    refill()
                if not ahead:
                    return
                armed = ahead.popleft()
                # After this one is sent, while its answer is waited for.
                loop.call_soon(refill)
                await self._one(armed, due_s)
                due_s = self.now_s()

        loop = asyncio.get_running_loop()
        refill(at_once)
        if await self._stopped_before(0.0):
            return
        for _ in range(at_once):
            self._begin(place())

    async def _stopped_before(self, at_s: float) -> bool:
        """Waits until then; True when it was stopped meanwhile."""
        left_s = at_s - self.now_s()
        if left_s > 0 and not self._stopping.is_set():
            try:
                async with asyncio.timeout(left_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass
        return self._stopping.is_set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    def _arm(self, due: Due) -> Armed:
        prompt = self._prompts.text(due.number, due.lengths.prompt_tokens)
        return Armed(due, self._target.prepare(prompt, due.lengths.output_tokens))

    async def _one(self, armed: Armed, due_s: float) -> None:
        seen, asked = Seen(), armed.due.lengths.output_tokens
        sent_s = self.now_s()
        self.sent += 1
        self.late_most_s = max(self.late_most_s, sent_s - due_s)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._target.send(armed.prepared, seen, self._on_event)
        except TimeoutError:
            seen.overdue = True
        except (HelixError, OSError) as e:
            seen.fault = str(e) or type(e).__name__
        ended_s = self.now_s()
        kind, reason = judge(seen, asked, self._exact)
        at_s = [t - self._start_s for t in seen.at_s]
        tokens = seen.tokens or 0
        if kind == SERVED:
            add_served(self.gaps, self.tokens_by_s, at_s, tokens)
        self._on_outcome(
            Outcome(
                number=armed.due.number,
                kind=kind,
                reason=reason,
                asked_tokens=asked,
                prompt_tokens=seen.prompt_tokens or 0,
                tokens=tokens,
                events=len(at_s),
                due_s=due_s,
                sent_s=sent_s,
                first_s=at_s[0] if at_s else None,
                last_s=at_s[-1] if at_s else None,
                ended_s=ended_s,
            )
        )

    def _on_event(self) -> None:
        self.events += 1

    async def _watch_lag(self) -> None:
        """A timer that does nothing: what it comes late by, everything here does."""
        while True:
            due_s = self._clock.now_s() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lag.add(max(0.0, self._clock.now_s() - due_s))


def _some(load: Iterable[Due], most: int) -> Iterator[Due]:
    for _, due in zip(range(most), load, strict=False):
        yield due
