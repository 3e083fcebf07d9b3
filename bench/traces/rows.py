"""Streams the rows of a trace's CSV file; what is wrong with one is said with its line and column.

Files are untrusted and may be larger than memory: lines are bounded, one is held at a time. Plain
or gzip (`.gz`). A byte order mark, Windows line ends and quotes around a cell are taken.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TextIO, cast

from bench.traces.types import MAX_TOKENS
from helix_mq.errors import ConfigError

MAX_LINE = 4096
"""Characters. The longest row of a known trace has fewer than 100."""
_SHOWN = 40


class TraceError(ConfigError):
    """A trace file is not what it should be. `line` and `column` count from 1; 0: the whole."""

    code: ClassVar[str] = "invalid_trace"

    def __init__(self, path: Path, line: int, column: int, problem: str) -> None:
        where = f", line {line}" if line else ""
        where += f", column {column}" if column else ""
        super().__init__(f"{path}{where}: {problem}", param="workload")
        self.line = line
        self.column = column


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as text. TraceError if it cannot be opened, or breaks off while it is read."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            yield cast(TextIO, file)
    except (OSError, EOFError, zlib.error) as e:
        said = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise TraceError(path, 0, 0, f"cannot be read: {said}") from None


class Row:
    """One line's cells of the columns asked for, in that order, and their errors' whereabouts."""

    __slots__ = ("_columns", "cells", "line")

    def __init__(self, columns: Columns, line: int, cells: list[str]) -> None:
        self._columns = columns
        self.line = line
        self.cells = cells

    def tokens(self, index: int) -> int:
        """A count of 0..MAX_TOKENS in digits. TraceError if the cell is anything else."""
        cell = self.cells[index]
        # int() would also take underscores, signs and the digits of other scripts.
        if cell.isascii() and cell.isdigit() and len(cell) <= 9:
            value = int(cell)
            if value <= MAX_TOKENS:
                return value
        raise self.error(index, f"{shown(cell)} is not a whole number in 0..{MAX_TOKENS}")

    def seconds(self, index: int) -> float:
        """A finite time of at least 0 s. TraceError if the cell is anything else."""
        cell = self.cells[index]
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise self.error(index, f"{shown(cell)} is not a finite time of at least 0 s")
        return value

    def error(self, index: int, problem: str) -> TraceError:
        """What is wrong with a cell, for the caller to raise."""
        columns = self._columns
        text = f"{columns.names[index]} {problem}"
        return TraceError(columns.path, self.line, columns.places[index] + 1, text)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the columns asked for stand in a file."""

    path: Path
    names: tuple[str, ...]
    places: tuple[int, ...]


def read_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yields each line's cells of the columns `names`; blank lines are passed over.

    The first line names the columns, in any order, with others between them.
    """
    with open_text(path) as file:
        header = _cells(path, 1, file.readline(MAX_LINE + 1))
        places = tuple(_place(path, header, name) for name in names)
        columns = Columns(path, tuple(names), places)
        number = 1
        while text := file.readline(MAX_LINE + 1):
            number += 1
            cells = _cells(path, number, text)
            if cells == [""]:
                continue
            if len(cells) != len(header):
                column = min(len(cells), len(header)) + 1
                raise TraceError(
                    path, number, column, f"{len(cells)} cells where {len(header)} are named"
                )
            yield Row(columns, number, [cells[place] for place in places])


def header_of(path: Path) -> list[str]:
    """The names in the first line."""
    with open_text(path) as file:
        return _cells(path, 1, file.readline(MAX_LINE + 1))


def shown(cell: str) -> str:
    """A cell as an error shows it: quoted, and not longer than a person wants to read."""
    return repr(cell if len(cell) <= _SHOWN else cell[:_SHOWN] + "…")


def _cells(path: Path, number: int, text: str) -> list[str]:
    if len(text) > MAX_LINE:
        raise TraceError(path, number, 0, f"longer than {MAX_LINE} characters")
    cells = text.strip().split(",")
    return [cell.strip().strip('"') for cell in cells]


def _place(path: Path, header: Sequence[str], name: str) -> int:
    if name not in header:
        raise TraceError(
            path, 1, 0, f"there is no column {name}; the first line reads {shown(','.join(header))}"
        )
    return header.index(name)
