"""The thread that owns the journal's file: takes records from a queue, commits what has gathered.

While one commit runs the next batch gathers, so the number of commits follows the disk's speed and
not the number of tokens. A batch that cannot be written is kept and tried again; whoever waits for
it is told at once.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from helix_mq.clock import Clock
from router.journal_records import Record, cost_bytes
from router.journal_store import JournalStore

log = logging.getLogger(__name__)

RETRY_S = 1.0
PRUNE_S = 5.0
_MAX_BATCH = 4096
_MAX_BATCH_BYTES = 8 * 1024 * 1024
_RETRIED_BATCH_BYTES = 64 * 1024
"""While room is scarce, little by little: what has ended makes room in between."""

_MAX_READS = 8
"""Between two commits: those who ask must not hold up those who write."""

Read = Callable[[JournalStore], None]


@dataclass(frozen=True, slots=True)
class Told:
    """What the writer says, from its thread: all records up to number `upto` are kept; or none
    are at present, and why."""

    upto: int
    failure: str = ""


class JournalWriter:
    """`tell` is called in the writer's thread."""

    def __init__(
        self, store: JournalStore, keep_s: float, clock: Clock, tell: Callable[[Told], None]
    ) -> None:
        self._store = store
        self._keep_s = keep_s
        self._clock = clock
        self._tell = tell
        self._inbox: queue.SimpleQueue[Record | Read | None] = queue.SimpleQueue()
        self._pending: deque[Record] = deque()
        self._reads: deque[Read] = deque()
        self._upto = 0
        self._failing = False
        self._stopping = False
        self._next_prune_s = 0.0
        self._unpruned_bytes = 0
        self.used_bytes = 0
        self.alive = True
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Record | Read) -> None:
        """Records are numbered from 1 in the order of these calls."""
        self._inbox.put(item)

    def stop(self) -> None:
        """Writes what there is, closes the file, and returns then."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while not (self._stopping and (self._failing or not self._pending)):
                self._gather()
                self._commit()
                self._answer()
                self._prune()
        except Exception as e:
            log.critical("the journal's writer died", exc_info=True)
            self._tell(Told(self._upto, f"its writer died: {e}"))
        finally:
            self._store.close()
            self.alive = False
            while not self._inbox.empty():
                self._take(0)
            for read in self._reads:
                # Fails, which whoever asked should know.
                read(self._store)

    def _gather(self) -> None:
        """Waits for something to do; when writing fails, for a while in any case."""
        if self._failing:
            until_s = time.monotonic() + RETRY_S
            while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
                self._take(left_s)
                self._answer()
            return
        if not self._pending and not self._reads:
            self._take(PRUNE_S)
        while len(self._pending) < _MAX_BATCH and not self._inbox.empty():
            self._take(0)

    def _take(self, wait_s: float) -> None:
        try:
            item = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            return
        if item is None:
            self._stopping = True
        elif callable(item):
            self._reads.append(item)
        else:
            self._pending.append(item)

    def _commit(self) -> None:
        if not self._pending:
            return
        batch, cost = self._batch()
        try:
            if self._failing or self._unpruned_bytes > self._store.max_bytes // 20:
                # Full, it may be: what has ended makes room.
                self._prune_now()
            self._store.write(batch)
        except sqlite3.Error as e:
            if not self._failing:
                log.error("the journal %s cannot be written: %s", self._store.path, e)
            self._failing = True
            self._tell(Told(self._upto, str(e)))
            return
        if self._failing:
            log.warning("the journal %s is written again", self._store.path)
        self._failing = False
        for _ in batch:
            self._pending.popleft()
        self._upto += len(batch)
        self._unpruned_bytes += cost
        self._tell(Told(self._upto))

    def _batch(self) -> tuple[list[Record], int]:
        """The next records to write together, and about how many bytes they take."""
        room = _RETRIED_BATCH_BYTES if self._failing else _MAX_BATCH_BYTES
        batch: list[Record] = []
        cost = 0
        for record in self._pending:
            if batch and (len(batch) == _MAX_BATCH or cost >= room):
                break
            batch.append(record)
            cost += cost_bytes(record)
        return batch, cost

    def _answer(self) -> None:
        for _ in range(min(_MAX_READS, len(self._reads))):
            self._reads.popleft()(self._store)

    def _prune(self) -> None:
        if time.monotonic() < self._next_prune_s:
            return
        self._next_prune_s = time.monotonic() + PRUNE_S
        try:
            self._prune_now()
        except sqlite3.Error as e:
            log.warning("the journal %s cannot be pruned: %s", self._store.path, e)

    def _prune_now(self) -> None:
        self._unpruned_bytes = 0
        self._store.prune(int((self._clock.wall_s() - self._keep_s) * 1000))
        self.used_bytes = self._store.used_bytes()
