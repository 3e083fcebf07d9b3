"""What rank 0 tells the other ranks, and what they answer, as bytes on a stream. Pure.

A message is a length (4 bytes), a msgpack header, and the arrays whose sizes the header gives.
Activations and sums do not travel here, but over the ranks' collectives.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from helix_mq.errors import FrameError
from helix_mq.models.quantisation import Quantisation

Array = npt.NDArray[Any]

MAX_HEADER_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")
LENGTH_BYTES = _LENGTH.size

_DTYPES: dict[str, np.dtype[Any]] = {"i4": np.dtype("<i4"), "i8": np.dtype("<i8")}


class ArrayForm(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]


class _Order(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    arrays: tuple[ArrayForm, ...] = ()


class LoadPart(_Order, frozen=True, tag="load", kw_only=True):
    """Meet the others, then read this rank's part. Answered by Ready."""

    meeting: str
    rank: int
    size: int
    folder: str
    first: int
    end: int
    device: str
    dtype: str
    attention: str
    quantise: Quantisation = Quantisation.NONE
    threads: int


class Allocate(_Order, frozen=True, tag="allocate", kw_only=True):
    """A KV cache, in place of any before. Answered by Done."""

    total_pages: int
    page_tokens: int


class Enlarge(_Order, frozen=True, tag="enlarge", kw_only=True):
    """Arrays: used pages (i8). Answered by Done."""

    total_pages: int


class Cut(_Order, frozen=True, tag="cut", kw_only=True):
    """Arrays: sources, targets, used pages (i8 each). Answered by Done."""

    total_pages: int


class RunSegment(_Order, frozen=True, tag="run", kw_only=True):
    """One segment of a pass; not answered. Rank 0 then spreads its stream.

    rows: the batch's row numbers in tensor order. ends_model: whether logits may be wanted. Arrays:
    starts, kv_lens, tables (i4), positions, slots, fresh_pages (i8), and the three of LastTokens
    (i4), empty where the segment does not end the model.
    """

    first: int
    end: int
    rows: tuple[int, ...]
    ends_model: bool


Order = LoadPart | Allocate | Enlarge | Cut | RunSegment


class Up(_Order, frozen=True, tag="up", kw_only=True):
    """The process runs and takes orders."""


class Ready(_Order, frozen=True, tag="ready", kw_only=True):
    weight_bytes: int


class Done(_Order, frozen=True, tag="done", kw_only=True):
    pass


class Failed(_Order, frozen=True, tag="failed", kw_only=True):
    """no_memory: the order was not carried out, and all is as it was. Otherwise the rank ends."""

    reason: str
    no_memory: bool = False


Answer = Up | Ready | Done | Failed
Message = Order | Answer

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


@dataclass(frozen=True, slots=True)
class Received:
    message: Message
    arrays: tuple[Array, ...]


def encode(message: Message, arrays: Sequence[Array] = ()) -> list[bytes | memoryview]:
    """Buffers to be written one after the other. Arrays are int32 or int64."""
    whole = [np.ascontiguousarray(a) for a in arrays]
    forms = tuple(ArrayForm(a.dtype.str[1:], a.shape) for a in whole)
    header = _encoder.encode(msgspec.structs.replace(message, arrays=forms))
    if len(header) > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {len(header)} bytes for a rank", reason="size")
    return [
        _LENGTH.pack(len(header)) + header,
        *(a.reshape(-1).view(np.uint8).data for a in whole if a.size),
    ]


def header_bytes(length: bytes) -> int:
    """Of the header that follows; FrameError when that is too many."""
    (count,) = _LENGTH.unpack(length)
    if not 0 < count <= MAX_HEADER_BYTES:
        raise FrameError(f"a rank's header of {count} bytes", reason="size")
    return int(count)


def decode_header(header: bytes | bytearray) -> tuple[Message, tuple[Array, ...]]:
    """The message, and empty arrays to read the rest into; FrameError when it is malformed."""
    try:
        message = _decoder.decode(header)
    except msgspec.MsgspecError as e:
        raise FrameError(f"a rank's message: {e}", reason="header") from None
    total = 0
    for form in message.arrays:
        if form.dtype not in _DTYPES or len(form.shape) > 3 or min(form.shape, default=0) < 0:
            raise FrameError(f"a rank's array {form}", reason="array")
        count = 1
        for extent in form.shape:
            count *= extent
        total += count * _DTYPES[form.dtype].itemsize
        if total > MAX_ARRAY_BYTES:
            raise FrameError(f"arrays of {total} bytes for a rank", reason="size")
    arrays = tuple(np.empty(f.shape, _DTYPES[f.dtype]) for f in message.arrays)
    return message, arrays
