"""One part in a process of its own: `python -m bench.engine_gpu.part JOB.json FOUND.json`."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.engine_gpu.parts import PARTS, find_part
from bench.engine_gpu.roofline import Ceilings, measure_ceilings
from bench.engine_gpu.setup import Part, Say, Setup, dtype_of, full_setup, tiny_setup
from bench.live_run import say


class Job(msgspec.Struct, frozen=True):
    """device: as torch has it. ceilings: None to measure them first."""

    part: str
    device: str
    tiny: bool
    ceilings: Ceilings | None = None


class Found(msgspec.Struct, frozen=True):
    """What the device is, and what the part gave."""

    ceilings: Ceilings
    device: dict[str, Any]
    part: Part


def find(job: Job, say: Say) -> Found:
    """Runs a part. Whatever it raises becomes its reason."""
    device = torch.device(job.device)
    if job.ceilings is None:
        say(f"what {device} copies and multiplies")
        ceilings = measure_ceilings(device, dtype_of(device), small=job.tiny)
    else:
        ceilings = job.ceilings
    setup = (tiny_setup if job.tiny else full_setup)(device, ceilings)
    facts = device_facts(setup)
    return Found(ceilings, facts, run_part(job.part, setup, say))


def run_part(name: str, setup: Setup, say: Say) -> Part:
    started = time.perf_counter()
    found: Part
    try:
        found = find_part(PARTS[name])(setup, say)
    except Exception as e:  # Whatever a foreign library raises, it is no reason to find nothing.
        traceback.print_exc()
        last = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {str(e).strip()[:500]} ({last.name}, line {last.lineno})"
        found = {"passed": False, "reason": reason}
    return found | {
        "seconds": time.perf_counter() - started,
        "peak_bytes": _peak_bytes(setup.device),
    }


def device_facts(setup: Setup) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "type": setup.device.type,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "copy_bytes_per_s": setup.ceilings.bytes_per_s,
        "product_flop_per_s": setup.ceilings.flop_per_s,
        "torch": str(torch.__version__),
    }
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        facts["name"] = properties.name
        facts["memory_bytes"] = properties.total_memory
        facts["cuda"] = str(torch.version.cuda)
    return facts


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main() -> None:
    job_path, found_path = Path(sys.argv[1]), Path(sys.argv[2])
    job = msgspec.json.decode(job_path.read_bytes(), type=Job)
    found_path.write_bytes(msgspec.json.encode(find(job, say)))


if __name__ == "__main__":
    main()
