"""What was asked for as a job and a list of systems."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.engine.types import Case, Job, System
from helix_mq.models.resolve import find_demo_gguf, resolve_model

_MODULES = {
    "transformers": "with_transformers",
    "llama-cpp": "with_llama_cpp",
    "vllm": "with_vllm",
}


def job_of(model: Path | None, cases: Sequence[Case], device: str, threads: int) -> Job:
    """The model's folder, and the file it came of. ModelFormatError where there is none."""
    path = model if model is not None else find_demo_gguf()
    return Job(
        folder=resolve_model(path),
        gguf=path if path.suffix.lower() == ".gguf" else None,
        device=device,
        threads=threads,
        batch=max(case.batch for case in cases),
        context=max(case.context + case.new_tokens for case in cases),
    )


def systems_of(
    dtypes: Sequence[str],
    beside: Sequence[str],
    pythons: Mapping[str, Path | None],
    job: Job,
) -> tuple[list[System], dict[str, str]]:
    """Ours first, then theirs, in each number format; and why any of them is missing.

    vLLM computes in bfloat16 here, its own choice on CPUs; llama.cpp in what its file has.
    """
    here = Path(sys.executable)
    systems = [System(f"helix_mq {dtype}", "with_helix", dtype, here) for dtype in dtypes]
    missing: dict[str, str] = {}
    for name in beside:
        python = pythons[name]
        if name == "transformers":
            if python is None and importlib.util.find_spec("transformers") is None:
                missing[name] = "not installed here; pip install transformers"
                continue
            systems += [
                System(f"transformers {dtype}", _MODULES[name], dtype, python or here)
                for dtype in dtypes
            ]
        elif python is None:
            missing[name] = f"name its Python with --python-{name.split('-')[0]}"
        elif name == "llama-cpp" and job.gguf is None:
            missing[name] = "it reads GGUF files only; name one with --model"
        else:
            dtype = "bfloat16" if name == "vllm" else "gguf"
            label = f"{name} bfloat16" if name == "vllm" else name
            systems.append(System(label, _MODULES[name], dtype, python))
    return systems, missing
