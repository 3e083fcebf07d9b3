"""Finds a placement: one method, or `auto`, which runs all that the time allows and takes the best.

Whatever a method returns is judged by its exact max flow, verified from scratch, and reported with
an upper bound, the gap and the time. A method that cannot answer raises NoPlacement with the reason
in words.
"""

from __future__ import annotations

import threading

from helix_mq.layers import Placement
from solver.bounds import OPTIMAL_REL_GAP, Bound, best_bound, quick_bound
from solver.figures import shown
from solver.flow import FlowSolution, max_flow
from solver.judging import Simulate, Trial
from solver.milp import MAX_LINKS, solve_milp
from solver.objective import ServingEstimate, ServingModel, estimate
from solver.problem import Problem
from solver.search_chain import Candidate
from solver.search_decompose import decompose
from solver.search_failure import why_not
from solver.search_heuristics import HEURISTICS, offer_every_heuristic, offer_heuristic
from solver.search_index import ProblemIndex
from solver.search_intervals import close_gap
from solver.search_judge import Judge
from solver.search_lns import improve_by_parts
from solver.search_local import improve
from solver.search_pools import pools_of
from solver.search_serving import calmer_plans, most_promising, serving_estimate
from solver.search_types import (
    Budget,
    NoPlacement,
    PlanResult,
    Progress,
    ReportProgress,
    SolveOptions,
    relative_gap,
)
from solver.verify import require_valid, verify

SMALL_NODES = 10
"""Up to here `auto` also runs the mixed-integer programme, which may prove the optimum."""
PATIENCE_S = 10.0
MIN_FLOW = 1e-9
CHECK_S_PER_LINK = 5e-6
"""Kept back from the time limit for the exact flow and the verifier: seconds at a million links."""
CHECK_SHARE = 0.3


def solve(
    problem: Problem,
    options: SolveOptions | None = None,
    progress: ReportProgress | None = None,
    stop: threading.Event | None = None,
) -> PlanResult:
    """The best verified placement that the method finds in time.

    `progress` is called with every improvement; setting `stop` ends the search with the best so
    far. NoPlacement (CapacityError) if there is no answer, ConfigError for options that contradict
    each other, VerificationError if an answer does not hold (a fault of ours).
    """
    options = options or SolveOptions()
    checks_s = min(CHECK_S_PER_LINK * len(problem.links), CHECK_SHARE * options.time_limit_s)
    budget = Budget(options.time_limit_s - checks_s, stop=stop)
    search = _Search(problem, options, budget, progress)
    method = options.method
    if options.warm_start is not None:
        search.offer_placement(options.warm_start, "warm start")
    if method == "auto":
        search.everything()
    elif method in HEURISTICS:
        search.heuristic(method)
    elif method == "blocks":
        search.blocks(1.0)
    elif method == "local":
        search.every_heuristic()
        search.local(budget.left_s, budget.left_s)
    else:
        search.milp(budget.left_s)
    return search.result()


class _Search:
    """The incumbent, the bound, and one step per method."""

    def __init__(
        self,
        problem: Problem,
        options: SolveOptions,
        budget: Budget,
        progress: ReportProgress | None,
    ) -> None:
        self._problem, self._options, self._budget = problem, options, budget
        self._report = progress
        self._index = ProblemIndex(problem)
        self._partial = options.partial_inference
        self._judge = Judge(self._index, partial_inference=self._partial)
        self._best: Candidate | None = None
        self._score = 0.0
        self._method = ""
        self._notes: list[str] = []
        self._trace: list[Progress] = []
        self._bound: Bound | None = None
        self._proven = False
        self._promising: list[tuple[float, Candidate, str]] = []
        self._trial: Trial | None = None
        if self._index.left_out:
            names = ", ".join(n.name for n in self._index.left_out[:10])
            more = len(self._index.left_out) - 10
            self._notes.append(
                f"left out, no room for a layer or no way from or to the router: {names}"
                + (f" and {more} more" if more > 0 else "")
            )

    # What every method hands in

    def offer(self, candidate: Candidate, method: str) -> None:
        """Take a candidate if it is better than the incumbent, by the objective asked for."""
        if candidate.tokens_per_s <= MIN_FLOW:
            return
        score = candidate.tokens_per_s
        if self._options.objective == "serving" and self._options.serving is not None:
            score = serving_estimate(
                self._index, candidate, self._options.serving, partial_inference=self._partial
            ).decode_tokens_per_s
            self._promising.append((score, candidate, method))
        if self._best is None or score > self._score * (1 + 1e-9):
            self._best, self._score, self._method = candidate, score, method
            self._tell(method)

    def offer_placement(self, placement: Placement, method: str) -> None:
        known = {node.name: node.max_layers for node in self._problem.nodes}
        for name in placement:
            if len(placement.slices[name]) > known.get(name, 0):
                self._notes.append(f"{method}: {name} is unknown here or holds too much; not used")
                return
        first, end = self._index.arrays(placement)
        self.offer(Candidate(self._judge.tokens_per_s(first, end), first, end), method)

    def _tell(self, phase: str) -> None:
        if self._best is None:
            return
        point = Progress(
            seconds=self._budget.seconds,
            phase=phase,
            incumbent_tokens_per_s=self._best.tokens_per_s,
            upper_bound_tokens_per_s=self._bound.tokens_per_s if self._bound else None,
        )
        self._trace.append(point)
        if self._report is not None:
            self._report(point)

    # Methods

    def heuristic(self, method: str) -> None:
        offer_heuristic(
            self._problem, method, self._options.seed, self._budget, self.offer_placement
        )

    def every_heuristic(self) -> None:
        """Those that fail say why in the notes."""
        failures = offer_every_heuristic(
            self._problem, self._options.seed, self._budget, self.offer_placement
        )
        self._notes.extend(failures)

    def blocks(self, share: float) -> None:
        part = self._budget.part(share * self._budget.left_s)
        decompose(
            self._index,
            self._judge,
            pools_of(self._index),
            part,
            lambda candidate: self.offer(candidate, "blocks"),
        )

    def local(self, limit_s: float, patience_s: float) -> None:
        """Annealing, then programmes on parts, from the incumbent."""
        if self._best is None or len(self._index) < 2:
            return
        improve(
            self._index,
            self._judge,
            self._best,
            self._budget.part(limit_s * 0.6),
            seed=self._options.seed,
            patience_s=patience_s,
            offer=lambda candidate: self.offer(candidate, "local"),
        )
        improve_by_parts(
            self._index,
            self._judge,
            self._best,
            (self._bound or quick_bound(self._index)).tokens_per_s,
            self._budget.part(limit_s * 0.4),
            partial_inference=self._partial,
            seed=self._options.seed,
            offer=lambda candidate: self.offer(candidate, "local"),
        )

    def milp(self, limit_s: float) -> None:
        if len(self._index) == 0:
            raise NoPlacement(why_not(self._index, self._options.seed, self._notes))
        known = self._bound or quick_bound(self._index)
        if known.tokens_per_s <= MIN_FLOW:
            raise NoPlacement(why_not(self._index, self._options.seed, self._notes))
        start = None
        if self._best is not None:
            start = self._index.placement(self._best.first, self._best.end)
        self._bound = known

        def improved(tokens_per_s: float, bound: float) -> None:
            if self._report is not None and tokens_per_s > MIN_FLOW:
                self._report(Progress(self._budget.seconds, "milp", tokens_per_s, bound))

        answer = solve_milp(
            self._index,
            self._options.milp,
            known,
            self._budget.part(limit_s),
            partial_inference=self._partial,
            seed=self._options.seed,
            start=start,
            on_improved=improved,
        )
        self._notes.append(answer.note)
        if answer.placement is not None:
            self.offer_placement(answer.placement, "milp")
        if answer.bound.tokens_per_s < known.tokens_per_s:
            self._bound = answer.bound
        self._proven = self._proven or answer.optimal

    def everything(self) -> None:
        """Cheapest first; each step may prove the incumbent optimal and end the search."""
        self.every_heuristic()
        trials = self._options.objective == "serving" and self._options.simulate is not None
        self.blocks(0.3 if trials else 0.5)
        if self._options.objective == "serving":
            if self._best is None and self._small():
                self.milp(self._budget.left_s * 0.6)
            self._serving()
            return
        self._tighten(0.3)
        if self._done():
            return
        if self._small():
            self.milp(self._budget.left_s * 0.6)
            if self._done():
                return
        if self._index.wide and self._partial:
            self._close(min(20.0, self._budget.left_s * 0.5))
            if self._done():
                return
        self.local(min(40.0, self._budget.left_s), PATIENCE_S)
        self._tighten(1.0)

    def _small(self) -> bool:
        """A cluster for the mixed-integer programme, with an answer as far as can be told."""
        links = int((self._index.link > 0).sum())
        small = len(self._index) <= SMALL_NODES and links <= MAX_LINKS
        return small and quick_bound(self._index).tokens_per_s > MIN_FLOW

    def _serving(self) -> None:
        if self._best is None:
            return
        # A simulation takes ten seconds or more, and only two of them decide anything.
        trials = self._options.simulate is not None
        part = self._budget.part(self._budget.left_s * (0.3 if trials else 0.8))
        for candidate in calmer_plans(self._index, self._judge, self._best, part):
            self.offer(candidate, "blocks")
        if self._options.simulate is not None and self._options.serving is not None:
            self._try_out(self._options.simulate, self._options.serving)

    def _try_out(self, simulate: Simulate, model: ServingModel) -> None:
        """Simulates the most promising candidates, as many as the time allows; the best is it.

        Without one that ended in time the estimate's choice stays.
        """
        tried = 0
        for _, candidate, method in most_promising(self._promising):
            begun_s = self._budget.seconds
            placement = self._index.placement(candidate.first, candidate.end)
            trial = simulate(self._problem, placement, model, self._budget.over)
            if trial is None:
                break
            tried += 1
            if self._trial is None or trial.decode_tokens_per_s > self._trial.decode_tokens_per_s:
                self._best, self._method, self._trial = candidate, method, trial
                served = shown(trial.decode_tokens_per_s)
                self._tell(f"simulated {method}, {served} decode tokens/s")
            if self._budget.left_s < self._budget.seconds - begun_s:
                break
        if tried == 0:
            note = "no candidate's simulation ended in time, so the estimate chose"
        elif tried == 1:
            note = "only the candidate of the best estimate was simulated in time"
        else:
            note = f"{tried} candidates were simulated and the one that served most taken"
        self._notes.append(note)

    def _close(self, limit_s: float) -> None:
        """The exact programme of uniform networks, between the incumbent and the bound."""
        if self._best is None or self._bound is None:
            return
        answer = close_gap(
            self._index,
            self._judge,
            self._best.tokens_per_s,
            self._bound.tokens_per_s,
            self._budget.part(limit_s),
            self._options.seed,
        )
        if answer.best is not None:
            self.offer(answer.best, "intervals")
        if answer.bound_tokens_per_s < self._bound.tokens_per_s:
            self._bound = Bound(
                answer.bound_tokens_per_s,
                "no set of slices covers every layer at a higher flow (proven by HiGHS)",
            )

    def _tighten(self, share: float) -> None:
        """Improve the bound, from what the incumbent reaches."""
        if self._best is None:
            return
        part = self._budget.part(min(20.0, share * self._budget.left_s))
        bound = best_bound(self._index, self._best.tokens_per_s, stop=part.over)
        if self._bound is None or bound.tokens_per_s < self._bound.tokens_per_s:
            self._bound = bound
            self._tell("bound")

    def _done(self) -> bool:
        if self._best is None or self._bound is None:
            return self._budget.over()
        gap = relative_gap(self._best.tokens_per_s, self._bound.tokens_per_s)
        return self._proven or gap <= OPTIMAL_REL_GAP or self._budget.over()

    # The answer

    def result(self) -> PlanResult:
        if self._best is None:
            raise NoPlacement(why_not(self._index, self._options.seed, self._notes))
        if self._bound is None or self._options.method != "auto":
            self._tighten(1.0)
        bound = self._bound or quick_bound(self._index)
        placement = self._index.placement(self._best.first, self._best.end)
        flow = max_flow(self._problem, placement, partial_inference=self._partial)
        report = verify(
            self._problem,
            placement,
            claimed_tokens_per_s=flow.tokens_per_s,
            flow=flow,
            partial_inference=self._partial,
        )
        require_valid(report, f"plan by {self._method}")
        upper = max(bound.tokens_per_s, flow.tokens_per_s)
        gap = relative_gap(flow.tokens_per_s, upper)
        return PlanResult(
            method=self._method,
            placement=placement,
            flow=flow,
            objective_tokens_per_s=flow.tokens_per_s,
            upper_bound_tokens_per_s=upper,
            bound_reason=bound.reason,
            gap=gap,
            seconds=self._budget.seconds,
            proven_optimal=self._proven or gap <= OPTIMAL_REL_GAP,
            notes=tuple(self._notes),
            trace=tuple(self._trace),
            serving=self._serving_of(placement, flow),
            trial=self._trial,
        )

    def _serving_of(self, placement: Placement, flow: FlowSolution) -> ServingEstimate | None:
        if self._options.serving is None:
            return None
        return estimate(self._problem, placement, flow, self._options.serving)
