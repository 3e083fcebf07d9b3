"""The heuristics as steps of a search: each offers what it places, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable

from helix_mq.layers import Placement
from solver.heuristics import petals, swarm, swarm_widths
from solver.heuristics_pipelines import homogeneous, separate
from solver.problem import Problem
from solver.search_types import Budget, NoPlacement, TooLittleRoom

HEURISTICS = ("petals", "swarm", "homogeneous", "separate", "separate-leftovers")

Offer = Callable[[Placement, str], None]
"""Takes a placement and the name of its method."""


def offer_heuristic(problem: Problem, method: str, seed: int, budget: Budget, offer: Offer) -> None:
    """Offers what one of HEURISTICS finds; raises NoPlacement if it finds nothing."""
    if method == "swarm":
        _offer_swarm(problem, budget, offer)
        return
    place: dict[str, Callable[[], Placement]] = {
        "petals": lambda: petals(problem, seed),
        "homogeneous": lambda: homogeneous(problem),
        "separate": lambda: separate(problem),
        "separate-leftovers": lambda: separate(problem, leftovers=True),
    }
    offer(place[method](), method)


def offer_every_heuristic(problem: Problem, seed: int, budget: Budget, offer: Offer) -> list[str]:
    """Runs them all, as the time allows; what those that failed say."""
    failures: list[str] = []
    for method in HEURISTICS:
        try:
            offer_heuristic(problem, method, seed, budget, offer)
        except TooLittleRoom as error:
            failures.append(error.reason)
        except NoPlacement as error:
            failures.append(error.message)
        if budget.over():
            break
    return failures


def _offer_swarm(problem: Problem, budget: Budget, offer: Offer) -> None:
    """The published stage width, and others; the first failure is reported if all fail."""
    failure: NoPlacement | None = None
    worked = False
    for width in swarm_widths(problem):
        try:
            offer(swarm(problem, width), "swarm")
            worked = True
        except NoPlacement as error:
            failure = failure or error
        if budget.over():
            break
    if failure is not None and not worked:
        raise failure
