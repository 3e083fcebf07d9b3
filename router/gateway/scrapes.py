"""/metrics for any number of scrapers: one text is made at a time, and serves all for a second.

/metrics needs no key. Each scrape used to take a thread of the pool that prompts are tokenised in,
and wait there for the one before it: some forty at once held requests up.
"""

from __future__ import annotations

import asyncio

from helix_mq.clock import Clock
from router.metrics import RouterMetrics
from router.service import Service

FRESH_S = 1.0
"""How old a text may be that is given out again."""


class Scrapes:
    def __init__(self, service: Service, metrics: RouterMetrics, clock: Clock) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._making = asyncio.Lock()
        self._made: tuple[bytes, str] | None = None
        self._made_s = 0.0

    async def text(self) -> tuple[bytes, str]:
        """The exposition text, at most FRESH_S old, and its content type."""
        async with self._making:
            now_s = self._clock.now_s()
            if self._made is None or now_s - self._made_s >= FRESH_S:
                # Some 10 us per sample: too long for the loop that tokens go through.
                made = await asyncio.to_thread(self._metrics.render, self._service.status())
                self._made, self._made_s = made, now_s
            return self._made
