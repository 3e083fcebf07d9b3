"""Outgoing messages: weighed against the limits, queued while their link takes no more. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from helix_mq.transport.limits import Limits

Buffer = bytes | bytearray | memoryview
Waiting = tuple[Sequence[Buffer], int, int]
"""(parts, bytes, bytes of large parts)"""

COPY_BELOW_BYTES = 128 * 1024
"""Parts smaller than this are copied into ZeroMQ's memory. Sending without a copy costs a message
to pyzmq's garbage collector thread per part. Measured on loopback: for 64 KiB parts the copy is
the faster way there and back, from 256 KiB on it blocks the event loop for longer."""


def weigh(parts: Sequence[Buffer], limits: Limits) -> tuple[int, int]:
    """Bytes of an outgoing message, and those of its parts that go uncopied.

    Raises MessageTooLarge when it breaks the limits.
    """
    total = large = 0
    for part in parts:
        nbytes = part.nbytes if type(part) is memoryview else len(part)
        total += nbytes
        if nbytes >= COPY_BELOW_BYTES:
            large += nbytes
    if total > limits.max_message_bytes or not 0 < len(parts) <= limits.max_parts:
        limits.refuse(len(parts), total)
    return total, large


class Backlog:
    """First in, first out; bounded in number and bytes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.waiting: deque[Waiting] = deque()
        self.nbytes = 0

    def offer(self, parts: Sequence[Buffer], nbytes: int, large: int = 0) -> bool:
        """Takes a message in. False when full; one larger than the bound fits when alone."""
        waiting = self.waiting
        if len(waiting) >= self._limits.backlog_messages:
            return False
        if waiting and self.nbytes + nbytes > self._limits.backlog_bytes:
            return False
        # The caller may reuse its list; the parts themselves it leaves alone.
        waiting.append((tuple(parts), nbytes, large))
        self.nbytes += nbytes
        return True

    def pop(self) -> None:
        self.nbytes -= self.waiting.popleft()[1]

    def clear(self) -> int:
        """Empties it; gives how many messages were lost."""
        count = len(self.waiting)
        self.waiting.clear()
        self.nbytes = 0
        return count

    def take_over(self, earlier: Backlog) -> None:
        """Puts another's messages behind these; together they may exceed the bounds, once."""
        self.waiting.extend(earlier.waiting)
        self.nbytes += earlier.nbytes
        earlier.clear()
