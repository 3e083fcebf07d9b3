"""Typed reading of the published JSON files: each access checks the kind and names the field.

Bounded in size; no value is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import KeysView
from pathlib import Path

from helix_mq.errors import ConfigError

MAX_FILE_BYTES = 64 * 2**20


class ReferenceDataError(ConfigError):
    """A file of published data is missing or not what it should be; `param` is the field."""

    code = "invalid_reference_data"


class Table:
    """A JSON object with the path that leads to it, for errors that say where."""

    __slots__ = ("_data", "_where")

    def __init__(self, data: dict[str, object], where: str) -> None:
        self._data = data
        self._where = where

    def names(self) -> KeysView[str]:
        return self._data.keys()

    def raw(self, field: str) -> object:
        return self._data.get(field)

    def table(self, field: str) -> Table:
        value = self._data.get(field)
        if not isinstance(value, dict):
            raise self._wrong(field, "an object")
        return Table(value, f"{self._where}.{field}")

    def tables(self, field: str) -> list[Table]:
        value = self._data.get(field)
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            raise self._wrong(field, "a list of objects")
        return [Table(x, f"{self._where}.{field}[{i}]") for i, x in enumerate(value)]

    def text(self, field: str) -> str:
        value = self._data.get(field)
        if not isinstance(value, str) or not value:
            raise self._wrong(field, "a text")
        return value

    def number(self, field: str) -> float:
        value = self._data.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(field, "a number")
        return float(value)

    def whole(self, field: str) -> int:
        value = self._data.get(field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(field, "a whole number")
        return value

    def wholes(self, field: str, count: int) -> list[int]:
        value = self._data.get(field)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(field, f"{count} whole numbers")
        if not all(isinstance(x, int) and not isinstance(x, bool) for x in value):
            raise self._wrong(field, f"{count} whole numbers")
        return list(value)

    def points(self, field: str) -> tuple[tuple[int, float], ...]:
        """A table of size -> seconds, sorted by size; starts at 0 and reaches 2 at least."""
        entries = self.table(field)
        try:
            points = sorted((int(key), entries.number(key)) for key in entries.names())
        except ValueError as error:
            raise self._wrong(field, "batch sizes as whole numbers") from error
        if len(points) < 2 or points[0][0] != 0 or points[-1][0] < 2:
            raise self._wrong(field, "points from 0 to 2 or more")
        return tuple(points)

    def _wrong(self, field: str, expected: str) -> ReferenceDataError:
        got = repr(self._data.get(field))[:60]
        return ReferenceDataError(
            f"{self._where}.{field}: expected {expected}, got {got}", param=field
        )


def read_table(path: Path) -> Table:
    """The JSON object in `path`. ReferenceDataError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ReferenceDataError(f"{path}: larger than {MAX_FILE_BYTES} bytes", param="file")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReferenceDataError(
            f"{path}: cannot be read as JSON: {error}", param="file"
        ) from error
    if not isinstance(value, dict):
        raise ReferenceDataError(f"{path}: expected an object at the top", param="file")
    return Table(value, path.name)
