"""Compiles kernels.cpp for the processor it runs on, once, and keeps the library in the cache.

A PyTorch program already has one OpenMP runtime, libgomp; what is compiled here names the same, so
that both share one team of threads. The library's name is a digest of all that it depends on:
source, flags, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helix_mq.models.resolve import default_cache
from nodes.folder_lock import alone

log = logging.getLogger(__name__)

SWITCH = "HELIX_MQ_NATIVE"
"""Environment variable; `off` leaves everything to PyTorch."""

_SOURCE = Path(__file__).with_name("kernels.cpp")
_HEADERS = sorted(_SOURCE.parent.glob("*.h"))
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_WIDE = "-mprefer-vector-width=512"
"""Compilers take half of an AVX-512 register unless told; refused on other processors."""
_LIMIT_S = 120.0
_WORDS = 300


class CannotBuild(Exception):
    """Why there is no library, in words. Nobody's fault: PyTorch does the work then."""


@dataclass(frozen=True, slots=True)
class Built:
    """library: loaded; None with the reason in words."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def built() -> Built:
    """The library of this process; compiled when the machine has none yet (ten seconds)."""
    if os.environ.get(SWITCH, "").lower() == "off":
        return Built(None, f"{SWITCH} is off")
    try:
        path = _compiled(default_cache() / "native")
        return Built(ctypes.CDLL(str(path)), "compiled for this processor")
    except (CannotBuild, OSError, subprocess.SubprocessError) as error:
        return Built(None, str(error)[:_WORDS])


def _compiled(folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise CannotBuild("no C++ compiler (c++) on this machine")
    wide = "avx512f" in _processor()
    flags = (*_FLAGS, _WIDE) if wide else _FLAGS
    said = subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=_LIMIT_S, check=True
    ).stdout
    sources = [path.read_bytes() for path in (_SOURCE, *_HEADERS)]
    parts = (*sources, " ".join(flags).encode(), said, _processor().encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    path = folder / f"kernels-{digest}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_own(folder)
    # Nodes that start together on a new machine need it compiled only once.
    with alone(folder / "compiling.lock", _LIMIT_S):
        if not (path.is_file() and _ours_alone(path)):
            log.info("compiling kernels for this processor: some ten seconds, once per machine")
            _compile([compiler, *flags], path)
    return path


def _compile(command: Sequence[str], path: Path) -> None:
    """Puts the library at `path`. CannotBuild with what the compiler said."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        fresh = Path(temporary) / path.name
        run = subprocess.run(
            [*command, "-o", str(fresh), str(_SOURCE)],
            capture_output=True,
            timeout=_LIMIT_S,
        )
        if run.returncode:
            words = run.stderr.decode("utf-8", "replace").strip()
            raise CannotBuild(f"{command[0]} failed: {words[:_WORDS]}")
        fresh.chmod(0o700)
        # In one step: other processes may be at it, too.
        fresh.replace(path)


def check_own(folder: Path) -> None:
    """What lies there is executed, so nobody else may write to it, nor put another folder in its
    place. CannotBuild says where they may."""
    folder = folder.resolve()
    if not _ours_alone(folder):
        raise CannotBuild(f"{folder} can be written by others")
    for parent in folder.parents:
        found = parent.stat()
        everybody = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid()) or everybody:
            raise CannotBuild(f"{parent} belongs to another user, or can be written by everybody")


def _ours_alone(path: Path) -> bool:
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> str:
    """What `-march=native` looks at, as far as the system says."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"
