"""Loads slices off the device thread, while others serve on it.

Reading and converting weights takes seconds to minutes and happens on a thread of its own; only
warm-up steps go to the device thread, each as one job, so that they take turns with the steps of
the slices that serve. One load at a time.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import torch

from helix_mq.errors import LocalError
from helix_mq.time_slices import compute_long
from nodes.loading import Loaded, LoadHost, LoadRequest, Report, load

Load = Callable[[LoadRequest, Report, LoadHost], Loaded]
"""What makes a slice of a request; `nodes.loading.load` in a node that serves."""


class Unwanted(LocalError):
    """The slice that was being loaded is not wanted any more."""

    code = "unwanted"


class _Host:
    def __init__(self, device: Executor, unwanted: threading.Event) -> None:
        self._device = device
        self._unwanted = unwanted

    def go_on(self) -> None:
        if self._unwanted.is_set():
            raise Unwanted("not wanted any more")

    def run(self, step: Callable[[], float]) -> float:
        return self._device.submit(step).result()


class Loader:
    def __init__(self, device: Executor, load: Load = load) -> None:
        self._device = device
        self._load = load
        self._unwanted = threading.Event()
        self._running: asyncio.Future[Loaded] | None = None

    async def load(self, request: LoadRequest, report: Report, *, beside: bool) -> Loaded:
        """Raises as nodes.loading.load(), or Unwanted after give_up().

        `beside`: others serve meanwhile. The load then takes few of the processor's threads.
        """
        assert self._running is None
        self._unwanted.clear()
        host = _Host(self._device, self._unwanted)

        def job() -> Loaded:
            if not beside:
                return self._load(request, report, host)
            # Sets this thread's own number, and that of threads which use torch for the first
            # time while it lasts; the device thread has had its own since it first computed.
            threads = torch.get_num_threads()
            torch.set_num_threads(max(1, threads // 4))
            try:
                return self._load(request, report, host)
            finally:
                torch.set_num_threads(threads)

        # A thread per load: a pool's idle one would keep its team of computing threads.
        thread = ThreadPoolExecutor(1, thread_name_prefix="loading", initializer=compute_long)
        self._running = asyncio.get_running_loop().run_in_executor(thread, job)
        try:
            return await asyncio.shield(self._running)
        finally:
            thread.shutdown(wait=False)
            if self._running.done():
                self._running = None

    def give_up(self) -> None:
        """The load in progress ends at its next tensor or step."""
        self._unwanted.set()

    async def close(self) -> None:
        """Returns when nothing is being loaded any more."""
        self.give_up()
        if self._running is not None:
            await asyncio.wait([self._running])
            if not self._running.cancelled():
                self._running.exception()
            self._running = None


def release_memory(device: torch.device, *, after_fault: bool = False) -> None:
    """Gives back what freed tensors leave behind: the CUDA allocator keeps blocks for requests of
    the same size, and exceptions may keep frames that hold some in cycles. Looking for those takes
    half a second of the interpreter's time, so it is not for every day."""
    if after_fault:
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
