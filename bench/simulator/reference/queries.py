"""Sequences of queries: prompt length, output length, and for online runs the time of arrival.

Read from the published traces (the exact sequences its feeders draw with seed 0), or given.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.simulator.reference.reading import ReferenceDataError


@dataclass(frozen=True, slots=True)
class Query:
    """`arrival_s` is after the start of serving; offline feeders ignore it."""

    prompt_tokens: int
    output_tokens: int
    arrival_s: float = 0.0


def read_offline(data: Path) -> Sequence[Query]:
    """The lengths that the offline feeder draws with seed 0, in its order."""
    path = data / "traces" / "trace_offline_seed0_lengths.csv"
    return [
        Query(_whole(row, "input_tokens", path), _whole(row, "output_tokens", path))
        for row in _rows(path)
    ]


def read_online(data: Path, rate: int) -> Sequence[Query]:
    """The arrivals that the online feeder draws with seed 0 at `rate` (its token throughput)."""
    path = data / "traces" / f"trace_online_seed0_{rate}.csv"
    return [
        Query(
            _whole(row, "input_tokens", path),
            _whole(row, "output_tokens", path),
            _seconds(row, "arrival_s_after_start", path),
        )
        for row in _rows(path)
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ReferenceDataError(f"{path}: cannot be read as CSV: {error}", param="file") from error


def _whole(row: dict[str, str], column: str, path: Path) -> int:
    try:
        value = int(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise ReferenceDataError(f"{path.name}: bad {column} in {row!r}", param=column) from error
    if value < 1:
        raise ReferenceDataError(f"{path.name}: {column}={value} must be positive", param=column)
    return value


def _seconds(row: dict[str, str], column: str, path: Path) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise ReferenceDataError(f"{path.name}: bad {column} in {row!r}", param=column) from error
    if not 0 <= value < float("inf"):
        raise ReferenceDataError(f"{path.name}: {column}={value} must be finite", param=column)
    return value
