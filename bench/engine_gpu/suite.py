"""The parts in turn, each in a process of its own and within its time: one that fails, hangs or
takes the device down with it leaves its reason, and the others go on."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.engine_gpu.apart import run_apart
from bench.engine_gpu.part import Found, Job
from bench.engine_gpu.parts import PARTS, check_names
from bench.engine_gpu.roofline import Ceilings
from bench.engine_gpu.setup import Part, Say, fields_of
from helix_mq.errors import ConfigError

LIMIT_S = 480.0
"""Of all parts together."""
_LEAST_S = 10.0
"""A part that has not so much time left is not begun."""

RunJob = Callable[[Job, float], tuple[Found | None, str]]
"""From a job and the seconds it may take: what was found, or in words why nothing was."""


def check_device(wanted: str, *, tiny: bool) -> str:
    """`wanted`, with its number. ConfigError where this machine has none such, and for the full
    size on a CPU."""
    device = torch.device(wanted)
    if device.type == "cpu" and not tiny:
        raise ConfigError("--device cpu is for trials only: add --tiny", param="device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {wanted}: torch {torch.__version__} sees no CUDA device here, and this "
            "suite measures one. For a trial of its parts without a GPU: --device cpu --tiny",
            param="device",
        )
    return str(device) if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def run_job(job: Job, limit_s: float) -> tuple[Found | None, str]:
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as place:
        given, found = Path(place) / "job.json", Path(place) / "found.json"
        given.write_bytes(msgspec.json.encode(job))
        # With a line for each thread where a library crashes.
        python = (sys.executable, "-X", "faulthandler")
        reason = run_apart(
            (*python, "-m", "bench.engine_gpu.part", str(given), str(found)), limit_s
        )
        left = _left(found)
        if left is None:
            return None, reason or "its process left no result"
        if reason:
            # After all was measured: libraries may fault when a process ends.
            left.part.setdefault("reason", f"measured to the end, then {reason}")
        return left, ""


def _left(found: Path) -> Found | None:
    """None where a part ended before its result was written whole."""
    try:
        return msgspec.json.decode(found.read_bytes(), type=Found)
    except (OSError, msgspec.DecodeError):
        return None


@dataclass(slots=True)
class Suite:
    """What has been found so far."""

    device: str
    tiny: bool
    run: RunJob = run_job
    limit_s: float = LIMIT_S
    parts: dict[str, Part] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _ceilings: Ceilings | None = None

    def through(self, names: list[str], say: Say) -> Iterator[dict[str, Any]]:
        """The result as JSON after each part. ConfigError for a part of an unknown name."""
        check_names(names)
        began = time.perf_counter()
        for name in names:
            started = time.perf_counter()
            left_s = self.limit_s - (started - began)
            self.parts[name] = self._part(name, left_s, say)
            self.parts[name].setdefault("seconds", time.perf_counter() - started)
            yield {
                "device": self.facts,
                "model": fields_of(tiny=self.tiny),
                "tiny": self.tiny,
                "parts": dict(self.parts),
                "left": names[len(self.parts) :],
                "seconds": time.perf_counter() - began,
            }

    def _part(self, name: str, left_s: float, say: Say) -> Part:
        if left_s < _LEAST_S:
            return _failed(f"not begun: {self.limit_s:.0f} s have passed")
        job = Job(name, self.device, self.tiny, self._ceilings)
        found, reason = self.run(job, min(left_s, PARTS[name].limit_s))
        if found is None:
            say(f"{name}: {reason}")
            return _failed(reason)
        self.facts, self._ceilings = found.device, found.ceilings
        if "reason" in found.part:
            say(f"{name}: {found.part['reason']}")
        return found.part


def _failed(reason: str) -> Part:
    return {"passed": False, "reason": reason}
