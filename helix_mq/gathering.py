"""Small frames that follow each other at once on one link, made into one frame with all their rows.

Pure. A batch puts its rows for a peer in one frame already; this is for what several batches, or
several requests that are not batched, send within one turn of the event loop. It is a frame like
any other: its receiver cannot tell. Only what ZeroMQ would copy anyway is joined, tensors of real
size never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from helix_mq.frames import Buffer
from helix_mq.messages.data import SAMPLE, VERIFY, FrameHeader, Row

SMALL_BYTES: Final = 4096
"""Of a frame's payload, at most. Joining costs a copy; a frame of its own some tens of µs."""
SMALL_ROWS: Final = 64
MOST_BYTES: Final = 120 * 1024
"""Of all that is gathered: just below the size from which parts go uncopied. Against 64 KiB a tenth
less time per frame of 1 KiB, at both ends."""
MOST_ROWS: Final = 256


def is_small(header: FrameHeader, buffers: Sequence[Buffer]) -> bool:
    """Whether a frame may be joined with others: nothing but decodes with a few bytes."""
    rows = header.rows
    if len(buffers) != 1 or len(rows) > SMALL_ROWS:
        return False
    payload = buffers[0]
    if (payload.nbytes if type(payload) is memoryview else len(payload)) > SMALL_BYTES:
        return False
    return _only_decodes(rows)


def _only_decodes(rows: Sequence[Row]) -> bool:
    for row in rows:
        # `Row.is_decode` in place: asking the property takes as long as all the rest here.
        flags = row.flags
        if row.count != 1 and not flags & VERIFY:
            return False
        if not flags & SAMPLE or row.position <= 0 or row.spec is not None or row.blocks:
            # Some 16 KiB of sampling parameters are no small frame.
            return False
    return True


class Gathering:
    """Rows of small frames, in the order they came. Empty again after `take`."""

    def __init__(self) -> None:
        self._like: FrameHeader | None = None
        """The first of them, whose epoch, sender and form of rows the others share."""
        self._rows: list[Row] = []
        self._routes: dict[bytes, int] = {}
        self._payloads: list[Buffer] = []
        self.nbytes = 0
        """Of payload."""

    def __len__(self) -> int:
        """Frames."""
        return len(self._payloads)

    def add(self, header: FrameHeader, payload: Buffer) -> bool:
        """Takes a small frame in. False where it does not go with those that are here, or names a
        route twice."""
        nbytes = self.nbytes
        nbytes += payload.nbytes if type(payload) is memoryview else len(payload)
        like, rows, blobs = self._like, header.rows, header.routes
        if like is None:
            routes = {blob: i for i, blob in enumerate(blobs)}
            if len(routes) < len(blobs):
                return False
            self._like, self._routes = header, routes
        elif (
            nbytes > MOST_BYTES
            or header.epoch != like.epoch
            or header.width != like.width
            or header.dtype != like.dtype
            or len(self._rows) + len(rows) > MOST_ROWS
        ):
            return False
        elif blobs != like.routes:
            # Mostly they are the same, and then rows need no other index.
            routes = self._routes
            at = [routes.setdefault(blob, len(routes)) for blob in blobs]
            rows = tuple(msgspec.structs.replace(row, route=at[row.route]) for row in rows)
        self._rows += rows
        self._payloads.append(payload)
        self.nbytes = nbytes
        return True

    def joins(self, header: FrameHeader, buffers: Sequence[Buffer]) -> bool:
        """`is_small` and `add` in one, where a frame goes with those that are here and names their
        routes, as nearly all do. False, and nothing is changed, where there is more to see to."""
        like, rows = self._like, header.rows
        if (
            like is None
            or header.routes != like.routes
            or header.epoch != like.epoch
            or header.width != like.width
            or header.dtype != like.dtype
            or len(buffers) != 1
            or len(rows) > SMALL_ROWS
            or len(self._rows) + len(rows) > MOST_ROWS
        ):
            return False
        payload = buffers[0]
        nbytes = payload.nbytes if type(payload) is memoryview else len(payload)
        if nbytes > SMALL_BYTES or self.nbytes + nbytes > MOST_BYTES or not _only_decodes(rows):
            return False
        self._rows += rows
        self._payloads.append(payload)
        self.nbytes += nbytes
        return True

    def take(self) -> tuple[FrameHeader, tuple[Buffer]]:
        """All that was gathered, as one frame; only if there is something."""
        like = self._like
        assert like is not None
        payloads = self._payloads
        payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        header = FrameHeader(
            like.epoch, like.sender, like.dtype, like.width, tuple(self._rows), tuple(self._routes)
        )
        self.clear()
        return header, (payload,)

    def clear(self) -> None:
        self._like = None
        self._rows, self._routes, self._payloads = [], {}, []
        self.nbytes = 0
