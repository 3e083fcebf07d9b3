"""The router's journal as the event loop sees it: append, be called back when it is kept.

Nothing here waits for the disk. While records cannot be written (disk full, file bound reached)
new requests are refused, and what runs goes on without waiting: its tokens are decided by its seed,
so a restart would give the same ones again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, HelixError, JournalUnavailable, LocalError
from router.journal_records import BadRecord, Record, StoredRequest, Value, cost_bytes
from router.journal_store import JournalStore
from router.journal_writer import JournalWriter, Told
from router.service import JournalStatus

log = logging.getLogger(__name__)

MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Not written yet; beyond it no request is accepted. Those that run add what they still may."""

MAX_ENDED_STREAMS = 16_384
"""Of an earlier life, that can still be resumed: as many as client sockets keep."""

MAX_VALUE_BYTES = 1024 * 1024
_MAX_VALUES = 256
_RETRY_AFTER_S = 5.0

T = TypeVar("T")

Then = Callable[[bool], None]
"""Called once, on the loop, in the order of the records: True if the record is kept, False if it
may be lost by a restart."""


@dataclass(slots=True)
class _Waiting:
    number: int
    cost_bytes: int
    then: Then | None


class Journal:
    """One per router. Made before the loop runs; `start` and everything after it on the loop."""

    def __init__(self, store: JournalStore, keep_s: float, clock: Clock) -> None:
        """Reads what a router's earlier life left. Raises ConfigError when it makes no sense."""
        self.life = store.life
        try:
            self.left: list[StoredRequest] = store.open_requests()
            self.ended_streams = store.ended_streams(MAX_ENDED_STREAMS)
            self._values = store.values()
            self.highest_request = store.highest_request()
        except BadRecord as e:
            store.close()
            raise ConfigError(
                f"journal.path = {store.path}: has a record that this version of helix_mq cannot "
                f"read ({e}); move it away to start without the requests in it",
                param="journal.path",
            ) from None
        self._writer = JournalWriter(store, keep_s, clock, self._tell)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Waiting] = deque()
        self._appended = 0
        self._commits = 0
        self._pending_bytes = 0
        self._failure = ""
        self._closed = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    async def close(self) -> None:
        """Writes what is pending, as far as that is possible."""
        if self._closed or self._loop is None:
            return
        self._closed = True
        await asyncio.to_thread(self._writer.stop)
        # What the writer said last is on its way through the loop.
        await asyncio.sleep(0)
        self._release()

    def check(self) -> None:
        """Raises JournalUnavailable when no request can be accepted now."""
        if self._failure:
            raise JournalUnavailable(
                f"the router cannot write its journal ({self._failure}) and accepts no requests "
                "until it can",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._pending_bytes > MAX_PENDING_BYTES:
            raise JournalUnavailable(
                f"the router's journal is {self._pending_bytes} bytes behind",
                retry_after_s=_RETRY_AFTER_S,
            )

    def append(self, record: Record, then: Then | None = None) -> None:
        """Bounded by `check` for new requests, and by what running ones may still produce."""
        if self._closed:
            if then is not None:
                then(False)
            return
        self._appended += 1
        cost = cost_bytes(record)
        self._pending_bytes += cost
        waiting = _Waiting(self._appended, cost, then)
        self._waiting.append(waiting)
        if self._failure:
            self._call(waiting, False)
        self._writer.put(record)

    async def read(self, what: Callable[[JournalStore], T]) -> T:
        """Reads from the file, in the writer's thread. Raises LocalError where that fails."""
        if self._closed or self._loop is None or not self._writer.alive:
            raise JournalUnavailable("the journal is closed", retry_after_s=_RETRY_AFTER_S)
        loop = self._loop
        answer: asyncio.Future[T] = loop.create_future()

        def run(store: JournalStore) -> None:
            try:
                result = what(store)
            except Exception as e:
                fault = LocalError(f"the journal cannot be read: {e}")
                loop.call_soon_threadsafe(_fail, answer, fault)
            else:
                loop.call_soon_threadsafe(_settle, answer, result)

        self._writer.put(run)
        return await answer

    # -- values -------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """What was put under the name last, in this life or an earlier one."""
        return self._values.get(name)

    def put(self, name: str, data: bytes, then: Then | None = None) -> None:
        """Keeps a small value over restarts. Raises ValueError for one that is not small."""
        if len(name) > 64 or len(data) > MAX_VALUE_BYTES:
            raise ValueError(f"{name!r:.80}: {len(data)} bytes; at most {MAX_VALUE_BYTES} are kept")
        if name not in self._values and len(self._values) >= _MAX_VALUES:
            raise ValueError(f"{name!r}: {_MAX_VALUES} values are kept already")
        self._values[name] = data
        self.append(Value(name, data), then)

    def statistics(self) -> JournalStatus:
        return JournalStatus(
            failing=bool(self._failure),
            pending_records=len(self._waiting),
            pending_bytes=self._pending_bytes,
            commits=self._commits,
            used_bytes=self._writer.used_bytes,
        )

    # -- what the writer says -----------------------------------------------

    def _tell(self, told: Told) -> None:
        """In the writer's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._heard, told)
        except RuntimeError:
            log.debug("the loop is closed; the journal has %s", told)

    def _heard(self, told: Told) -> None:
        self._failure = told.failure
        if not told.failure:
            self._commits += 1
        while self._waiting and self._waiting[0].number <= told.upto:
            waiting = self._waiting.popleft()
            self._pending_bytes -= waiting.cost_bytes
            self._call(waiting, True)
        if told.failure:
            self._release()

    def _release(self) -> None:
        """Nobody is kept waiting for a disk that may never have room again."""
        for waiting in list(self._waiting):
            self._call(waiting, False)

    def _call(self, waiting: _Waiting, kept: bool) -> None:
        then, waiting.then = waiting.then, None
        if then is None:
            return
        try:
            then(kept)
        except Exception:
            log.exception("a fault after record %d of the journal", waiting.number)


def _settle(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[T], error: HelixError) -> None:
    if not answer.done():
        answer.set_exception(error)
