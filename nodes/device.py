"""The device thread: one job at a time, and how long the present one has been running.

The watchdog asks: a kernel that never ends, or a driver that hangs, shows in nothing else while the
event loop turns on.
Steps go there and back as an `Errand`. By `submit`, with a concurrent future and what asyncio puts
around one, the way took some sixty Python functions per step, and with a future of its own still
ten and a turn of the loop; and each of them is slow when a step's weights have driven it out of the
processor's caches.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Generic, ParamSpec, TypeVar

from helix_mq.clock import Clock
from helix_mq.time_slices import compute_long

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread(Executor):
    """Begins with its first job and ends with shutdown()."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.since_s: float | None = None
        """When its present job began; None between jobs."""
        self.elsewhere_since_s: float | None = None
        """The same of what the device computes without this thread. Who has it do so, while nothing
        runs here, sets it, and calls rested() when it is over: jobs wait for that."""
        self._rest = Event()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()
        """No job is behind the last one."""
        self._ended = False
        self._dropping = False

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

        self.post(do)
        return future

    def busy_s(self) -> float:
        """Seconds that the present job has been running; 0 between jobs."""
        began_s = [s for s in (self.since_s, self.elsewhere_since_s) if s is not None]
        return self.clock.now_s() - min(began_s) if began_s else 0.0

    def rested(self) -> None:
        """What the device computed without this thread is over. Loop thread."""
        self.elsewhere_since_s = None
        if self.since_s is not None:
            self._rest.set()

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

    def post(self, job: Callable[[], None]) -> None:
        """Has `job` done, which raises nothing; RuntimeError after shutdown()."""
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
        compute_long()
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            # First of all: from now on nobody begins anything elsewhere.
            self.since_s = self.clock.now_s()
            if self.elsewhere_since_s is not None:
                self._rest.clear()
                if self.elsewhere_since_s is not None:
                    self._rest.wait()
            job()
            self.since_s = None
            # What it holds is not to be kept until the next one comes.
            del job


class Errand(Generic[A, T]):
    """What somebody has done on the device thread over and over, one at a time. `back` is called on
    the event loop with what the job was given, what came of it, and what it raised."""

    __slots__ = ("_back", "_device", "_error", "_given", "_job", "_loop", "_value")

    def __init__(
        self,
        device: DeviceThread,
        back: Callable[[A, T | None, BaseException | None], None],
    ) -> None:
        self._device = device
        self._back = back
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: Callable[[A], T] | None = None
        self._given: A | None = None
        self._value: T | None = None
        self._error: BaseException | None = None

    def go(self, job: Callable[[A], T], given: A, loop: asyncio.AbstractEventLoop) -> None:
        """Not again before it is back on `loop`."""
        self._job, self._given, self._loop = job, given, loop
        self._device.post(self._do)

    def _do(self) -> None:
        """On the device thread."""
        job, loop = self._job, self._loop
        assert job is not None
        assert loop is not None
        try:
            self._value = job(self._given)  # type: ignore[arg-type]
        except BaseException as e:
            self._error = e
        # Before the loop hears of it, which may have the next job at once.
        self._device.since_s = None
        try:
            loop.call_soon_threadsafe(self._return)
        except RuntimeError:
            # The loop was closed meanwhile: nobody waits any more.
            return

    def _return(self) -> None:
        given, value, error = self._given, self._value, self._error
        # Nothing of it is to be kept until the next one.
        self._job = self._given = self._value = self._error = None
        self._back(given, value, error)  # type: ignore[arg-type]
