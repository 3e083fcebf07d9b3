"""The search for a placement in a process of its own, so that the router's loop never waits for it.

One process, started when first wanted and kept; a search that overruns or dies costs that search.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from helix_mq.errors import HelixError
from router.searches import Found, NothingFound, Search

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""Beyond the search's own limit: starting the process, importing the solvers, checking the answer.
"""


def search(wanted: Search) -> Found | NothingFound:
    """Runs in the planning process. What cannot be placed is an answer in words, no exception."""
    from solver.flow import max_flow
    from solver.search import solve
    from solver.search_types import SolveOptions

    options = SolveOptions(time_limit_s=wanted.limit_s, warm_start=wanted.now)
    try:
        result = solve(wanted.problem, options)
        now = max_flow(wanted.problem, wanted.now).tokens_per_s if wanted.now is not None else 0.0
    except HelixError as e:
        return NothingFound(e.message)
    return Found(dict(result.placement.slices), result.objective_tokens_per_s, now, result.method)


def _begin() -> None:
    # A Ctrl-C at the terminal reaches the whole group; the router ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The nodes of a test cluster share this machine's cores: the search must not take them away.
    os.nice(5)


class PlanningProcess:
    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def search(self, wanted: Search) -> Found | NothingFound:
        """The answer, or why there is none; never raises for what happens over there."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(wanted.limit_s + GRACE_S):
                return await loop.run_in_executor(self._pool, search, wanted)
        except TimeoutError:
            self.close()
            return NothingFound(f"the search took longer than {wanted.limit_s + GRACE_S:.0f} s")
        except BrokenProcessPool:
            self.close()
            return NothingFound("the planning process died, perhaps for lack of memory")
        except Exception as e:
            log.exception("the search for a placement failed")
            return NothingFound(f"the search failed: {type(e).__name__}")

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
