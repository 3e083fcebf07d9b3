"""Measured step times in CSV files: the format of helix_mq.step_tables, as StepTimes."""

from __future__ import annotations

from pathlib import Path

from helix_mq import step_tables
from helix_mq.step_tables import MAX_POINTS, StepTables, TableError
from solver.objective import StepTimes

__all__ = [
    "MAX_POINTS",
    "TableError",
    "parse_tables",
    "read_tables",
    "show_tables",
    "write_tables",
]


def read_tables(path: Path) -> StepTimes:
    """The step times in a CSV file. TableError names file, line and column."""
    return _times(step_tables.read_tables(path))


def parse_tables(text: str, source: str) -> StepTimes:
    """As `read_tables`, from text; `source` names it in errors."""
    return _times(step_tables.parse_tables(text, source))


def show_tables(times: StepTimes) -> str:
    """The text that `parse_tables` reads back to the same step times."""
    return step_tables.show_tables(_tables(times))


def write_tables(path: Path, times: StepTimes) -> None:
    """Writes a CSV file. TableError if it cannot be written, or `read_tables` would refuse it.

    StepTimes may hold batches of 0 and times of 0, files may not: leave such points out first.
    """
    step_tables.write_tables(path, _tables(times))


def _times(tables: StepTables) -> StepTimes:
    return StepTimes(prefill=tables.prefill, decode=tables.decode)


def _tables(times: StepTimes) -> StepTables:
    return StepTables(prefill=times.prefill, decode=times.decode)
