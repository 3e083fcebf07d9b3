"""/metrics for any number of scrapers: one text is made at a time, and serves all for a while.

/metrics needs no key. Each scrape used to take a thread of the pool that prompts are tokenised in,
and wait there for the one before it: some forty at once held requests up.
"""

from __future__ import annotations

import asyncio

from helix_mq.clock import Clock
from router.metrics import RouterMetrics
from router.service import Service

REST = 10.0
"""A text is given out again for so many times as long as it took to make: scrapes take a tenth of
the time at most, and in a small cluster each of them is as good as new."""
MOST_REST_S = 5.0


class Scrapes:
    def __init__(self, service: Service, metrics: RouterMetrics, clock: Clock) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._making = asyncio.Lock()
        self._made: tuple[bytes, str] | None = None
        self._until_s = 0.0

    async def text(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        async with self._making:
            began_s = self._clock.now_s()
            if self._made is None or began_s >= self._until_s:
                # Some 10 us per sample: too long for the loop that tokens go through.
                made = await asyncio.to_thread(self._metrics.render, self._service.status())
                now_s = self._clock.now_s()
                self._made = made
                self._until_s = now_s + min(REST * (now_s - began_s), MOST_REST_S)
            return self._made
