"""The sequences of one HTTP request, submitted all or none, read as one stream of events.

Whoever opens a Fanout closes it; closing cancels every sequence that has not ended. `interrupt`
ends the reading from outside: the client went away, or the router stops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from router.gateway.faults import RequestCancelled
from router.service import Broken, Delta, EventStream, Finished, Generation, Origin, Service


@dataclass(frozen=True, slots=True)
class Item:
    """An event of sequence `index`. Broken ones are raised instead."""

    index: int
    event: Delta | Finished


class Fanout:
    def __init__(
        self,
        service: Service,
        generations: Sequence[Generation],
        on_delta: Callable[[Delta], None] | None = None,
    ) -> None:
        """Submits every generation; when one is refused, cancels the others and raises.

        `on_delta`: told of each as it comes, whoever reads it later or never.
        """
        self._service = service
        self._on_delta = on_delta
        self._streams: list[EventStream] = []
        self._items: deque[Item] = deque()
        self._fault: Exception | None = None
        self._news = asyncio.Event()
        self._open: set[int] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._undecided: set[int] = set()
        try:
            for choice, generation in enumerate(generations):
                first = self._streams[0].request if self._streams else None
                stream = service.submit(generation, Origin(first=first, choice=choice))
                self._open.add(len(self._streams))
                self._streams.append(stream)
        except Exception:
            self._cancel_open()
            raise
        self._undecided = {i for i, s in enumerate(self._streams) if s.undecided}
        self._pumps = [
            asyncio.create_task(self._pump(i, s), name=f"http-{s.request:x}")
            for i, s in enumerate(self._streams)
        ]

    @property
    def request_name(self) -> str:
        """The first sequence's id, for logs and answers."""
        return self._streams[0].name

    async def __aenter__(self) -> Fanout:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancel_open()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def interrupt(self, error: Exception) -> None:
        """Makes the reader raise `error`, after what has arrived is read; the first one counts."""
        if self._fault is None:
            self._fault = error
        self._news.set()

    async def accepted(self) -> None:
        """Returns once every sequence is accepted. Raises like `batch`."""
        while self._undecided and self._fault is None:
            self._news.clear()
            await self._news.wait()
        if self._undecided and self._fault is not None:
            raise self._fault

    async def batch(self, wait_s: float | None = None) -> list[Item]:
        """What has arrived, in order; empty when all have ended, or after `wait_s` without news.

        Raises the error of a broken sequence, or what `interrupt` was given.
        """
        if not self._items and self._fault is None and not self.finished:
            self._news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        if not self._items and self._fault is not None:
            raise self._fault
        items = list(self._items)
        self._items.clear()
        return items

    @property
    def finished(self) -> bool:
        """Every sequence has ended well and was read."""
        return not self._open and not self._items and self._fault is None

    async def _pump(self, index: int, stream: EventStream) -> None:
        try:
            await self._read(index, stream)
        except Exception as e:
            # Whatever it is, the reader must hear of it instead of waiting for ever.
            self.interrupt(e)

    async def _read(self, index: int, stream: EventStream) -> None:
        await stream.accepted()
        if index in self._undecided:
            self._undecided.discard(index)
            self._news.set()
        async for event in stream:
            match event:
                case Delta():
                    if self._on_delta is not None:
                        self._on_delta(event)
                    self._items.append(Item(index, event))
                case Finished(finish_reason="cancelled"):
                    # Not by us: closing stops this task first.
                    self._open.discard(index)
                    self.interrupt(RequestCancelled("the request was cancelled by the operator"))
                case Finished():
                    self._open.discard(index)
                    self._items.append(Item(index, event))
                case Broken():
                    self._open.discard(index)
                    self.interrupt(event.error)
            self._news.set()

    def _cancel_open(self) -> None:
        for index in sorted(self._open):
            self._service.cancel(self._streams[index].request)
        self._open.clear()
