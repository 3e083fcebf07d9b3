"""Headers of decode frames that are known before they come: those of the last step, one token on.

A running request sends the same row in every step but for its position, and requests that decode
together do so for hundreds of steps. So the next frame's header is the last one's with an addition,
and whoever has judged a frame once can tell the next one by its bytes. Nothing is taken on trust:
bytes that are not the foreseen ones are read and checked like any other's. Pure.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from helix_mq.gathering import SMALL_ROWS
from helix_mq.inlink import InLink
from helix_mq.messages.data import DIRECT, SAMPLE, FrameHeader, Row
from helix_mq.packing import PACK, prepare

MOST_BYTES: Final = 4096
"""Of a header that is foreseen: SMALL_ROWS, and some routes."""

_KEPT_FLAGS: Final = SAMPLE | DIRECT

# Where msgpack's form of a number becomes longer.
_LONGER = (1 << 7, 1 << 8, 1 << 16, 1 << 32)

_READ = prepare(FrameHeader)


class Foreseen(Protocol):
    """What is to become of a frame whose header is foreseen."""

    def came(self, link: InLink, payload: memoryview, nbytes: int) -> bool:
        """The frame is here, `nbytes` in all. False, and nothing has changed, where it is to be
        read and checked like any other."""
        ...


class PackedHeader(msgspec.Struct, frozen=True, gc=False):
    """Of a frame of decodes, as bytes: for who sends one that was foreseen."""

    packed: bytes

    def header(self) -> FrameHeader:
        read: FrameHeader = _READ(self.packed)
        return read


class HeaderSteps:
    """The headers of a frame and of those that follow it step by step, `most` of them, as long as
    their numbers keep their form."""

    __slots__ = ("_first", "_nbytes", "_step", "most")

    def __init__(self, first: bytes, second: bytes, most: int) -> None:
        """The first two, of one length."""
        # A row's position is a big-endian number within the header's bytes, so that adding to
        # all of them is one addition to the header as a number.
        self._first = int.from_bytes(first, "big")
        self._step = int.from_bytes(second, "big") - self._first
        self._nbytes = len(first)
        self.most = most

    def at(self, step: int) -> bytes:
        """Of step 0..most."""
        return (self._first + step * self._step).to_bytes(self._nbytes, "big")


def steps_of(header: FrameHeader, max_context: int) -> HeaderSteps | None:
    """None where a row is more than the next token of a text, or nothing can follow."""
    if len(header.rows) > SMALL_ROWS:
        return None
    ahead: list[Row] = []
    most = max_context
    for row in header.rows:
        flags = row.flags
        if row.count != 1 or row.position <= 0 or not flags & SAMPLE or flags & ~_KEPT_FLAGS:
            return None
        if row.spec is not None or row.blocks or row.drafts:
            return None
        most = min(most, max_context - 1 - row.position, _in_form(row.position))
        ahead.append(msgspec.structs.replace(row, position=row.position + 1))
    if most <= 0:
        return None
    first = PACK(header)
    if len(first) > MOST_BYTES:
        return None
    return HeaderSteps(first, PACK(msgspec.structs.replace(header, rows=tuple(ahead))), most)


def _in_form(position: int) -> int:
    """By how much it can grow in as many bytes."""
    return next(end for end in _LONGER if position < end) - 1 - position
