"""The bounded queue of requests waiting for room, and what to tell those that do not fit. Pure.

Two priority classes, first in first out within each; a request that is being re-routed keeps its
place by its arrival. Nothing overtakes the head: a long prompt would wait for ever behind a stream
of short ones.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from helix_mq.errors import QueueFull
from helix_mq.ids import RequestId


@dataclass(slots=True)
class WaitingQueue:
    max_requests: int
    _heap: list[tuple[int, float, RequestId]] = field(default_factory=list)
    _waiting: set[RequestId] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._waiting

    def check_room(self, retry_after_s: float) -> None:
        """Raises QueueFull when a new request may not wait."""
        if len(self._waiting) >= self.max_requests:
            raise QueueFull(
                f"{len(self._waiting)} requests are waiting already; try again in "
                f"{math.ceil(retry_after_s)} s",
                retry_after_s=retry_after_s,
            )

    def push(self, request: RequestId, priority: int, arrived_s: float) -> None:
        """Adds a request; one that comes back from a broken route is never refused."""
        heapq.heappush(self._heap, (priority, arrived_s, request))
        self._waiting.add(request)

    def head(self) -> RequestId | None:
        """The next to be admitted."""
        while self._heap and self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def remove(self, request: RequestId) -> None:
        """Takes a request out; its heap entry goes when it reaches the head or by compaction."""
        self._waiting.discard(request)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._waiting):
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)


@dataclass(slots=True)
class ThroughputMeter:
    """Output tokens and finished requests over the last minute or so, for Retry-After."""

    half_life_s: float = 20.0
    _rate: float = 0.0
    _last_s: float = 0.0

    def finished(self, now_s: float) -> None:
        self._decay(now_s)
        self._rate += math.log(2) / self.half_life_s

    def retry_after_s(self, now_s: float, waiting: int) -> float:
        """Seconds until the present queue will be about half served; within [1, 60]."""
        self._decay(now_s)
        if self._rate <= 1e-9:
            return 5.0
        return min(60.0, max(1.0, 0.5 * waiting / self._rate))

    def _decay(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._last_s)
        self._rate *= 0.5 ** (elapsed_s / self.half_life_s)
        self._last_s = now_s
