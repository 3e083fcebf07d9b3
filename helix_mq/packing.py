"""msgpack with limits, and typed structs out of it.

Two steps on purpose: msgpack refuses oversized or over-deep input before anything is built, then
msgspec reads the same bytes and checks every field's type, range and length against the struct. By
itself it would make room for as many items as an array claims to have. Nothing else in the project
unpacks bytes that came from a socket.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, TypeVar

import msgpack
import msgspec

from helix_mq.errors import FrameError

S = TypeVar("S", bound=msgspec.Struct)

U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
U31 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[@A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]

MAX_HEADER_BYTES = 8 * 1024 * 1024
_MAX_STR = 4 * 1024 * 1024
_MAX_BIN = 64 * 1024
_MAX_ITEMS = 1 << 17

_encoder = msgspec.msgpack.Encoder()


def pack(value: msgspec.Struct) -> bytes:
    """Bytes of a struct; structs are `array_like`, so field names do not travel."""
    # The bytes that msgpack itself makes of it, in a sixth of the time.
    return _encoder.encode(value)


@cache
def _decoder(kind: type[S]) -> msgspec.msgpack.Decoder[S]:
    return msgspec.msgpack.Decoder(kind)


def unpack(data: bytes | memoryview, kind: type[S]) -> S:
    """The struct in `data`, or FrameError; never any other exception, whatever the bytes."""
    if len(data) > MAX_HEADER_BYTES:
        raise FrameError(f"header of {len(data)} bytes is too long", reason="header_too_long")
    try:
        msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=_MAX_STR,
            max_bin_len=_MAX_BIN,
            max_array_len=_MAX_ITEMS,
            max_map_len=1024,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as e:
        raise FrameError(f"header is not msgpack: {e}", reason="not_msgpack") from None
    try:
        value: S = _decoder(kind).decode(data)
    except (msgspec.DecodeError, RecursionError) as e:
        raise FrameError(f"{kind.__name__}: {e}", reason="bad_field") from None
    return value
