"""Runs placements × schedulers × workloads side by side, each case in a process of its own.

How a case is run is the caller's: `run(case) -> Report`, something that can be pickled. A case that
fails is an outcome with its error and does not stop the others. Outcomes are in the order of the
cases whatever finishes first, so that the same cases give the same table.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from bench.simulator.stats import Report
from helix_mq.errors import ConfigError, HelixError

_T = TypeVar("_T")
MAX_CASES = 10_000


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One run by its names; what they mean is known to the `run` that gets it."""

    placement: str
    scheduler: str
    workload: str
    seed: int = 0

    def label(self, among: Sequence[Case]) -> str:
        """What tells it from the others: the parts that are not the same in all of them."""
        names = ("placement", "scheduler", "workload", "seed")
        differ = [n for n in names if len({getattr(case, n) for case in among}) > 1]
        parts = {n: str(getattr(self, n)) for n in differ or ["placement"]}
        if "seed" in parts:
            parts["seed"] = f"seed {self.seed}"
        return " · ".join(parts.values())


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's report, or the error that ended it. `wall_s` of its run in its process."""

    case: Case
    report: Report | None
    error: str
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the report without its timeline."""
        report = None if self.report is None else self.report.as_dict(timeline=False)
        return {**asdict(self.case), "error": self.error, "wall_s": self.wall_s, "report": report}


@dataclass(frozen=True, slots=True)
class Comparison:
    outcomes: tuple[Outcome, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"cases": [outcome.as_dict() for outcome in self.outcomes]}

    def write_json(self, path: Path) -> None:
        """ConfigError if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.as_dict(), indent=1, sort_keys=True) + "\n", "utf-8")
        except OSError as e:
            raise ConfigError(
                f"json={path}: cannot be written: {e.strerror or e}", param="json"
            ) from None


RunCase = Callable[[Case], Report]
Progress = Callable[[Outcome, int, int], None]
"""Called with an outcome, how many there are by now, and how many there will be."""


def cases(
    placements: Iterable[str],
    schedulers: Iterable[str],
    workloads: Iterable[str],
    seeds: Iterable[int] = (0,),
) -> list[Case]:
    """Every combination, the workload slowest. ConfigError if there is none, or far too many."""
    combined = product(
        _once("workload", workloads),
        _once("placement", placements),
        _once("scheduler", schedulers),
        _once("seed", seeds),
    )
    found = [Case(p, s, w, seed) for w, p, s, seed in combined]
    if len(found) > MAX_CASES:
        raise ConfigError(f"compare: {len(found)} cases; at most {MAX_CASES}", param="cases")
    return found


def compare(
    todo: Sequence[Case],
    run: RunCase,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Runs the cases, `processes` at a time (by default one per core; 1 stays in this process).

    ConfigError if `processes` is less than 1 or `run` cannot be sent to another process.
    """
    most = processes if processes is not None else os.cpu_count() or 1
    if most < 1:
        raise ConfigError(f"processes={most} must be at least 1", param="processes")
    if len(set(todo)) < len(todo):
        raise ConfigError("compare: a case is given twice", param="cases")
    workers = min(most, len(todo))
    outcomes: dict[Case, Outcome] = {}
    results = _here(todo, run) if workers <= 1 else _apart(todo, run, workers)
    for outcome in results:
        outcomes[outcome.case] = outcome
        if progress is not None:
            progress(outcome, len(outcomes), len(todo))
    return Comparison(tuple(outcomes[case] for case in todo))


def _once(name: str, values: Iterable[_T]) -> list[_T]:
    found = list(values)
    if not found:
        raise ConfigError(f"compare: no {name} is given", param=name)
    if len(set(found)) < len(found):
        raise ConfigError(f"compare: a {name} is given twice", param=name)
    return found


def _here(todo: Sequence[Case], run: RunCase) -> Iterator[Outcome]:
    for case in todo:
        yield _run(run, case)


def _apart(todo: Sequence[Case], run: RunCase, workers: int) -> Iterator[Outcome]:
    try:
        pickle.dumps(run)
    except Exception as e:
        raise ConfigError(
            f"compare: {run!r} cannot be sent to another process: {e}", param="run"
        ) from None
    suspects: list[Case] = []
    with _pool(workers) as pool:
        futures = {pool.submit(_run, run, case): case for case in todo}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                suspects.append(futures[future])
    # One process that is killed takes its pool along: alone, each case answers for itself.
    for case in sorted(suspects):
        with _pool(1) as pool:
            try:
                yield pool.submit(_run, run, case).result()
            except BrokenProcessPool:
                error = "its process was ended from outside (out of memory?)"
                yield Outcome(case, None, error, 0.0)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned, not forked: a fork copies locks that other threads of this process hold."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quiet() -> None:
    """Ctrl-C ends a worker at once, without a traceback: the parent says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(run: RunCase, case: Case) -> Outcome:
    start_s = time.perf_counter()
    report, error = None, ""
    try:
        report = run(case)
    except HelixError as e:
        error = str(e)
    except Exception as e:
        # A fault of ours in one case must not cost the other cases' hours.
        error = f"{type(e).__name__}: {e}"
    return Outcome(case, report, error, time.perf_counter() - start_s)
