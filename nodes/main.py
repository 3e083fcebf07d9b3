"""Puts a node together from its settings and runs it until told to stop."""

from __future__ import annotations

import asyncio

from helix_mq.clock import SystemClock
from helix_mq.longlived import keep_what_is_here
from helix_mq.models.resolve import resolve_model
from helix_mq.notify import Announcer
from helix_mq.transport import ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import identify
from nodes.measuring import with_times
from nodes.metrics import NodeMetrics
from nodes.running import run_until
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.tuning import tune_process

_CLOSING_S = 30.0
"""Beside draining: the step in progress ends, and sockets linger for goodbyes."""


async def serve(settings: NodeSettings, stop: asyncio.Event) -> None:
    """The whole node process; returns after a clean shutdown, raises the router's rejection."""
    tune_process()
    security = NodeSecurity(settings.security)
    folder = await asyncio.to_thread(resolve_model, settings.model)
    identity = await asyncio.to_thread(identify, settings, folder)
    if settings.measure.at_start:
        identity = await asyncio.to_thread(with_times, settings, identity)
    keep_what_is_here()
    transport = ZmqTransport()
    daemon = NodeDaemon(settings, identity, transport, security, SystemClock())

    metrics = NodeMetrics(settings.metrics, daemon.figures)
    if settings.metrics.port is not None:
        await metrics.start()
    announcer = Announcer.start(daemon, stop, stopping_s=settings.drain_s + _CLOSING_S)

    async def ready_when_up() -> None:
        await daemon.up.wait()
        announcer.ready()

    waiting = asyncio.create_task(ready_when_up())
    try:
        await run_until(daemon, stop)
    finally:
        waiting.cancel()
        await metrics.close()
        await transport.close()
        await announcer.close()
