"""Measured step times as CSV: `phase,batch,seconds_per_layer`, one point a line.

`prefill` counts tokens in the batch, `decode` requests; seconds are of one layer. Nodes write such
files, the planner reads them. Read strictly: errors name the line and the column. What is written
reads back to the same tables; what would not is refused before a file is touched.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from helix_mq.errors import ConfigError

HEADER: Final = ("phase", "batch", "seconds_per_layer")
PHASES: Final = ("prefill", "decode")
MAX_FILE_BYTES: Final = 1 << 20
MAX_POINTS: Final = 4096
"""Per phase; a profile has a few dozen."""
MAX_BATCH: Final = 1e9
MIN_SECONDS: Final = 1e-12
MAX_SECONDS: Final = 1e9
"""Far outside of what can be measured, but such that rates made of these times stay finite."""


class TableError(ConfigError):
    """A table of step times is not what it should be; `param` is the column."""

    code = "invalid_table"


Points = tuple[tuple[float, float], ...]
"""(tokens or requests in the batch, seconds per layer), batches rising."""


@dataclass(frozen=True, slots=True)
class StepTables:
    """The two columns of points as they are in a file; reading and writing check them."""

    prefill: Points
    decode: Points


def read_tables(path: Path) -> StepTables:
    """The points in a CSV file. TableError names file, line and column."""
    try:
        # A pipe or a device has no size to check and may never end.
        if not path.is_file():
            raise TableError(f"{path}: cannot be read: no regular file", param="tables")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise TableError(f"{path}: cannot be read: {e.strerror}", param="tables") from None
    if len(content) > MAX_FILE_BYTES:
        raise TableError(f"{path}: larger than {MAX_FILE_BYTES} bytes", param="tables")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a byte order mark before the header
    except UnicodeDecodeError:
        raise TableError(f"{path}: is no UTF-8 text", param="tables") from None
    return parse_tables(text, str(path))


def parse_tables(text: str, source: str) -> StepTables:
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
    return StepTables(prefill=prefill, decode=decode)


def show_tables(times: StepTables) -> str:
    """The text that `parse_tables` reads back to the same points."""
    lines = [",".join(HEADER)]
    for phase, points in (("prefill", times.prefill), ("decode", times.decode)):
        lines += [f"{phase},{float(batch)!r},{float(seconds)!r}" for batch, seconds in points]
    return "\n".join(lines) + "\n"


def write_tables(path: Path, times: StepTables) -> None:
    """Writes a CSV file. TableError if it cannot be written, or `read_tables` would refuse it.

    Files hold no batches of 0 and no times of 0: leave such points out first.
    """
    text = show_tables(times)
    parse_tables(text, str(path))
    try:
        path.write_text(text, "utf-8")
    except OSError as e:
        raise TableError(f"{path}: cannot be written: {e.strerror}", param="tables") from None
    except ValueError as e:
        raise TableError(f"{str(path)!r}: cannot be written: {e}", param="tables") from None


def _add(points: dict[str, dict[float, float]], row: list[str], where: str) -> None:
    if len(row) != len(HEADER):
        raise TableError(f"{where}: {len(row)} columns, expected {len(HEADER)}", param="tables")
    phase = row[0].strip()
    if phase not in points:
        raise TableError(f"{where}, phase: {phase!r:.40} is not prefill or decode", param="phase")
    batch = _number(row, 1, where, 0.0, MAX_BATCH)
    seconds = _number(row, 2, where, MIN_SECONDS, MAX_SECONDS)
    if batch in points[phase]:
        raise TableError(f"{where}, batch: {batch:g} is given twice for {phase}", param="batch")
    if len(points[phase]) >= MAX_POINTS:
        raise TableError(f"{where}: more than {MAX_POINTS} points of {phase}", param="tables")
    points[phase][batch] = seconds


def _number(row: list[str], column: int, where: str, least: float, most: float) -> float:
    name, text = HEADER[column], row[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Python reads "1_000" and full-width digits, which other readers of the same file do not.
    if not (value > 0 and text.isascii() and "_" not in text):
        raise TableError(f"{where}, {name}: {text!r:.40} is not a positive number", param=name)
    if not least <= value <= most:
        raise TableError(
            f"{where}, {name}: {text!r:.40} is not between {least:g} and {most:g}", param=name
        )
    return value
