"""Structs to msgpack and back, with limits.

A decoder checks every field's type, range and length against the struct as it reads, and a length
before it makes room for what is announced: so every array of a message has a bound in its type. It
goes no deeper than the struct does; what a later release has added is passed over and not built.
Nothing else in the project unpacks bytes that came from a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from helix_mq.errors import FrameError

S = TypeVar("S", bound=msgspec.Struct)

U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
U31 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[@A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Known = Annotated[str, msgspec.Meta(max_length=64)]
"""A name in messages that come often. Who reads one holds it against a name that is known, so its
form need not be judged; that takes as long as the rest of a small header."""
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]

MAX_HEADER_BYTES = 8 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
PACK = _encoder.encode
"""`pack` without a call around it."""


def pack(value: msgspec.Struct) -> bytes:
    """Bytes of a struct; structs are `array_like`, so field names do not travel."""
    # The bytes that msgpack itself makes of it, in a sixth of the time.
    return _encoder.encode(value)


_readers: dict[type[msgspec.Struct], Callable[[bytes | memoryview], Any]] = {}


def prepare(kind: type[S]) -> Callable[[bytes | memoryview], S]:
    """What reads structs of this kind, made at once: making one takes a millisecond or two, which
    an event loop had better not spend when the first message comes."""
    read = _readers.get(kind)
    if read is None:
        read = _readers[kind] = msgspec.msgpack.Decoder(kind).decode
    return read


def unpack(data: bytes | memoryview, kind: type[S]) -> S:
    """The struct in `data`, or FrameError; never any other exception, whatever the bytes."""
    if len(data) > MAX_HEADER_BYTES:
        raise FrameError(f"header of {len(data)} bytes is too long", reason="header_too_long")
    read = _readers.get(kind) or prepare(kind)
    try:
        value: S = read(data)
    except msgspec.ValidationError as e:
        raise FrameError(f"{kind.__name__}: {e}", reason="bad_field") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        # ValueError: a text that is not UTF-8.
        raise FrameError(f"header is not msgpack: {e}", reason="not_msgpack") from None
    return value
