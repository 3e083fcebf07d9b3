"""Placement by mixed-integer programming: build, start, solve, keep the files, judge the answer.

The programme is `solver.milp_model`'s, the solver run `solver.milp_highs`'s. What comes back is a
placement and a bound; its flow is recomputed on all links by the caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.layers import Placement
from solver.bounds import Bound
from solver.milp_highs import MilpRun, TracePoint, run_highs
from solver.milp_model import HelixModel
from solver.search_index import ProblemIndex
from solver.search_types import Budget, MilpOptions, NoPlacement

MAX_LINKS = 60_000
"""More links than that take gigabytes to build and days to solve; prune, or use another method."""


@dataclass(frozen=True, slots=True)
class MilpAnswer:
    """`placement` is None where none was found in time. The bound holds for all links only where
    none was pruned."""

    placement: Placement | None
    bound: Bound
    optimal: bool
    note: str


def solve_milp(
    index: ProblemIndex,
    options: MilpOptions,
    known: Bound,
    budget: Budget,
    *,
    partial_inference: bool = True,
    seed: int = 0,
    start: Placement | None = None,
    on_improved: Callable[[float, float], None] | None = None,
) -> MilpAnswer:
    """The best placement of Helix's programme within `budget`.

    `known` is a bound already proven: it caps the objective, which the plain programme's own
    relaxation leaves an order of magnitude too high. `on_improved` gets (tokens/s, upper bound).
    NoPlacement if the programme is infeasible or too large; ConfigError if the files cannot be
    written.
    """
    links = int((index.link > 0).sum())
    if options.keep_links is None and links > MAX_LINKS:
        raise NoPlacement(
            f"milp: {links} links are too many for the programme (limit {MAX_LINKS}); set "
            "keep_links, or take method auto"
        )
    model = HelixModel(
        index, options, partial_inference=partial_inference, flow_bound=known.tokens_per_s
    )
    if options.solver == "scip":
        return _with_scip(index, model, options, budget, known)
    linear, chain, inverse = model.lower()
    directory = _directory(options.output_dir)

    def improved(point: TracePoint) -> None:
        if on_improved is not None:
            on_improved(-point.objective, min(-point.bound, known.tokens_per_s))

    run = run_highs(
        linear,
        budget,
        start=model.start(start) if start is not None else None,
        rel_gap=options.rel_gap,
        seed=seed,
        lp_path=directory / "helix.lp" if directory is not None else None,
        on_improved=improved,
    )
    if directory is not None:
        _keep(directory, run, linear.names)
    if run.infeasible:
        raise NoPlacement("milp: the programme is infeasible: no way to place the model exists")
    bound = known
    if options.keep_links is None and math.isfinite(run.bound):
        proven = min(-run.bound, known.tokens_per_s)
        bound = Bound(proven, "the mixed-integer programme's own bound")
    if run.solution is None:
        return MilpAnswer(None, bound, False, f"milp: nothing found ({run.status})")
    first, end = model.unpack(run, chain, inverse)
    pruned = " over the links kept" if options.keep_links is not None else ""
    return MilpAnswer(
        index.placement(first, end),
        bound,
        run.optimal and options.keep_links is None,
        f"milp: {run.status}, {len(linear.cost)} variables, {linear.matrix.shape[0]} rows{pruned}",
    )


def _with_scip(
    index: ProblemIndex, model: HelixModel, options: MilpOptions, budget: Budget, known: Bound
) -> MilpAnswer:
    found, optimal = model.solve_with_scip(budget.left_s, options.rel_gap)
    if not found:
        return MilpAnswer(None, known, False, "milp: SCIP found nothing in time")
    placement = index.placement(*model.arrays())
    return MilpAnswer(placement, known, optimal and options.keep_links is None, "milp: SCIP")


def _directory(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={path}: {error}", param="output_dir") from error
    return path


def _keep(directory: Path, run: MilpRun, names: Sequence[str]) -> None:
    """The raw solution and the trace (of the maximisation), beside the .lp."""
    values = {} if run.solution is None else dict(zip(names, map(float, run.solution), strict=True))
    solution = {
        "status": run.status,
        "objective_tokens_per_s": -run.objective if run.solution is not None else None,
        "bound_tokens_per_s": -run.bound if math.isfinite(run.bound) else None,
        "variables": {name: value for name, value in values.items() if abs(value) > 1e-9},
    }
    rows = [asdict(point) for point in run.trace]
    lines = ["seconds,incumbent_tokens_per_s,bound_tokens_per_s"] + [
        f"{row['seconds']:.3f},{-row['objective']:.6f},{-row['bound']:.6f}" for row in rows
    ]
    try:
        (directory / "solution.json").write_text(json.dumps(solution, indent=1), "utf-8")
        (directory / "trace.csv").write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"output_dir={directory}: {error}", param="output_dir") from error
