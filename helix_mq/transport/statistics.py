"""What a socket counts, and the frozen picture it gives of it.

Counts only; no I/O but one log line per peer and kind of fault, and only so many of them a minute:
neither a peer that misbehaves for hours nor one that comes with a new key each time fills the disk.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from helix_mq.transport.refusals import Refusal

log = logging.getLogger(__name__)

_REMEMBERED_FAULTS = 1024
_LINES_PER_MIN = 20
"""Per socket and kind of fault."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Counts since the socket was opened, and its backlog now.

    dropped: messages not delivered or not sent, by reason: `too_large`, `too_many_parts`,
        `revoked` (key taken off the allow-list), `disconnected` (the link broke before they were
        sent), `closed` (still waiting when the socket was closed).
    handshakes_failed: connections that never got past the handshake, by reason.
    """

    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int
    dropped: Mapping[str, int]
    handshakes_failed: Mapping[str, int]
    backlog_messages: int
    backlog_bytes: int
    reconnects: int
    handler_errors: int


class Counters:
    """The live counts behind ChannelStatistics. `where` names the socket in the log."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.messages_in = 0
        self.bytes_in = 0
        self.messages_out = 0
        self.bytes_out = 0
        self.reconnects = 0
        self.handler_errors = 0
        self._dropped: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        self._logged: dict[tuple[str, str], None] = {}
        self._lines: dict[str, tuple[float, int]] = {}

    def drop(self, reason: str, who: str, count: int = 1) -> None:
        self._dropped[reason] += count
        if self._first("drop " + reason, who):
            log.warning("%s: message dropped (%s), peer %s", self.where, reason, who)

    def handshake_failed(self, refusal: Refusal, who: str = "", detail: str = "") -> None:
        self._handshakes[refusal.code] += 1
        if self._first("handshake " + refusal.code, who):
            log.warning("%s: %s", self.where, detail or refusal.sentence)

    def handler_failed(self, error: Exception) -> None:
        """Call inside the `except` block: the first of each kind is logged with its traceback."""
        self.handler_errors += 1
        if self._first("handler", type(error).__qualname__):
            log.exception("%s: a handler failed; the socket goes on", self.where)

    def statistics(self, backlog_messages: int = 0, backlog_bytes: int = 0) -> ChannelStatistics:
        return ChannelStatistics(
            messages_in=self.messages_in,
            bytes_in=self.bytes_in,
            messages_out=self.messages_out,
            bytes_out=self.bytes_out,
            dropped=MappingProxyType(dict(sorted(self._dropped.items()))),
            handshakes_failed=MappingProxyType(dict(sorted(self._handshakes.items()))),
            backlog_messages=backlog_messages,
            backlog_bytes=backlog_bytes,
            reconnects=self.reconnects,
            handler_errors=self.handler_errors,
        )

    def _first(self, kind: str, who: str) -> bool:
        key = (kind, who)
        if key in self._logged:
            return False
        if len(self._logged) >= _REMEMBERED_FAULTS:
            # Forgetting the oldest keeps memory bounded at the price of a repeated line.
            del self._logged[next(iter(self._logged))]
        self._logged[key] = None
        return self._has_line(kind)

    def _has_line(self, kind: str) -> bool:
        now_s = time.monotonic()
        since_s, lines = self._lines.get(kind, (now_s, 0))
        if now_s - since_s >= 60:
            since_s, lines = now_s, 0
        self._lines[kind] = (since_s, lines + 1)
        if lines == _LINES_PER_MIN:
            log.warning(
                "%s: more of this (%s) than is logged: it is counted only for the rest of the "
                "minute",
                self.where,
                kind,
            )
        return lines < _LINES_PER_MIN
