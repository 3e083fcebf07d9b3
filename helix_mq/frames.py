"""Messages <-> multipart bytes: `[version, kind][msgpack header][buffer ...]`.

`encode` and `decode` are the only way onto and off the wire. `decode` gives a message whose header
fits its struct and whose buffers fit its header, or raises FrameError; it copies no buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, NoReturn

import msgpack
import msgspec

from helix_mq.errors import FrameError
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import KIND_OF, KINDS, WIRE_VERSION, Kind
from helix_mq.messages.data import (
    DTYPES,
    MAX_DRAFTS,
    MAX_FRAME_TOKENS,
    MAX_PADDING_BYTES,
    SAMPLE,
    SCALED,
    VERIFY,
    FrameHeader,
    Row,
    token_bytes,
)
from helix_mq.packing import MAX_HEADER_BYTES, U31, Name, pack, prepare, unpack
from helix_mq.prefix_blocks import cut_names, names_fit
from helix_mq.scaled_rows import check_scales, scaled_bytes

Buffer = bytes | bytearray | memoryview

MAX_PARTS = 4
_HEADS = {kind: bytes((WIRE_VERSION, kind)) for kind in Kind}
FRAME_HEAD = _HEADS[Kind.FRAME]
_KIND_BY_HEAD = {head: kind for kind, head in _HEADS.items()}
_READ: dict[Kind, Callable[[bytes | memoryview], msgspec.Struct]] = {
    kind: prepare(struct) for kind, struct in KINDS.items()
}
_HOPS: msgspec.msgpack.Decoder[tuple[tuple[str, int, int], ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[tuple[Name, U31, U31], ...], msgspec.Meta(max_length=1024)]
)
ROUTES: dict[tuple[bytes, ...], tuple[Route, ...]] = {}
"""What `unpack_routes` gives of frames with one route, as far as it was asked lately: two look-ups
per frame that are no calls."""
_KNOWN_ROUTES = 1024
_MAX_ROUTE_BYTES = 8 * 1024
_CACHED_ROUTE_BYTES = 1024
"""A route takes some twelve times its bytes; a cache of the longest would take 800 MB."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A decoded message. `buffers` are views of what the transport received."""

    # A msgspec struct, as building a frozen dataclass per message costs five times as much.

    kind: Kind
    header: msgspec.Struct
    buffers: tuple[memoryview, ...] = ()


def encode(header: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Multipart of a message; `buffers` are passed through, not copied."""
    kind = KIND_OF[type(header)]
    return [_HEADS[kind], pack(header), *buffers]


def decode(parts: Sequence[Buffer]) -> Message:
    """The message in `parts`, checked; FrameError says what is wrong, with a countable reason."""
    count = len(parts)
    if not 2 <= count <= MAX_PARTS:
        raise FrameError(f"{count} parts, expected 2 to {MAX_PARTS}", reason="parts")
    head = bytes(parts[0]) if len(parts[0]) == 2 else b""
    kind = _KIND_BY_HEAD.get(head) or _refuse_head(head)
    packed = parts[1]
    if isinstance(packed, bytearray):
        packed = bytes(packed)
    try:
        # `unpack` in place, which says what is wrong where something is.
        if len(packed) > MAX_HEADER_BYTES:
            raise ValueError
        header = _READ[kind](packed)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        header = unpack(packed, KINDS[kind])
    buffers: tuple[memoryview, ...] = ()
    if count == 3:
        buffers = (memoryview(parts[2]),)
    elif count > 3:
        buffers = tuple(map(memoryview, parts[2:]))
    if type(header) is FrameHeader:
        check_frame(header, buffers)
    elif kind is Kind.LINK_PROBE:
        check_padding(buffers)
    elif buffers:
        raise FrameError(f"{kind.name} carries no buffers", reason="stray_buffer")
    return Message(kind, header, buffers)


def _refuse_head(head: bytes) -> NoReturn:
    """Says what is wrong with the first part of a message."""
    if len(head) != 2:
        raise FrameError("the first part is not version and kind", reason="no_version")
    if head[0] != WIRE_VERSION:
        raise FrameError(
            f"wire version {head[0]}, this side speaks {WIRE_VERSION}; run the same release on "
            "both",
            reason="version",
        )
    raise FrameError(f"unknown message kind {head[1]}", reason="unknown_kind")


def check_frame(header: FrameHeader, buffers: Sequence[memoryview]) -> None:
    """Checks rows, routes, dtype, width and byte lengths of a frame against each other."""
    dtype, width, blobs = header.dtype, header.width, header.routes
    element_bytes = DTYPES.get(dtype)
    if element_bytes is None:
        raise FrameError(f"dtype {dtype!r} is not one of {sorted(DTYPES)}", reason="dtype")
    tokens = history = 0
    has_ids = dtype == "int32"
    routes = ROUTES.get(blobs) or unpack_routes(blobs)
    route = hop = -1
    for row in header.rows:
        tokens += row.count
        if row.hop != hop or row.route != route:
            # Rows of a frame mostly go the same way.
            route, hop = row.route, row.hop
            if route >= len(routes) or hop >= len(routes[route].hops):
                raise FrameError(
                    f"request {row.request}: route {route} hop {hop} is not in the frame",
                    reason="route_index",
                )
            if (hop == 0) is not has_ids:
                raise FrameError(
                    f"request {row.request}: hop {hop} cannot take {dtype} rows",
                    reason="dtype",
                )
        if row.spec is not None:
            history += row.spec.history_tokens
            if row.spec.history_tokens not in (0, row.position + row.count):
                raise FrameError(
                    f"request {row.request}: {row.spec.history_tokens} history tokens for a "
                    f"sequence of {row.position + row.count}",
                    reason="history",
                )
        if row.flags & VERIFY or row.drafts:
            _check_drafts(row)
        if row.blocks and not names_fit(row.blocks, row.position, row.count):
            raise FrameError(
                f"request {row.request}: {len(row.blocks)} bytes of block names in a row of "
                f"{row.count} at {row.position}",
                reason="blocks",
            )
    if has_ids and width != 1:
        raise FrameError(f"token rows of width {width}, expected 1", reason="width")
    if tokens > MAX_FRAME_TOKENS:
        raise FrameError(f"{tokens} tokens in one frame", reason="frame_tokens")
    # `token_bytes` in place.
    row_bytes = scaled_bytes(width) if dtype == SCALED else width * element_bytes
    payload_bytes = tokens * row_bytes
    if history or len(buffers) != 1 or buffers[0].nbytes != payload_bytes:
        expected = [payload_bytes] + ([history * 4] if history else [])
        got = [buffer.nbytes for buffer in buffers]
        if got != expected:
            raise FrameError(f"buffers of {got} bytes, the header says {expected}", reason="length")
    if dtype == SCALED:
        check_scales(buffers[0], width)


def _check_drafts(row: Row) -> None:
    """A row with drafts is a decode with a few tokens more, and hops after the first are told
    which."""
    if not row.flags & VERIFY:
        raise FrameError(f"request {row.request}: drafts in a row without VERIFY", reason="drafts")
    if not row.flags & SAMPLE or row.position == 0:
        raise FrameError(
            f"request {row.request}: drafts in a row at {row.position} that is no decode",
            reason="drafts",
        )
    if not 2 <= row.count <= 1 + MAX_DRAFTS:
        raise FrameError(
            f"request {row.request}: {row.count - 1} drafts, expected 1 to {MAX_DRAFTS}",
            reason="drafts",
        )
    if len(row.drafts) != (row.count - 1 if row.hop else 0):
        raise FrameError(
            f"request {row.request}: {len(row.drafts)} drafts named for hop {row.hop} of a row of "
            f"{row.count}",
            reason="drafts",
        )


def check_padding(buffers: Sequence[memoryview]) -> None:
    """Checks what a probe carries: nothing, or one buffer that is not large."""
    if len(buffers) > 1 or any(b.nbytes > MAX_PADDING_BYTES for b in buffers):
        nbytes = sum(b.nbytes for b in buffers)
        raise FrameError(f"{nbytes} bytes of padding in a probe", reason="padding")


def pack_route(route: Route) -> bytes:
    """A route as bytes, cached: the same few thousand routes travel in every frame."""
    return _pack_route(route)


@lru_cache(maxsize=8192)
def _pack_route(route: Route) -> bytes:
    packed = msgpack.packb([(h.node, h.layers.first, h.layers.end) for h in route.hops])
    assert isinstance(packed, bytes)
    return packed


def unpack_route(blob: bytes) -> Route:
    """The validated route in `blob`; FrameError if it is not contiguous from layer 0."""
    if len(blob) > _MAX_ROUTE_BYTES:
        raise FrameError(f"route of {len(blob)} bytes is too long", reason="route")
    return _cached_route(blob) if len(blob) <= _CACHED_ROUTE_BYTES else _unpack_route(blob)


def unpack_routes(blobs: tuple[bytes, ...]) -> tuple[Route, ...]:
    """Those of a frame; as `unpack_route`."""
    routes = tuple(map(unpack_route, blobs))
    if len(blobs) == 1 and len(blobs[0]) <= _CACHED_ROUTE_BYTES:
        if len(ROUTES) >= _KNOWN_ROUTES:
            ROUTES.clear()
        ROUTES[blobs] = routes
    return routes


@lru_cache(maxsize=8192)
def _cached_route(blob: bytes) -> Route:
    return _unpack_route(blob)


def _unpack_route(blob: bytes) -> Route:
    try:
        hops = _HOPS.decode(blob)
        return Route(tuple(Hop(NodeId(n), LayerRange(first, end)) for n, first, end in hops))
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise FrameError(f"bad route: {e}", reason="route") from None


def split_frame(
    header: FrameHeader, buffers: Sequence[Buffer], max_bytes: int
) -> list[tuple[FrameHeader, Sequence[Buffer]]]:
    """The frame as frames of at most `max_bytes` of payload, or of one token, each; only views.

    A row that is cut keeps its flags and sampling parameters with its last part. Positions stay in
    order over the frames. A row with drafts is never cut: a frame with one may be longer by that.
    """
    payload = memoryview(buffers[0]).cast("B")
    if payload.nbytes <= max_bytes:
        return [(header, buffers)]
    stride = token_bytes(header.dtype, header.width)
    history = memoryview(buffers[1]).cast("B") if len(buffers) > 1 else None
    most = max(1, max_bytes // stride)
    frames: list[tuple[FrameHeader, Sequence[Buffer]]] = []
    rows: list[Row] = []
    held = at = history_at = history_from = 0

    def close() -> None:
        nonlocal held, at, rows, history_from
        parts: list[Buffer] = [payload[at : at + held * stride]]
        if history is not None and history_at > history_from:
            parts.append(history[history_from:history_at])
        frames.append((msgspec.structs.replace(header, rows=tuple(rows)), parts))
        at += held * stride
        held, rows, history_from = 0, [], history_at

    for row in header.rows:
        done = 0
        while done < row.count:
            whole = bool(row.flags & VERIFY)
            count = row.count if whole else min(row.count - done, most - held)
            last = done + count == row.count
            rows.append(
                msgspec.structs.replace(
                    row,
                    position=row.position + done,
                    count=count,
                    flags=row.flags if last else row.flags & ~SAMPLE,
                    spec=row.spec if last else None,
                    blocks=cut_names(row.blocks, row.position, done, done + count),
                )
            )
            if last and row.spec is not None:
                history_at += 4 * row.spec.history_tokens
            held += count
            done += count
            if held >= most:
                close()
    if rows:
        close()
    return frames


def frame_bytes(parts: Sequence[Buffer]) -> int:
    """Bytes of a message as credit counts them: all its parts, ZeroMQ's framing left out."""
    total = 0
    for part in parts:
        total += part.nbytes if type(part) is memoryview else len(part)
    return total
