"""Effects to multipart messages: rows for the same first hop and epoch leave in one frame.

Collects what one turn of the event loop decided and sends it together; a step of 64 decodes is one
frame to the first hop, not 64.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from helix_mq.frames import Buffer, pack_route
from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.data import (
    DIRECT,
    DRAFTING,
    MAX_FRAME_TOKENS,
    MAX_ROWS,
    SAMPLE,
    TOGETHER,
    VERIFY,
    FrameHeader,
    Release,
    ReleaseItem,
    Row,
)
from helix_mq.packing import MAX_HEADER_BYTES
from router.events import SendRelease, SendRow

_MOST_HEADER_BYTES = MAX_HEADER_BYTES // 2
_FEW = 16
"""Token ids of some decodes. numpy takes longer for them, most of all when it is out of the caches:
20 us of a lone decode's 900."""

Send = Callable[[str, msgspec.Struct, Sequence[Buffer]], bool]


class Outgoing:
    """Buffers rows and releases until `flush`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._rows: dict[tuple[NodeId, int], list[SendRow]] = defaultdict(list)
        self._releases: dict[NodeId, list[ReleaseItem]] = defaultdict(list)

    @property
    def empty(self) -> bool:
        return not self._rows and not self._releases

    def add_row(self, row: SendRow) -> None:
        self._rows[row.route.hops[0].node, row.epoch].append(row)

    def add_release(self, release: SendRelease) -> None:
        self._releases[release.node].append(release.item)

    def flush(self) -> list[NodeId]:
        """Sends everything; gives the nodes that no link leads to. Releases go first."""
        releases, self._releases = self._releases, defaultdict(list)
        for node, items in releases.items():
            for start in range(0, len(items), MAX_ROWS):
                self._send(node, Release(tuple(items[start : start + MAX_ROWS])), ())
        rows, self._rows = self._rows, defaultdict(list)
        unreachable: list[NodeId] = []
        for (node, epoch), group in rows.items():
            for part in _frames_of(group):
                header, buffers = build_frame(part, epoch)
                if not self._send(node, header, buffers) and node not in unreachable:
                    unreachable.append(node)
        return unreachable


def _frames_of(rows: list[SendRow]) -> list[list[SendRow]]:
    """Cuts a list of rows so that no frame passes the wire's limits."""
    if len(rows) == 1:
        return [rows]
    frames: list[list[SendRow]] = [[]]
    tokens = header_bytes = 0
    for row in rows:
        count, nbytes = len(row.token_ids), _most_header_bytes(row)
        if frames[-1] and (
            len(frames[-1]) >= MAX_ROWS
            or tokens + count > MAX_FRAME_TOKENS
            or header_bytes + nbytes > _MOST_HEADER_BYTES
        ):
            frames.append([])
            tokens = header_bytes = 0
        frames[-1].append(row)
        tokens += count
        header_bytes += nbytes
    return frames


def _most_header_bytes(row: SendRow) -> int:
    """What a row may take in a header. A logit bias of a thousand tokens takes 16 KiB; a node drops
    a header that is too long, with everybody's rows in it."""
    nbytes = 128 + len(pack_route(row.route)) + len(row.blocks)
    if row.spec is not None:
        sampling = row.spec.sampling
        nbytes += 128 + 16 * len(sampling.logit_bias) + 5 * len(sampling.stop_token_ids)
    return nbytes


def build_frame(rows: Sequence[SendRow], epoch: int) -> tuple[FrameHeader, list[Buffer]]:
    """A token frame for one first hop: header, int32 token ids, int32 history where any."""
    routes: dict[bytes, int] = {}
    wire_rows = tuple(
        Row(
            request=row.request,
            attempt=row.attempt,
            position=row.position,
            count=len(row.token_ids),
            route=routes.setdefault(pack_route(row.route), len(routes)),
            hop=0,
            flags=_flags(row),
            deadline_ms=row.deadline_ms,
            spec=row.spec,
            blocks=row.blocks,
        )
        for row in rows
    )
    header = FrameHeader(epoch, ROUTER, "int32", 1, wire_rows, tuple(routes))
    buffers: list[Buffer] = [_int32([t for row in rows for t in row.token_ids])]
    history = [t for row in rows for t in row.history]
    if history:
        buffers.append(_int32(history))
    return header, buffers


def _flags(row: SendRow) -> int:
    return (
        SAMPLE
        | (VERIFY if row.verify else 0)
        | (DIRECT if row.direct else 0)
        | (DRAFTING if row.drafting else 0)
        | (TOGETHER if row.together else 0)
    )


def _int32(values: list[int]) -> memoryview:
    if len(values) <= _FEW:
        return memoryview(struct.pack(f"<{len(values)}i", *values))
    return np.array(values, dtype="<i4").data.cast("B")
