"""The header of one safetensors file: where each tensor lies, without reading any of them.

The file is untrusted: the header's length is bounded, and every byte range is checked against the
shape, the dtype and the file's size, so that what this module returns can be read blindly.
Format (https://github.com/huggingface/safetensors): header length in 8 bytes little-endian, JSON,
tensor data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from helix_mq.errors import ModelFormatError
from helix_mq.models.fields import parse_json_object

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_MAX_DIMENSIONS = 8
_MAX_NAME_CHARACTERS = 512
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor on disk: `file[begin:end]` holds `shape` elements of `dtype`, row-major."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Name -> entry of every tensor in `path`, in file order; ModelFormatError if malformed."""
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _bad(path, f"is {file_bytes} bytes long, too short for a header")
            header_bytes = int.from_bytes(prefix, "little")
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _bad(
                    path, f"claims a header of {header_bytes} bytes in a file of {file_bytes}"
                )
            raw = file.read(header_bytes)
    except OSError as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) != header_bytes:
        raise _bad(path, "ended while its header was read")
    header = parse_json_object(raw, f"the header of {path}")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    entries = [_entry(path, name, info, data_start) for name, info in header.items()]
    entries.sort(key=lambda e: (e.begin, e.end, e.name))
    at = data_start
    for entry in entries:
        if entry.begin != at:
            raise _bad(path, f"has a gap or an overlap before {entry.name!r}")
        at = entry.end
    if at != file_bytes:
        raise _bad(path, f"is {file_bytes} bytes long but its header describes {at}; copy it again")
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, info: object, data_start: int) -> TensorEntry:
    shown = repr(name[:80])
    if not 0 < len(name) <= _MAX_NAME_CHARACTERS:
        raise _bad(path, f"has a tensor with a name of {len(name)} characters")
    if not isinstance(info, dict):
        raise _bad(path, f"describes {shown} by something other than an object")
    dtype, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise _bad(path, f"has {shown} of dtype {str(dtype)[:40]!r}, which is not supported")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad(path, f"has {shown} with an invalid shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise _bad(path, f"has {shown} with invalid data_offsets")
    if math.prod(shape) * _DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _bad(path, f"has {shown} whose bytes do not fit its shape and dtype")
    begin, end = data_start + offsets[0], data_start + offsets[1]
    return TensorEntry(name, path, dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 48 for v in value
    )


def _bad(path: Path, what: str) -> ModelFormatError:
    return ModelFormatError(f"{path} {what}")
