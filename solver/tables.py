"""Measured step times as CSV: `phase,batch,seconds_per_layer`, one point a line.

`prefill` counts tokens in the batch, `decode` requests; seconds are of one layer. Read strictly:
errors name the line and the column. What is written reads back to the same StepTimes.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Final

from helix_mq.errors import ConfigError
from solver.objective import StepTimes

HEADER: Final = ("phase", "batch", "seconds_per_layer")
PHASES: Final = ("prefill", "decode")
MAX_FILE_BYTES: Final = 1 << 20
MAX_POINTS: Final = 4096
"""Per phase; a profile has a few dozen."""


class TableError(ConfigError):
    """A table of step times is not what it should be; `param` is the column."""

    code = "invalid_table"


def read_tables(path: Path) -> StepTimes:
    """The step times in a CSV file. TableError names file, line and column."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TableError(f"{path}: larger than {MAX_FILE_BYTES} bytes", param="tables")
        text = path.read_text("utf-8")
    except OSError as e:
        raise TableError(f"{path}: cannot be read: {e.strerror}", param="tables") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: is no UTF-8 text", param="tables") from None
    return parse_tables(text, str(path))


def parse_tables(text: str, source: str) -> StepTimes:
    """As `read_tables`, from text; `source` names it in errors."""
    points: dict[str, dict[float, float]] = {phase: {} for phase in PHASES}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = tuple(name.strip() for name in next(reader, []))
        if header != HEADER:
            raise TableError(
                f"{source}, line 1: expected the header {','.join(HEADER)}", param="tables"
            )
        for row in reader:
            if row:
                _add(points, row, f"{source}, line {reader.line_num}")
    except csv.Error as e:
        raise TableError(f"{source}, line {reader.line_num}: {e}", param="tables") from None
    for phase in PHASES:
        if len(points[phase]) < 2:
            raise TableError(
                f"{source}: {len(points[phase])} points of {phase}; give two or more, to draw a "
                "line through",
                param="phase",
            )
    prefill, decode = (tuple(sorted(points[phase].items())) for phase in PHASES)
    return StepTimes(prefill=prefill, decode=decode)


def show_tables(times: StepTimes) -> str:
    """The text that `parse_tables` reads back to the same step times."""
    lines = [",".join(HEADER)]
    for phase, points in (("prefill", times.prefill), ("decode", times.decode)):
        lines += [f"{phase},{batch!r},{seconds!r}" for batch, seconds in points]
    return "\n".join(lines) + "\n"


def write_tables(path: Path, times: StepTimes) -> None:
    """Writes a CSV file. TableError if it cannot be written."""
    try:
        path.write_text(show_tables(times), "utf-8")
    except OSError as e:
        raise TableError(f"{path}: cannot be written: {e.strerror}", param="tables") from None


def _add(points: dict[str, dict[float, float]], row: list[str], where: str) -> None:
    if len(row) != len(HEADER):
        raise TableError(f"{where}: {len(row)} columns, expected {len(HEADER)}", param="tables")
    phase = row[0].strip()
    if phase not in points:
        raise TableError(f"{where}, phase: {phase!r:.40} is not prefill or decode", param="phase")
    batch, seconds = _number(row, 1, where), _number(row, 2, where)
    if batch in points[phase]:
        raise TableError(f"{where}, batch: {batch:g} is given twice for {phase}", param="batch")
    if len(points[phase]) >= MAX_POINTS:
        raise TableError(f"{where}: more than {MAX_POINTS} points of {phase}", param="tables")
    points[phase][batch] = seconds


def _number(row: list[str], column: int, where: str) -> float:
    name, text = HEADER[column], row[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Python reads "1_000" and full-width digits, which other readers of the same file do not.
    if not (math.isfinite(value) and value > 0 and text.isascii() and "_" not in text):
        raise TableError(f"{where}, {name}: {text!r:.40} is not a positive number", param=name)
    return value
