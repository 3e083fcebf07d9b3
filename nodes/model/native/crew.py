"""Threads that compute one step at a time and ring a bell, an eventfd, when it is over: crew.h.

Who makes steps ready on an event loop posts them from there and is told there: no thread of
Python's is woken in between, and none waits for the interpreter.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from helix_mq.time_slices import compute_long
from nodes.model.native.build import built
from nodes.model.native.calls import POINTER, SUFFIXES, THREADS

Post = Callable[..., None]
"""What gives a crew its job."""

_Times = ctypes.c_double * 2


class NoCrew(Exception):
    """Why there are no such threads, in words. Nobody's fault: a thread of Python's has the steps
    computed then."""


class Crew:
    """One job at a time, by one thread of ours. Ends with close() or when nobody has it any more,
    either way after the job in progress."""

    def __init__(self, threads: int) -> None:
        """Raises NoCrew."""
        self.threads = threads
        library = _calls()
        if library is None:
            raise NoCrew("compiled threads need Linux and the compiled decode step")
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when a job is over, until took()."""
        self.at: int | None = _as_who_computes(partial(library.crew_start, threads, self.bell))
        """What posts a job takes this: crew_function(). One after took() only."""
        if not self.at:
            os.close(self.bell)
            raise NoCrew(f"the system starts no {threads} threads more")
        self._took = library.crew_took
        self._times = _Times()
        self.held: list[object] = [None]
        """One thing: what the job in progress reads and writes, kept as long as it may."""
        self._end = weakref.finalize(self, _end, self.at, self.bell, self.held)

    def took(self) -> tuple[int, float, float]:
        """What the last job gave, and when it began and ended on the performance counter; -1 while
        it is in progress."""
        result: int = self._took(self.at, self._times)
        if result >= 0:
            self.held[0] = None
        return result, self._times[0], self._times[1]

    def close(self) -> None:
        """Returns after the job in progress."""
        self._end()


def crew_function(name: str, dtype: torch.dtype, arguments: Sequence[Any]) -> Post | None:
    """What posts a kernel's job, which takes a crew and the kernel's arguments; None where there
    are no crews."""
    library = _calls()
    function = getattr(library, f"crew_{name}_{SUFFIXES[dtype]}", None)
    if function is None:
        return None
    function.argtypes = [POINTER, *arguments]
    function.restype = None
    post: Post = function
    return post


def _as_who_computes(start: Callable[[], int | None]) -> int | None:
    """Threads have the time slice of who starts them, and event loops have short ones."""
    with ThreadPoolExecutor(1, initializer=compute_long) as one:
        return one.submit(start).result()


@functools.cache
def _calls() -> ctypes.PyDLL | None:
    """The library for short calls, which keep the interpreter; None where it has no crews."""
    library = built().library
    if library is None or not hasattr(library, "crew_start") or not hasattr(os, "eventfd"):
        return None
    calls = ctypes.PyDLL(library._name)
    calls.crew_start.argtypes = [THREADS, THREADS]
    calls.crew_start.restype = POINTER
    calls.crew_took.argtypes = [POINTER, ctypes.POINTER(ctypes.c_double)]
    calls.crew_took.restype = THREADS
    return calls


def _end(at: int, bell: int, held: list[object]) -> None:
    library = built().library
    if library is not None:
        stop = library.crew_stop
        stop.argtypes = [POINTER]
        stop(at)
    os.close(bell)
    held.clear()
