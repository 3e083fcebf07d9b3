"""The device thread: one job at a time, and how long the present one has been running.

The watchdog asks: a kernel that never ends, or a driver that hangs, shows in nothing else while the
event loop turns on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from helix_mq.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread(ThreadPoolExecutor):
    def __init__(self, clock: Clock) -> None:
        super().__init__(1, thread_name_prefix="device")
        self._clock = clock
        self._since_s: float | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def timed() -> T:
            self._since_s = self._clock.now_s()
            try:
                return fn(*args, **kwargs)
            finally:
                self._since_s = None

        return super().submit(timed)

    def busy_s(self) -> float:
        """Seconds that the present job has been running; 0 between jobs."""
        since_s = self._since_s
        return self._clock.now_s() - since_s if since_s is not None else 0.0
