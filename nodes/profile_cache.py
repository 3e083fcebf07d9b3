"""Profiles kept between runs: one small JSON file each in the model cache folder.

A file's name is a digest of what the times depend on. Files are checked when read; what cannot be
read or written costs a measurement, never an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from helix_mq.step_tables import MAX_SECONDS, MIN_SECONDS
from nodes.profile import TIME, Point, Profile

log = logging.getLogger(__name__)

FOLDER = "profiles"
_VERSION = 2
"""Raise when what is measured changes."""
_MAX_BYTES = 64 * 1024

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
_Seconds = Annotated[float, msgspec.Meta(ge=MIN_SECONDS, le=MAX_SECONDS)]
_Text = Annotated[str, msgspec.Meta(max_length=64)]


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What step times depend on. memory_bytes: 0 unless somebody limited it."""

    model_digest: str
    dtype: str
    device: str
    threads: int
    attention: str
    torch_version: str
    first_layer: int
    num_layers: int
    context_tokens: int
    memory_bytes: int

    def name(self) -> str:
        state = msgspec.json.encode([_VERSION, asdict(self)], order="sorted")
        return hashlib.sha256(state).hexdigest()[:32] + ".json"


class _Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batch: _Count
    median_s: _Seconds
    best_s: _Seconds
    repeats: _Count


_Points = Annotated[tuple[_Point, ...], msgspec.Meta(min_length=2, max_length=64)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_seconds: _Seconds
    context_tokens: _Count
    prefill: _Points
    decode: _Points
    prefill_end: _Text
    decode_end: _Text
    busy_share: Annotated[float, msgspec.Meta(ge=0, le=1)]


def find(cache: Path, key: ProfileKey, max_seconds: float) -> Profile | None:
    """The kept profile; None too where one was cut short by less time than there is now."""
    path = cache / FOLDER / key.name()
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        kept = msgspec.json.decode(content, type=_File)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.warning("%s: passed over, it cannot be read: %s", path, e)
        return None
    if TIME in (kept.prefill_end, kept.decode_end) and kept.max_seconds < max_seconds:
        return None
    return Profile(
        context_tokens=kept.context_tokens,
        prefill=_points(kept.prefill),
        decode=_points(kept.decode),
        prefill_end=kept.prefill_end,
        decode_end=kept.decode_end,
        busy_share=kept.busy_share,
    )


def keep(cache: Path, key: ProfileKey, profile: Profile, max_seconds: float) -> None:
    """Writes the file whole or not at all."""
    folder = cache / FOLDER
    temporary = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = msgspec.json.encode({"max_seconds": max_seconds, **asdict(profile)})
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, folder / key.name())
    except OSError as e:
        log.warning("%s: the profile cannot be kept: %s", folder, e.strerror)
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _points(points: tuple[_Point, ...]) -> tuple[Point, ...]:
    return tuple(Point(p.batch, p.median_s, p.best_s, p.repeats) for p in points)
