"""Which device a node computes on, so that nodes which share one can be known.

Processes on one device take it from each other: their steps do not overlap, so a batch had better
go through them whole. The router learns it from what nodes say as they register.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

AUTO: Final = "auto"
OWN: Final = "own"
"""Says that no other node computes on this one's device."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def device_id(wanted: str, devices: Sequence[torch.device], threads: int) -> str:
    """What nodes on one device have in common; empty where this one has its device to itself, or
    nothing is known. `wanted` is the setting: AUTO, OWN, or a name that the operator gives."""
    if wanted == OWN:
        return ""
    if wanted != AUTO:
        return wanted
    if devices[0].type == "cuda":
        return _digest("gpu", *sorted(_gpu(device) for device in devices))
    return _cores(threads)


def _gpu(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    # Older torch does not tell it; then the place in this machine must do.
    uuid = getattr(properties, "uuid", None)
    return str(uuid) if uuid is not None else f"{_machine()} {device}"


def _cores(threads: int) -> str:
    """Of the cores that this process may use; of use only where it takes most of them."""
    cores = sorted(os.sched_getaffinity(0))
    boot = _machine()
    if not boot or 2 * threads <= len(cores):
        return ""
    return _digest("cpu", boot, " ".join(map(str, cores)))


def _machine() -> str:
    """This start of this machine, and the container: those have limits of their own."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {platform.node()}"
    except OSError:
        return ""


def _digest(*facts: str) -> str:
    """Who reads it learns nothing of the machine."""
    return hashlib.blake2s("\n".join(facts).encode(), digest_size=12).hexdigest()
