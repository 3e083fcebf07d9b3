"""A daemon's life from its start until somebody wants it to end."""

from __future__ import annotations

import asyncio

from nodes.daemon import NodeDaemon


async def run_until(daemon: NodeDaemon, stop: asyncio.Event) -> None:
    """Runs it; told to stop when `stop` is set, it ends in order. Raises what it ends with."""

    async def stop_it() -> None:
        await stop.wait()
        daemon.stop()

    stopping = asyncio.create_task(stop_it())
    try:
        await daemon.run()
    finally:
        stopping.cancel()
