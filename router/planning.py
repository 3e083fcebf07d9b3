"""The search for a placement, in a process of its own."""

from __future__ import annotations

from helix_mq.errors import HelixError
from router.apart import Apart
from router.searches import Found, NothingFound, Search


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


class PlanningProcess:
    def __init__(self) -> None:
        self._apart = Apart("the search for a placement")

    async def search(self, wanted: Search) -> Found | NothingFound:
        """The answer, or why there is none; never raises for what happens over there."""
        return await self._apart.run(search, wanted, wanted.limit_s)

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._apart.close()
