"""Running the choices of one HTTP request: submit all or none, merge events, cancel the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from router.service import (
    Broken,
    Delta,
    EventStream,
    Finished,
    Generation,
    Service,
    StreamEvent,
    TokenLogprob,
)


@dataclass(slots=True)
class Collected:
    """One choice, whole."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finished | None = None


class Choices:
    """Several streams read as one. Use as an async context: leaving it cancels what still runs."""

    def __init__(self, service: Service, generations: Sequence[Generation]) -> None:
        """Submits every generation; if one is refused, the others are cancelled and it raises."""
        self._service = service
        self.streams: list[EventStream] = []
        try:
            for generation in generations:
                self.streams.append(service.submit(generation))
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        for stream in self.streams:
            if not stream.ended:
                self._service.cancel(stream.request)

    async def __aenter__(self) -> Choices:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """(choice, event) as they come, until every choice has ended."""
        if len(self.streams) == 1:
            async for event in self.streams[0]:
                yield 0, event
            return
        merged: asyncio.Queue[tuple[int, StreamEvent]] = asyncio.Queue()

        async def pour(index: int, stream: EventStream) -> None:
            async for event in stream:
                merged.put_nowait((index, event))

        pourers = [asyncio.create_task(pour(i, s)) for i, s in enumerate(self.streams)]
        try:
            left = len(self.streams)
            while left:
                index, event = await merged.get()
                left -= not isinstance(event, Delta)
                yield index, event
        finally:
            for task in pourers:
                task.cancel()
            await asyncio.gather(*pourers, return_exceptions=True)

    async def collect(self) -> list[Collected]:
        """All choices, whole. Raises the first choice's error if one breaks."""
        collected = [Collected() for _ in self.streams]
        async for index, event in self.events():
            match event:
                case Delta():
                    collected[index].text.append(event.text)
                    if event.logprob is not None:
                        collected[index].logprobs.append(event.logprob)
                case Finished():
                    collected[index].finish = event
                case Broken():
                    raise event.error
        return collected
