"""Figures of any form as tables: names and values, lists of rows, groups of the same figures.

Knows no benchmark. What is too deep or too long for a page is left out, and the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_ROWS = 200
MAX_COLUMNS = 24
MAX_DEPTH = 4
Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """`left_out`: rows and columns that did not fit, in words; empty if all did."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: str = ""


def tables_of(figures: Mapping[str, object], title: str = "") -> list[Table]:
    """Single values first, then each group and list in the order of the file."""
    return _tables(figures, title, 0)


def text_of(cell: Cell) -> str:
    """A cell for people: four digits that count; yes and no; nothing for None."""
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}" if abs(cell) >= 10_000 else str(cell)
        case float() if not math.isfinite(cell):
            return str(cell)
        case float() if cell == 0 or 1e-3 <= abs(cell) < 1e4:
            return f"{float(f'{cell:.4g}'):g}"
        case float() if 1e4 <= abs(cell) < 1e12:
            return f"{cell:,.0f}"
        case float():
            return f"{cell:.3g}"
        case _:
            return cell


def _tables(figures: Mapping[str, object], title: str, depth: int) -> list[Table]:
    single = {k: v for k, v in figures.items() if _is_cell(v)}
    tables = [_pairs(title or "figures", single)] if single else []
    for name, value in figures.items():
        at = f"{title}: {name}" if title else str(name)
        if isinstance(value, list) and value:
            tables += _of_list(value, at)
        elif isinstance(value, dict) and value and depth < MAX_DEPTH:
            tables += _of_group(value, at, depth)
    return tables


def _of_list(values: Sequence[object], title: str) -> list[Table]:
    rows = [_flat(value) for value in values if isinstance(value, dict)]
    if rows:
        return [_grid(title, rows)]
    if all(_is_cell(value) for value in values):
        # A long list is a curve: for a plot, or for whoever reads the file.
        shown = ", ".join(text_of(_cell(v)) for v in values[:12])
        more = f" and {len(values) - 12} more" if len(values) > 12 else ""
        return [Table(title, ("values",), ((shown + more,),))]
    lists = [value for value in values if isinstance(value, list)]
    width = max((len(row) for row in lists), default=0)
    named = [{str(i + 1): v for i, v in enumerate(row) if _is_cell(v)} for row in lists]
    return [_grid(title, named)] if width and any(named) else []


def _of_group(group: Mapping[str, object], title: str, depth: int) -> list[Table]:
    members = [value for value in group.values() if isinstance(value, dict)]
    if len(members) == len(group) and all(any(_is_cell(v) for v in m.values()) for m in members):
        rows = [{"name": name, **_flat(value)} for name, value in group.items()]  # type: ignore[arg-type]
        if all(not isinstance(v, list | dict) for m in members for v in m.values()):
            return [_grid(title, rows)]
    return _tables(group, title, depth + 1)


def _pairs(title: str, values: Mapping[str, object]) -> Table:
    rows = tuple((str(name), _cell(value)) for name, value in values.items())
    return Table(title, ("figure", "value"), rows[:MAX_ROWS], _left_out(len(rows), 0))


def _grid(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    # What names a row comes first; within a file, names are in the order of the alphabet.
    names.sort(key=lambda name: not all(isinstance(row.get(name), str) for row in rows))
    columns = tuple(names[:MAX_COLUMNS])
    cells = tuple(tuple(_cell(row.get(c)) for c in columns) for row in rows[:MAX_ROWS])
    return Table(title, columns, cells, _left_out(len(rows), len(names)))


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """A row's single values, and those of groups within it as `group.name`."""
    flat: dict[str, object] = {}
    for name, value in row.items():
        if _is_cell(value):
            flat[str(name)] = value
        elif isinstance(value, dict):
            flat |= {f"{name}.{k}": v for k, v in value.items() if _is_cell(v)}
    return flat


def _left_out(rows: int, columns: int) -> str:
    words = []
    if rows > MAX_ROWS:
        words.append(f"{rows - MAX_ROWS} more rows")
    if columns > MAX_COLUMNS:
        words.append(f"{columns - MAX_COLUMNS} more columns")
    return f"{' and '.join(words)} are in the file" if words else ""


def _is_cell(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _cell(value: object) -> Cell:
    assert value is None or isinstance(value, str | int | float | bool)
    return value
