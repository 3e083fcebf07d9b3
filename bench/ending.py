"""Benches that are programs of their own end in order when they are told to: what they have started
ends with them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

TERMINATED = 128 + signal.SIGTERM


def run_to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run(), but SIGTERM cancels the work as Ctrl-C does, instead of ending the process
    under its children. SystemExit with the code a shell gives for it then."""

    async def supervised() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        raise SystemExit(TERMINATED) from None


@contextmanager
def told_to_end() -> Iterator[None]:
    """For benches without an event loop: SIGTERM raises SystemExit where they are, with that code,
    as Ctrl-C raises KeyboardInterrupt. Other threads than the main one get no signals: nothing
    changes there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
