"""The device thread: one job at a time, and how long the present one has been running.

The watchdog asks: a kernel that never ends, or a driver that hangs, shows in nothing else while the
event loop turns on.
Steps go there and back by `run`. By `submit`, with a concurrent future and what asyncio puts around
one, the way took some sixty Python functions per step; and each of them is slow when a step's
weights have driven it out of the processor's caches.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, ParamSpec, TypeVar

from helix_mq.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread(Executor):
    """Begins with its first job and ends with shutdown()."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()
        """No job is behind the last one."""
        self._ended = False
        self._dropping = False

    async def run(self, job: Callable[[], T]) -> T:
        """What `job` gives or raises there. A caller that is cancelled gets its CancelledError when
        the job has ended, as what the job works on must stay as it is until then."""
        loop = asyncio.get_running_loop()
        errand = _Errand(job, loop)
        self._post(errand.do)
        try:
            await errand.back
        except asyncio.CancelledError:
            if not errand.ended:
                errand.back = loop.create_future()
                await errand.back
            raise
        return errand.result()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor.submit; from any thread."""
        future: Future[T] = Future()

        def do() -> None:
            if self._dropping:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = fn(*args, **kwargs)
            except BaseException as e:
                future.set_exception(e)
            else:
                future.set_result(value)

        self._post(do)
        return future

    def busy_s(self) -> float:
        """Seconds that the present job has been running; 0 between jobs."""
        since_s = self._since_s
        return self._clock.now_s() - since_s if since_s is not None else 0.0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor.shutdown."""
        with self._lock:
            self._dropping |= cancel_futures
            if not self._ended:
                self._ended = True
                self._jobs.put(None)
            thread = self._thread
        if thread is not None and wait:
            thread.join()
        atexit.unregister(self.shutdown)

    def _post(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._ended:
                raise RuntimeError("the device thread has ended")
            if self._thread is None:
                # An interpreter that ends waits for the job in progress, as for a thread pool's,
                # but not for the next one, which nobody will post.
                atexit.register(self.shutdown)
                self._thread = Thread(target=self._work, name="device", daemon=True)
                self._thread.start()
            self._jobs.put(job)

    def _work(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            self._since_s = self._clock.now_s()
            job()
            self._since_s = None
            # What it holds is not to be kept until the next one comes.
            del job


class _Errand(Generic[T]):
    """A job on its way to the device thread, and back to the event loop."""

    __slots__ = ("_error", "_job", "_loop", "_value", "back", "ended")

    def __init__(self, job: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self._job = job
        self._loop = loop
        self._value: T | None = None
        self._error: BaseException | None = None
        self.ended = False
        self.back = loop.create_future()

    def do(self) -> None:
        """On the device thread."""
        try:
            self._value = self._job()
        except BaseException as e:
            self._error = e
        try:
            self._loop.call_soon_threadsafe(self._return)
        except RuntimeError:
            # The loop was closed meanwhile: nobody waits any more.
            return

    def _return(self) -> None:
        self.ended = True
        if not self.back.done():
            self.back.set_result(None)

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._value  # type: ignore[return-value]
        try:
            raise error
        finally:
            # Its traceback holds this frame.
            del error
