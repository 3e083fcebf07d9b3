"""What is measured, and what comes of it. Crosses the pipe between the bench and its workers.

Processes form a ring: place 0 sends to place 1, and so on, and the last sends to place 0. A `trips`
load goes round it, one message at a time; a `stream` goes from place 0 to the last place, as fast
as it will.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

System = Literal["blocking", "drained", "connection", "plane"]
Mode = Literal["trips", "stream", "copies"]
"""`copies` is a short stream while Python's own allocations are counted."""

HEADER_BYTES = 64
"""Of the header part that systems other than the plane carry: about what a decode's has."""
FLIGHT_BYTES = 64 * 1024 * 1024
"""On their way at most, in every system: the plane's credit window."""
FLIGHT_MESSAGES = 1000
"""ZeroMQ's own high-water mark, and the transport's."""


class Spec(msgspec.Struct, frozen=True):
    """Who a worker is, and the bytes of tensor in each of its messages. `keys`: CURVE pairs
    (public, secret), one per place; none for plain."""

    system: System
    parts: Annotated[int, msgspec.Meta(ge=1, le=3)]
    place: int
    places: int
    size_bytes: int
    endpoint: str
    keys: tuple[tuple[str, str], ...] = ()

    @property
    def in_flight(self) -> int:
        """Messages that may be under way. Fixed from the start: ZeroMQ may stop for good when
        marks of open connections are lowered."""
        return max(2, min(FLIGHT_MESSAGES, FLIGHT_BYTES // self.size_bytes))


class Load(msgspec.Struct, frozen=True):
    """So many messages."""

    mode: Mode
    count: int


class Measured(msgspec.Struct, frozen=True):
    """One worker's share. Times on the machine's monotonic clock.

    `trips_s` are a source's; `lag_s` the longest time the event loop's own work held up a timer;
    `traced_bytes` the most that Python's allocator held over what it held before, of `copies`.
    """

    start_s: float
    end_s: float
    cpu_s: float
    trips_s: tuple[float, ...] = ()
    lag_s: float = 0.0
    traced_bytes: int = 0
