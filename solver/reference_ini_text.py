"""Reads and writes the reference artifact's ini dialect: sections, quantities, lists.

A quantity is a number, or `number * unit` (`12.5 * mbps`, `40 * MilliSec`, `16 * GB`); a list is
`[0, 1, 'sink']`. The artifact hands such values to `eval`; here a grammar takes them and nothing
is evaluated. **`gbps` is 1e9 bytes per second**: its name says bits, its arithmetic divides it by
sizes in bytes. All figures here are in bytes, bytes/s and seconds.

Everything is bounded, and every error names file, section and key.
"""

from __future__ import annotations

import configparser
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from helix_mq.errors import ConfigError

MAX_FILE_BYTES = 64 * 2**20
MAX_LIST_ITEMS = 1_000_000

SPEEDS: Final = {"kbps": 1e3, "mbps": 1e6, "gbps": 1e9}
SIZES: Final = {"Byte": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
TIMES: Final = {"Sec": 1.0, "MilliSec": 1e-3}

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]{1,25}(?:\.[0-9]{0,25})?|\.[0-9]{1,25})(?:[eE][+-]?[0-9]{1,3})?)"
    r"(?:\s*\*\s*([A-Za-z]{1,16}))?",
    re.ASCII,
)
_ITEM = re.compile(r"\s*(?:([0-9]{1,9})|'([^'\"\\,\[\]\n]{1,80})'|\"([^'\"\\,\[\]\n]{1,80})\")\s*")
_WHOLE = re.compile(r"[0-9]{1,15}", re.ASCII)


class ReferenceIniError(ConfigError):
    """An ini file is not what it should be, or cannot say what is to be written.

    `param` is `section.key`.
    """

    code = "invalid_reference_ini"


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a file. Keys are lower case, as the artifact's parser folds them."""

    source: str
    name: str
    values: Mapping[str, str]

    def fault(self, key: str, what: str) -> ReferenceIniError:
        """The error for `key`: what it holds, and what was expected."""
        held = f"{key} = {self.values[key]!r:.60}" if key in self.values else key
        return ReferenceIniError(
            f"{self.source}: [{self.name}] {held}: {what}", param=f"{self.name}.{key}"
        )

    def only(self, *keys: str) -> Section:
        """Itself, if it has no other keys."""
        for key in sorted(set(self.values) - set(keys)):
            raise self.fault(key, f"there is no such key here, only {', '.join(keys)}")
        return self

    def text(self, key: str) -> str:
        """The value as it stands, with its quotes taken off if it has any."""
        value = self._value(key)
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        value = value[1:-1] if quoted else value
        if not is_name(value):
            raise self.fault(key, "expected a name of at most 80 characters")
        return value

    def whole(self, key: str) -> int:
        """A whole number, not negative."""
        value = self._value(key)
        if not _WHOLE.fullmatch(value):
            raise self.fault(key, "expected a whole number, not negative")
        return int(value)

    def quantity(self, key: str, units: Mapping[str, float]) -> float:
        """A number, times one of `units` if one is named; not negative."""
        number = self.signed(key, units)
        if number < 0:
            raise self.fault(key, "must not be negative")
        return number

    def signed(self, key: str, units: Mapping[str, float]) -> float:
        """As `quantity`, but may be negative: -1 says that a figure does not apply."""
        match = _QUANTITY.fullmatch(self._value(key))
        if match is None or (match[2] is not None and match[2] not in units):
            raise self.fault(key, f"expected a number, or number * {' or '.join(units)}")
        number = float(match[1]) * (units[match[2]] if match[2] is not None else 1.0)
        if not math.isfinite(number):
            raise self.fault(key, "is too large")
        return number

    def items(self, key: str) -> list[int | str]:
        """`[0, 1, 'sink']`."""
        value = self._value(key)
        if not (value.startswith("[") and value.endswith("]")):
            raise self.fault(key, "expected a list in brackets")
        inner = value[1:-1]
        if not inner.strip():
            return []
        if inner.count(",") >= MAX_LIST_ITEMS:
            raise self.fault(key, f"more than {MAX_LIST_ITEMS} items")
        items: list[int | str] = []
        for part in inner.split(","):
            match = _ITEM.fullmatch(part)
            if match is None:
                raise self.fault(key, f"{part.strip()!r:.40} is neither a number nor a quoted name")
            items.append(int(match[1]) if match[1] is not None else match[2] or match[3])
        return items

    def names(self, key: str) -> list[str]:
        """A list of names, none twice."""
        items = self.items(key)
        names = [item for item in items if isinstance(item, str)]
        if len(names) < len(items) or len(set(names)) < len(names):
            raise self.fault(key, "expected quoted names, each once")
        return names

    def _value(self, key: str) -> str:
        if key not in self.values:
            raise self.fault(key, "is missing")
        return self.values[key]


@dataclass(frozen=True, slots=True)
class IniFile:
    """A file's sections by name, in order."""

    source: str
    sections: Mapping[str, Section]

    def section(self, name: str) -> Section:
        """The section of that name; ReferenceIniError if there is none."""
        if name not in self.sections:
            raise ReferenceIniError(f"{self.source}: there is no section [{name}]", param=name)
        return self.sections[name]

    def refuse_others(self, known: Iterable[str]) -> None:
        """ReferenceIniError if the file has a section that `known` does not name."""
        for name in sorted(set(self.sections) - set(known)):
            raise ReferenceIniError(
                f"{self.source}: [{name:.80}]: nothing refers to such a section", param=name
            )


def read_ini(path: Path) -> IniFile:
    """The file's sections. ReferenceIniError if it is missing, too large or no ini file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ReferenceIniError(
            f"{path}: cannot be read: {error.strerror or error}", param="file"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ReferenceIniError(f"{path}: larger than {MAX_FILE_BYTES} bytes", param="file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReferenceIniError(
            f"{path}: is not UTF-8 text, from byte {error.start} on", param="file"
        ) from None
    return parse_ini(text, str(path))


def parse_ini(text: str, source: str) -> IniFile:
    """The sections of `text`; `source` names it in errors."""
    # No section can be called "", so none is taken for defaults of the others.
    parser = configparser.RawConfigParser(
        strict=True, default_section="", empty_lines_in_values=False
    )
    try:
        parser.read_string(text, source)
    except configparser.DuplicateOptionError as error:
        raise ReferenceIniError(
            f"{source}: line {error.lineno}: [{error.section}] {error.option} is given twice",
            param=f"{error.section}.{error.option}",
        ) from None
    except configparser.DuplicateSectionError as error:
        raise ReferenceIniError(
            f"{source}: line {error.lineno}: [{error.section}] is given twice", param=error.section
        ) from None
    except configparser.MissingSectionHeaderError as error:
        raise ReferenceIniError(
            f"{source}: line {error.lineno}: expected a [section] first", param="file"
        ) from None
    except configparser.Error as error:
        lines = getattr(error, "errors", None) or [(0, "")]
        raise ReferenceIniError(
            f"{source}: line {lines[0][0]}: expected key = value", param="file"
        ) from None
    return IniFile(
        source,
        {name: Section(source, name, dict(parser.items(name))) for name in parser.sections()},
    )


def show_quantity(value: float, units: Mapping[str, float], unit: str) -> str:
    """`value` as `number * unit` if that reads back exactly, else as a plain number."""
    number = value / units[unit]
    if number * units[unit] == value:
        return f"{_plain(number)} * {unit}"
    return _plain(value)


def show_list(items: Iterable[int | str]) -> str:
    """`[0, 1, 'sink']`, as `Section.items` reads it."""
    return "[" + ", ".join(str(i) if isinstance(i, int) else f"'{i}'" for i in items) + "]"


def show_section(name: str, values: Mapping[str, str]) -> str:
    """One section with an empty line behind it."""
    return "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in values.items()), "", ""])


def is_name(text: str) -> bool:
    """True if `text` can stand as a name: in a list, as a value and as a section."""
    return (
        0 < len(text) <= 80
        and text.isprintable()
        and text == text.strip()
        and not set(text) & set("'\"\\,[]=#;")
    )


def _plain(number: float) -> str:
    return f"{number:.0f}" if number.is_integer() and abs(number) < 2**53 else repr(number)
