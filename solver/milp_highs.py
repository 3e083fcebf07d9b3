"""Runs a mixed-integer programme on HiGHS: start, progress, interruption, bound, files.

Only this module imports highspy. HiGHS runs in the caller's thread on one core; its callbacks ask
the budget, so that a time limit, Ctrl-C or SIGTERM end the run with the best solution so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from helix_mq.errors import LocalError
from solver.search_types import Budget, SolverMissing

FloatArray = NDArray[np.float64]


class MilpFailed(LocalError):
    """HiGHS refused the model or stopped with an error of its own."""

    code = "milp_failed"


@dataclass(frozen=True, slots=True)
class LinearModel:
    """minimise cost x, row_lower <= matrix x <= row_upper, col_lower <= x <= col_upper."""

    cost: FloatArray
    matrix: csc_array
    row_lower: FloatArray
    row_upper: FloatArray
    col_lower: FloatArray
    col_upper: FloatArray
    integer: NDArray[np.bool_]
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class TracePoint:
    """Best objective and bound (of the minimisation) after so many seconds."""

    seconds: float
    objective: float
    bound: float


@dataclass(frozen=True, slots=True)
class MilpRun:
    """`solution` is None where none was found. `optimal`: proven to the gap asked for."""

    status: str
    solution: FloatArray | None
    objective: float
    bound: float
    optimal: bool
    infeasible: bool
    trace: tuple[TracePoint, ...]
    results: dict[str, Any]
    """HiGHS's own answer, in the form that CVXPY unpacks."""


def run_highs(
    model: LinearModel,
    budget: Budget,
    *,
    start: FloatArray | None = None,
    rel_gap: float = 1e-6,
    seed: int = 0,
    lp_path: Path | None = None,
    on_improved: Callable[[TracePoint], None] | None = None,
) -> MilpRun:
    """Solve `model` until optimal, or until `budget` is over. MilpFailed if HiGHS cannot."""
    highspy = _highspy()
    highs = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("random_seed", seed),
        ("mip_rel_gap", rel_gap),
        ("mip_abs_gap", 1e-9),
        ("time_limit", max(0.01, budget.left_s)),
    ):
        _check(highspy, highs.setOptionValue(option, value), f"option {option}={value}")
    _check(highspy, highs.passModel(_lower(highspy, model)), "the model")
    if lp_path is not None:
        _check(highspy, highs.writeModel(str(lp_path)), f"writing {lp_path}")
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = [float(x) for x in start]
        solution.value_valid = True
        highs.setSolution(solution)
    trace: list[TracePoint] = []
    _watch(highs, budget, trace, on_improved)
    highs.run()
    info, status = highs.getInfo(), highs.getModelStatus()
    if status in (highspy.HighsModelStatus.kModelError, highspy.HighsModelStatus.kSolveError):
        raise MilpFailed(f"HiGHS stopped: {highs.modelStatusToString(status)}")
    found = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    values = np.array(highs.getSolution().col_value) if found else None
    infeasible = status == highspy.HighsModelStatus.kInfeasible
    objective = float(info.objective_function_value) if found else math.inf
    bound = math.inf if infeasible else float(info.mip_dual_bound)
    trace.append(TracePoint(budget.seconds, objective, bound))
    return MilpRun(
        status=str(highs.modelStatusToString(status)),
        solution=values,
        objective=objective,
        bound=bound,
        optimal=status == highspy.HighsModelStatus.kOptimal,
        infeasible=infeasible,
        trace=tuple(trace),
        results={
            "solution": highs.getSolution(),
            "basis": highs.getBasis(),
            "info": info,
            "model_status": "kOptimal" if found else status.name,
            "run_time": highs.getRunTime(),
        },
    )


def _highspy() -> Any:
    try:
        import highspy
    except ImportError as error:
        raise SolverMissing(
            "HiGHS is not installed: install highspy>=1.14,<1.15, or take another method than milp",
            param="solver",
        ) from error
    return highspy


def _check(highspy: Any, status: Any, what: str) -> None:
    if status == highspy.HighsStatus.kError:
        raise MilpFailed(f"HiGHS refused {what}")


def _lower(highspy: Any, model: LinearModel) -> Any:
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = model.matrix.shape
    lp.col_cost_ = model.cost
    lp.row_lower_ = np.where(np.isneginf(model.row_lower), -highspy.kHighsInf, model.row_lower)
    lp.row_upper_ = np.where(np.isposinf(model.row_upper), highspy.kHighsInf, model.row_upper)
    lp.col_lower_ = np.where(np.isneginf(model.col_lower), -highspy.kHighsInf, model.col_lower)
    lp.col_upper_ = np.where(np.isposinf(model.col_upper), highspy.kHighsInf, model.col_upper)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = model.matrix.indptr
    lp.a_matrix_.index_ = model.matrix.indices
    lp.a_matrix_.value_ = model.matrix.data
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[int(x)] for x in model.integer]
    lp.col_names_ = list(model.names)
    return lp


def _watch(
    highs: Any,
    budget: Budget,
    trace: list[TracePoint],
    on_improved: Callable[[TracePoint], None] | None,
) -> None:
    """Subscribe to HiGHS: every improvement goes to the trace, every check asks the budget."""

    def improved(event: Any) -> None:
        out = event.data_out
        point = TracePoint(
            budget.seconds, float(out.objective_function_value), float(out.mip_dual_bound)
        )
        trace.append(point)
        if on_improved is not None:
            on_improved(point)

    def asked(event: Any) -> None:
        if budget.over():
            event.data_in.user_interrupt = True

    highs.cbMipImprovingSolution.subscribe(improved)
    highs.cbMipInterrupt.subscribe(asked)
    highs.cbSimplexInterrupt.subscribe(asked)
