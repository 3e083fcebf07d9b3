"""What waits at a link's sending end, and what goes next: decodes before prompt chunks.

Pure; no I/O, no clock. A decode row is a few KiB and holds up a whole round of its request; a chunk
of a prompt is megabytes. So there are two lines, and the urgent one goes first, but a sequence's
own frames are never overtaken by it: its receivers take positions in order only.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from typing import Generic, NamedTuple, TypeVar

F = TypeVar("F")


class Waiting(NamedTuple, Generic[F]):
    """One frame in line; `keys` name the sequences whose rows it holds."""

    frame: F
    nbytes: int
    keys: Collection[Hashable]


class LinkQueue(Generic[F]):
    """Frames in two lines. `push`, then `next_frame` until it has nothing that may go."""

    def __init__(self) -> None:
        self._urgent: deque[Waiting[F]] = deque()
        self._bulk: deque[Waiting[F]] = deque()
        # Sequences with a frame in the bulk line.
        self._held: Counter[Hashable] = Counter()
        self.waiting_bytes = 0
        """0 only where nothing waits: a frame has a header at least."""

    def __len__(self) -> int:
        return len(self._urgent) + len(self._bulk)

    @property
    def bulk_frames(self) -> int:
        return len(self._bulk)

    @property
    def urgent_frames(self) -> int:
        return len(self._urgent)

    def push(self, frame: F, nbytes: int, keys: Collection[Hashable], *, urgent: bool) -> None:
        """Puts a frame in its line; an urgent one behind its own sequence's bulk, if there is."""
        self.waiting_bytes += nbytes
        if urgent and (not self._held or not any(key in self._held for key in keys)):
            self._urgent.append(Waiting(frame, nbytes, keys))
            return
        keys = frozenset(keys)
        self._bulk.append(Waiting(frame, nbytes, keys))
        self._held.update(keys)

    def next_frame(
        self, may_go: Callable[[int], bool], bulk_may_go: Callable[[int], bool]
    ) -> tuple[F, int] | None:
        """The frame to send now, left in line; None if none may go.

        `may_go(nbytes)` is asked of every frame, `bulk_may_go(nbytes)` also of bulk. An urgent
        frame that may not go holds bulk back, or bulk would take the room it waits for.
        """
        if self._urgent:
            waiting = self._urgent[0]
            return (waiting.frame, waiting.nbytes) if may_go(waiting.nbytes) else None
        if self._bulk:
            waiting = self._bulk[0]
            if bulk_may_go(waiting.nbytes) and may_go(waiting.nbytes):
                return waiting.frame, waiting.nbytes
        return None

    def sent(self) -> bool:
        """Takes out what `next_frame` gave. True if it was urgent."""
        urgent = bool(self._urgent)
        waiting = self._urgent.popleft() if urgent else self._bulk.popleft()
        self.waiting_bytes -= waiting.nbytes
        if not urgent:
            for key in waiting.keys:
                self._held[key] -= 1
                if not self._held[key]:
                    del self._held[key]
        return urgent

    def clear(self) -> None:
        self._urgent.clear()
        self._bulk.clear()
        self._held.clear()
        self.waiting_bytes = 0
