"""Typed, bounded access to the fields of an untrusted JSON object.

Every refusal is a ModelFormatError that names the source, the field, the value found and what would
be right. Nothing here knows what the fields mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helix_mq.errors import ModelFormatError

MAX_JSON_BYTES = 1 << 20
"""A config.json is about 1 KiB; the largest published shard index is under 1 MiB."""


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in `path`; ModelFormatError if absent, too large or not an object."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise ModelFormatError(f"{path} is larger than {max_bytes} bytes; that is no {path.name}")
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in `data`; `source` names it in errors."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{source} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{source} must hold a JSON object, not {type(value).__name__}")
    return value


class Fields:
    """Reads typed fields of one JSON object; a field that is absent or null takes the default.

    Without a default the field is required. `bool` is never taken for a number.
    """

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self.source = source

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> object:
        return self._values.get(name)

    def refuse(self, name: str, advice: str) -> ModelFormatError:
        """The error to raise about a field: its name, its value and what to do."""
        shown = repr(self._values.get(name))
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return ModelFormatError(f"{self.source}: {name}={shown}: {advice}", param=name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name, f"an integer from {low} to {high}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"must be an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name, f"a number from {low:g} to {high:g}")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, f"must be a number from {low:g} to {high:g}")
        # The comparison comes before float(): an integer of 400 digits would overflow there.
        if not low <= value <= high or not math.isfinite(value):
            raise self.refuse(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name, "a text")
            return default
        if not isinstance(value, str):
            raise self.refuse(name, "must be a text")
        return value

    def texts(self, name: str, max_items: int) -> tuple[str, ...]:
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > max_items:
            raise self.refuse(name, f"must be a list of at most {max_items} texts")
        if not all(isinstance(item, str) for item in value):
            raise self.refuse(name, "must hold texts only")
        return tuple(value)

    def token_ids(self, name: str, vocab_size: int, max_items: int = 64) -> tuple[int, ...]:
        """One id or a list of ids below `vocab_size`; empty when absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        advice = f"must be a token id below {vocab_size}, or a list of at most {max_items}"
        if len(items) > max_items:
            raise self.refuse(name, advice)
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
                raise self.refuse(name, advice)
        return tuple(dict.fromkeys(items))

    def section(self, name: str) -> Fields | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(name, "must be a JSON object")
        return Fields(value, f"{self.source}: {name}")

    def _missing(self, name: str, wanted: str) -> ModelFormatError:
        return ModelFormatError(f"{self.source}: {name} is missing; add {wanted}", param=name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
