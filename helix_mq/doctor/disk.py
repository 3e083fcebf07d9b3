"""Room and permission where files are written: the model cache, the journal."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from helix_mq.doctor.findings import Finding, ok, problem, warning

CHECK = "disk"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """`folder` is made at the start where it is not there; then `free_bytes` and `writable` are of
    the nearest folder that is. `need_bytes`: how much may be written."""

    purpose: str
    folder: str
    writable: bool
    free_bytes: int
    need_bytes: int
    setting: str


def check_disk(facts: DiskFacts) -> Finding:
    where = f"{facts.purpose} in {facts.folder}"
    if not facts.writable:
        return problem(
            CHECK,
            f"{where}: this user may not write there",
            "this process will not start, or not keep what it should",
            f"give it the folder (`chown`), or set {facts.setting} to another one",
        )
    room = f"{facts.free_bytes / _GIB:.1f} GiB free, up to {facts.need_bytes / _GIB:.1f} GiB needed"
    if facts.free_bytes < facts.need_bytes:
        return warning(
            CHECK,
            f"{where}: {room}",
            "once the disk is full, what should be written is refused",
            f"make room, or set {facts.setting} to a larger disk",
        )
    return ok(CHECK, f"{where}: {room}")


def collect_disk(purpose: str, folder: Path, need_bytes: int, setting: str) -> DiskFacts:
    there = folder.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return DiskFacts(
        purpose,
        str(folder),
        there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        shutil.disk_usage(there).free,
        need_bytes,
        setting,
    )
