"""What every long-running process does: uvloop, logging, signals, one clean end.

`run` drives an async main until it returns or a signal asks it to stop; a second signal ends the
process at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

log = logging.getLogger(__name__)


_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160))}
_CONTROLS |= {c: f"\\u{c:04x}" for c in (0x2028, 0x2029)}


class OneLine(logging.Formatter):
    """Keeps a message on its line: peers' texts must not look like other events, nor steer a
    terminal. Tracebacks, which are the program's own, keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


def setup_logging(level: str) -> None:
    """One line per event on stderr, times first; journald adds its own."""
    journal = "JOURNAL_STREAM" in os.environ
    form = "%(levelname)-7s %(name)s: %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        OneLine(form if journal else "%(asctime)s.%(msecs)03d " + form, datefmt="%H:%M:%S")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` under uvloop; SIGINT and SIGTERM set `stop`."""

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if stop.is_set():
                os._exit(128 + number)
            log.info("stopping (%s)", number.name)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await main(stop)

    uvloop.run(supervised())
