"""Limits of the system on this process: open files, locked memory, shared memory."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from helix_mq.doctor.findings import Finding, ok, problem, warning

CHECK = "limits"
LEAST_FILES = 256
"""Below, not even a few peers and clients."""
GOOD_FILES = 4096
"""A router has one per HTTP connection; a node one per peer and a dozen of its own."""
LEAST_LOCKED_BYTES = 64 * 1024
GOOD_SHARED_BYTES = 64 << 20
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """None: without limit, or (shared memory) not there."""

    files_soft: int | None
    files_hard: int | None
    locked_bytes: int | None
    shared_free_bytes: int | None


def check_limits(facts: LimitFacts) -> list[Finding]:
    return [_files(facts), _locked(facts), _shared(facts)]


def _files(facts: LimitFacts) -> Finding:
    soft = facts.files_soft
    if soft is None or soft >= GOOD_FILES:
        return ok(CHECK, f"open files: {'unlimited' if soft is None else soft}")
    make = problem if soft < LEAST_FILES else warning
    hard = "unlimited" if facts.files_hard is None else facts.files_hard
    return make(
        CHECK,
        f"open files: {soft} (could be {hard})",
        "each HTTP connection and each peer takes one; past the limit new ones are not accepted",
        "LimitNOFILE=65536 in the service, or `ulimit -n 65536` before the start",
    )


def _locked(facts: LimitFacts) -> Finding:
    limit = facts.locked_bytes
    if limit is None or limit >= LEAST_LOCKED_BYTES:
        size = "unlimited" if limit is None else f"{limit / _MIB:.1f} MiB"
        return ok(CHECK, f"locked memory: {size}")
    return warning(
        CHECK,
        f"locked memory: {limit} bytes",
        "CUDA's pinned buffers and io_uring may be refused",
        "LimitMEMLOCK=infinity in the service, or `ulimit -l unlimited`",
    )


def _shared(facts: LimitFacts) -> Finding:
    free = facts.shared_free_bytes
    if free is None:
        return warning(
            CHECK,
            "there is no /dev/shm",
            "PyTorch and NCCL keep what processes share there",
            "mount a tmpfs on /dev/shm (containers: --shm-size=1g)",
        )
    if free < GOOD_SHARED_BYTES:
        return warning(
            CHECK,
            f"shared memory: {free / _MIB:.0f} MiB free in /dev/shm",
            "PyTorch and NCCL fail when it is full",
            "give the container more (--shm-size=1g), or clear /dev/shm",
        )
    return ok(CHECK, f"shared memory: {free / _MIB:.0f} MiB free")


def collect_limits() -> LimitFacts:
    def limit(which: int, at: int) -> int | None:
        value = resource.getrlimit(which)[at]
        return None if value == resource.RLIM_INFINITY else value

    shared = Path("/dev/shm")
    free: int | None = None
    if shared.is_dir():
        volume = os.statvfs(shared)
        free = volume.f_bavail * volume.f_frsize
    return LimitFacts(
        limit(resource.RLIMIT_NOFILE, 0),
        limit(resource.RLIMIT_NOFILE, 1),
        limit(resource.RLIMIT_MEMLOCK, 0),
        free,
    )
