"""How every process logs: one line per event on stderr, as text, for journald, or as JSON.

What an event is about travels beside its text: `log.info("left", extra={"node": "alpha"})`, or
`extra={"request": 0x1f}` with one request id or several. Texts that came from elsewhere can make
no second line, nor steer a terminal: control characters are written out. Tracebacks are our own
and keep their lines, each marked so that none looks like an event.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from io import UnsupportedOperation
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "plain", "journal", "json"]

MAX_TEXT = 4_096
"""Characters of a message. journald cuts lines at 48 KiB and would read the rest as an event."""

_MAX_TRACE_LINES = 200
_MAX_JSON_BYTES = 20_000
_MAX_REQUESTS = 8
_MARK = "  | "

_ESCAPES = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160))}
# Line separators; marks that turn the direction of what follows; halves of characters, which
# cannot be written at all.
_ESCAPES |= {
    c: f"\\u{c:04x}"
    for c in (
        *(0x061C, 0x200E, 0x200F),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    )
}

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


def one_line(text: str, most: int = MAX_TEXT) -> str:
    """`text` without anything that ends a line or steers a terminal, and bounded."""
    if len(text) > most:
        text = text[:most] + f"... ({len(text) - most} more characters)"
    return text.translate(_ESCAPES)


def journald_reads(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether `stream` is the very pipe that journald gave this process: JOURNAL_STREAM is
    inherited by children whose output goes elsewhere."""
    device, colon, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (colon and device.isdecimal() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, UnsupportedOperation):
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode))


class _Formatter(logging.Formatter):
    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = {name: value for name, value in fields.items() if value}

    def node_of(self, record: logging.LogRecord) -> str:
        return one_line(str(getattr(record, "node", "") or ""), 80)

    def requests_of(self, record: logging.LogRecord) -> str:
        return _requests(getattr(record, "request", 0))

    def trace_of(self, record: logging.LogRecord) -> list[str]:
        """The traceback's lines, its end when it is long: that is what says what happened."""
        lines = []
        if record.exc_info and record.exc_info[0] is not None:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += self.formatStack(record.stack_info).split("\n")
        return [one_line(line, 1_000) for line in lines[-_MAX_TRACE_LINES:]]


class TextFormatter(_Formatter):
    """For people; `journal` leaves the time to journald and gives it the priority."""

    def __init__(self, *, journal: bool = False, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(fields or {})
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        about = [self.node_of(record)]
        if requests := self.requests_of(record):
            about.append(f"request {requests}")
        words = [*(a for a in about if a), one_line(record.getMessage())]
        event = f"{record.name}: {': '.join(words)}"
        if self._journal:
            head = f"<{_priority(record.levelno)}>"
            lines = [head + event, *(head + _MARK + line for line in self.trace_of(record))]
        else:
            clock = self.formatTime(record, "%H:%M:%S")
            event = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {event}"
            lines = [event, *(_MARK + line for line in self.trace_of(record))]
        return "\n".join(lines)


class JsonFormatter(_Formatter):
    """For programs: an object per line with ts, level, logger, message, and node, request and
    traceback where there are any. `fields` stand on every line unless the event has its own."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, str] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _fitting(one_line(record.getMessage())),
            **self._fields,
        }
        if node := self.node_of(record):
            event["node"] = node
        if requests := self.requests_of(record):
            event["request"] = requests
        if trace := self.trace_of(record):
            event["traceback"] = _fitting("\n".join(trace), end=True)
        return json.dumps(event)


def configure(
    level: Level = "info",
    form: Format = "auto",
    *,
    levels: Mapping[str, Level] | None = None,
    fields: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Sends this process's logs to `stream`, stderr by default, in the chosen form.

    `levels` of single loggers, by name; `fields` stand on every line of JSON.
    """
    out = sys.stderr if stream is None else stream
    if form == "auto":
        form = "journal" if journald_reads(os.environ, out) else "plain"
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        JsonFormatter(fields or {})
        if form == "json"
        else TextFormatter(journal=form == "journal", fields=fields)
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, own in (levels or {}).items():
        logging.getLogger(name).setLevel(own.upper())


def _requests(value: object) -> str:
    """Request ids as clients and other logs know them, in hexadecimal."""
    if isinstance(value, int):
        return f"{value:x}" if value else ""
    if isinstance(value, str):
        return one_line(value, 80)
    if not isinstance(value, Iterable):
        return ""
    ids = [f"{v:x}" for v in value if isinstance(v, int)]
    more = len(ids) - _MAX_REQUESTS
    return ",".join(ids[:_MAX_REQUESTS]) + (f",+{more}" if more > 0 else "")


def _priority(level: int) -> int:
    """syslog's number for a level of Python's."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def _fitting(text: str, *, end: bool = False) -> str:
    """As much of `text` as JSON writes in _MAX_JSON_BYTES; its end rather than its beginning."""
    while (length := len(json.dumps(text))) > _MAX_JSON_BYTES:
        keep = max(1, len(text) * _MAX_JSON_BYTES // length - 1)
        text = text[-keep:] if end else text[:keep]
    return text
