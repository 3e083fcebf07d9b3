"""Work that may hold the interpreter for seconds, in a process of its own: the router's loop never
waits for it.

One process, started when first wanted and kept; work that overruns or dies costs that work only.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from helix_mq.time_slices import compute_long
from router.searches import NothingFound

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""Beyond the work's own limit: starting the process, importing the solvers, checking the answer."""

_Wanted = TypeVar("_Wanted")
_Answer = TypeVar("_Answer")


def _begin() -> None:
    # A Ctrl-C at the terminal reaches the whole group; the router ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The nodes of a test cluster share this machine's cores: the search must not take them away.
    os.nice(5)
    compute_long()


class Apart:
    def __init__(self, what: str) -> None:
        """`what` it is that runs there, in words: `the search for a placement`."""
        self._what = what
        self._pool: ProcessPoolExecutor | None = None

    async def run(
        self, work: Callable[[_Wanted], _Answer | NothingFound], wanted: _Wanted, limit_s: float
    ) -> _Answer | NothingFound:
        """The answer, or why there is none; never raises for what happens over there."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        loop, pool = asyncio.get_running_loop(), self._pool
        died = NothingFound(
            f"the process for {self._what} died, perhaps for lack of memory: the router's log "
            "and the kernel's say more"
        )
        try:
            async with asyncio.timeout(limit_s + GRACE_S):
                return await loop.run_in_executor(pool, work, wanted)
        except TimeoutError:
            self.close()
            return NothingFound(f"{self._what} took longer than {limit_s + GRACE_S:.0f} s")
        except BrokenProcessPool:
            self.close()
            return died
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._pool is pool or (task is not None and task.cancelling()):
                raise
            # close() has ended the process before it had begun with this.
            return died
        except Exception as e:
            log.exception("%s failed", self._what)
            return NothingFound(f"{self._what} failed: {type(e).__name__}")

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
