"""Nodes that compute when a test lets them: what is to happen while requests are under way happens
then, however fast or slow the machine is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster import Cluster

WAIT_S = 240.0


class HeldSteps:
    """Steps that have begun when it is shut go on to their end; the next ones wait on their device
    threads, so that event loops turn on. From any thread."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def after(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def waiting(batch: Any) -> Any:
            assert self._open.wait(WAIT_S), "nobody opened it"
            return run(batch)

        return waiting


@contextmanager
def held_steps(c: Cluster, *nodes: str) -> Iterator[HeldSteps]:
    """Shut, for the slices that these nodes (all, if none is named) hold now; open again after."""
    held = HeldSteps()
    engines = [loaded.engine for n in nodes or c.daemons if (loaded := c.daemons[n].loaded)]
    assert len(engines) == len(nodes or c.daemons), "each holds a slice"
    for engine in engines:
        engine.run = held.after(engine.run)  # type: ignore[method-assign]
        # All on the device threads: what else computes a step does not wait.
        engine.begin = lambda batch: None  # type: ignore[method-assign]
        engine.again = lambda batch, payload: None  # type: ignore[method-assign]
    try:
        yield held
    finally:
        held.open()
        for engine in engines:
            del engine.run, engine.begin, engine.again
