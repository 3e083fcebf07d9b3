"""Many who ask for metrics at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from helix_mq.clock import VirtualClock
from router.gateway.scrapes import MOST_REST_S, REST, Scrapes
from router.metrics import RouterMetrics
from router.service import ServiceStatus
from tests.echo_service import EchoService


class Held(RouterMetrics):
    """Makes no text before it may, and takes so long for one."""

    def __init__(self, clock: VirtualClock, takes_s: float = 0.1) -> None:
        super().__init__(clock)
        self._virtual = clock
        self._takes_s = takes_s
        self.begun = threading.Event()
        self.may = threading.Event()
        self.made = 0

    def render(self, status: ServiceStatus) -> tuple[bytes, str]:
        self.begun.set()
        assert self.may.wait(20)
        self._virtual.advance(self._takes_s)
        self.made += 1
        return super().render(status)


async def test_scrapers_leave_the_threads_to_requests(service: EchoService) -> None:
    clock = VirtualClock()
    metrics = Held(clock)
    scrapes = Scrapes(service, metrics, clock)
    waiting = [asyncio.create_task(scrapes.text()) for _ in range(100)]
    try:
        async with asyncio.timeout(240):
            assert await asyncio.to_thread(metrics.begun.wait, 20)
            # More at once than the pool would have threads left, were each scrape in one.
            await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(40)))
    finally:
        metrics.may.set()
    assert len(set(await asyncio.gather(*waiting))) == 1
    assert (metrics.made, service.statuses) == (1, 1)


@pytest.mark.parametrize(
    ("takes_s", "rest_s"), [(0.003, REST * 0.003), (0.1, REST * 0.1), (3.0, MOST_REST_S)]
)
async def test_a_text_is_given_out_again_for_as_long_as_it_is_worth(
    service: EchoService, takes_s: float, rest_s: float
) -> None:
    clock = VirtualClock()
    metrics = Held(clock, takes_s)
    metrics.may.set()
    scrapes = Scrapes(service, metrics, clock)
    first, _ = await scrapes.text()
    metrics.happened("late")
    clock.advance(0.9 * rest_s)
    assert (await scrapes.text())[0] is first
    clock.advance(0.2 * rest_s)
    later, _ = await scrapes.text()
    assert b'"late"' in later
    assert b'"late"' not in first
