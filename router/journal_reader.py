"""Requests as the journal has them, by their name: running ones, and ended ones for a while.

What it gives is what has been given out to their clients, text included.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from helix_mq.ids import RequestId
from router.journal import Journal
from router.journal_records import Opened, StoredRequest
from router.restore import deltas_of
from router.service import Broken, Delta, Finished, Generation, StreamEvent
from router.text import TextStream

_NAME = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{1,16})\.([A-Za-z0-9_-]{8,64})")


@dataclass(frozen=True, slots=True)
class FoundRequest:
    """`running`: it has been given a route; it may still wait otherwise, unless it has ended."""

    opened: Opened
    deltas: tuple[Delta, ...]
    end: Finished | Broken | None
    running: bool

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(delta.token for delta in self.deltas if delta.token is not None)


class JournalReader:
    def __init__(
        self,
        journal: Journal,
        new_text: Callable[[Generation], TextStream],
        eos_ids: frozenset[int],
        is_running: Callable[[RequestId], bool],
    ) -> None:
        self._journal = journal
        self._new_text = new_text
        self._eos_ids = eos_ids
        self._is_running = is_running

    async def named(self, name: str) -> list[FoundRequest]:
        """Every choice of the request that clients call `name`; none where there is no such."""
        parts = _NAME.fullmatch(name)
        if parts is None or int(parts[1], 16) >= 1 << 63:
            return []
        first, secret = RequestId(int(parts[1], 16)), parts[2]
        stored = await self._journal.read(lambda store: store.named(first, secret))
        return await asyncio.to_thread(lambda: [self._found(one) for one in stored])

    async def events(self, request: RequestId) -> tuple[Opened, list[StreamEvent]] | None:
        """Everything that the stream of a request has given out."""
        stored = await self._journal.read(lambda store: store.request(request))
        if stored is None:
            return None
        found = await asyncio.to_thread(self._found, stored)
        events: list[StreamEvent] = [*found.deltas]
        if found.end is not None:
            events.append(found.end)
        return found.opened, events

    def _found(self, stored: StoredRequest) -> FoundRequest:
        return FoundRequest(
            stored.opened,
            deltas_of(stored, self._new_text, self._eos_ids),
            stored.ended.end if stored.ended is not None else None,
            stored.ended is None and self._is_running(stored.opened.request),
        )
