"""What every long-running process does: uvloop, signals, one clean end.

`run` drives an async main until it returns or a signal asks it to stop; a second signal ends the
process at once.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop

from helix_mq.errors import CallerError, HelixError
from helix_mq.file_limit import raise_file_limit
from helix_mq.time_slices import answer_soon, compute_long

log = logging.getLogger(__name__)


def run(
    main: Callable[[asyncio.Event], Awaitable[None]], *, at_once: Callable[[], None] | None = None
) -> None:
    """Runs `main(stop)` under uvloop; SIGINT and SIGTERM set `stop`. `at_once` is what even a
    second signal must not leave undone."""

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(initializer=compute_long))
        stop = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if stop.is_set():
                try:
                    if at_once is not None:
                        at_once()
                finally:
                    os._exit(128 + number)
            log.info("stopping (%s)", number.name)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await main(stop)

    # What hangs is ended with SIGABRT by the service manager: then every thread says where it was.
    faulthandler.enable()
    raise_file_limit()
    # Before ZeroMQ starts its threads, which are to have it as well.
    answer_soon()
    try:
        uvloop.run(supervised())
    except Exception as e:
        # What ends a service belongs in its log: one line like the others, whoever worded it.
        if not logging.getLogger().hasHandlers():
            raise
        if isinstance(e, HelixError):
            log.error("%s", e)
        else:
            log.critical("ended by a fault of its own", exc_info=e)
        raise SystemExit(2 if isinstance(e, CallerError) else 1) from None
