"""SDK clients' streams of the router's earlier life, until their clients ask for them.

Those that run are known whole; of those that have ended only who may ask for them is kept, and the
rest is read from the journal when somebody does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.journal_reader import JournalReader
from router.journal_records import EndedStream, Opened
from router.service import EventStream


@dataclass(frozen=True, slots=True)
class RunningStream:
    """`events` gives everything from the first token on."""

    opened: Opened
    events: EventStream


class KeptStreams:
    def __init__(
        self,
        running: Sequence[RunningStream],
        ended: Sequence[EndedStream],
        reader: JournalReader,
    ) -> None:
        self.running = tuple(running)
        self._reader = reader
        self._named = {(stream.secret, stream.user): stream for stream in ended}
        self._submitted = {(stream.user, stream.reference): stream for stream in ended}

    def take_named(self, secret: str, user: str | None) -> EndedStream | None:
        """The stream of that name, if it is that user's; given out once."""
        return self._taken(self._named.get((secret, user)))

    def take_submitted(self, user: str | None, reference: int) -> EndedStream | None:
        return self._taken(self._submitted.get((user, reference)))

    def _taken(self, stream: EndedStream | None) -> EndedStream | None:
        if stream is not None:
            self._named.pop((stream.secret, stream.user), None)
            self._submitted.pop((stream.user, stream.reference), None)
        return stream

    def forget(self) -> None:
        """Nobody will ask any more."""
        self._named.clear()
        self._submitted.clear()

    async def load(self, stream: EndedStream) -> tuple[Opened, EventStream] | None:
        """The whole of an ended stream; None if the journal has forgotten it by now."""
        found = await self._reader.events(stream.request)
        if found is None:
            return None
        opened, said = found
        events = EventStream(
            stream.request, len(opened.generation.prompt_ids), opened.origin.secret
        )
        for event in said:
            events.push(event)
        return opened, events
