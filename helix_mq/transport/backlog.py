"""Messages that wait for a link, first in first out, bounded in number and bytes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from helix_mq.transport.limits import Limits

Buffer = bytes | bytearray | memoryview


class Backlog:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Sequence[Buffer], int]] = deque()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, parts: Sequence[Buffer], nbytes: int) -> bool:
        """Takes a message in. False when full; one larger than the bound fits when alone."""
        if len(self._waiting) >= self._limits.backlog_messages:
            return False
        if self._waiting and self.nbytes + nbytes > self._limits.backlog_bytes:
            return False
        # The caller may reuse its list; the parts themselves it leaves alone.
        self._waiting.append((tuple(parts), nbytes))
        self.nbytes += nbytes
        return True

    def first(self) -> tuple[Sequence[Buffer], int]:
        return self._waiting[0]

    def pop(self) -> None:
        _, nbytes = self._waiting.popleft()
        self.nbytes -= nbytes

    def clear(self) -> int:
        """Empties it; gives how many messages were lost."""
        count = len(self._waiting)
        self._waiting.clear()
        self.nbytes = 0
        return count

    def take_over(self, earlier: Backlog) -> None:
        """Puts another's messages behind these. What exceeds the bounds stays in, once."""
        self._waiting.extend(earlier._waiting)
        self.nbytes += earlier.nbytes
        earlier.clear()
