"""Time as a dependency: decisions take a Clock, never the system's clock itself.

Tests and the simulator pass a VirtualClock; processes pass a SystemClock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, comparable between machines with synchronised clocks."""
        ...


class SystemClock:
    # The functions themselves: asked several times for each frame, and a method around them costs
    # more than they do.
    now_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 0.0, wall_offset_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s
        self._wall_offset_s = wall_offset_s

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._wall_offset_s + self._now_s

    def advance(self, by_s: float) -> None:
        if by_s < 0:
            raise ValueError(f"time does not run backwards (by_s={by_s})")
        self._now_s += by_s
