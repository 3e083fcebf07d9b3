"""The model that the settings name: there, complete, understood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helix_mq.doctor.findings import Finding, ok, problem
from helix_mq.errors import HelixError
from helix_mq.models.report import inspect_model
from helix_mq.models.resolve import resolve_model

CHECK = "model"
_GGUF = b"GGUF"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`text` says what it is; `fault` what is wrong with it, in words."""

    path: str
    text: str = ""
    fault: str = ""
    incomplete: bool = False
    cache_bytes: int = 0
    """What its conversion may take, for a GGUF file; 0 for a folder."""


def check_model(facts: ModelFacts) -> Finding:
    if not facts.fault:
        return ok(CHECK, f"{facts.path}: {facts.text}")
    if facts.incomplete:
        return problem(
            CHECK,
            f"{facts.path}: {facts.fault}",
            "a node cannot load the layers whose files are missing; a router needs none of them",
            "copy or download the rest; `helix-mq model inspect PATH` says what is there",
        )
    return problem(
        CHECK,
        f"{facts.path}: {facts.fault}",
        "this process will not start",
        "set `model` to a Hugging Face folder or a GGUF file, or give --model; "
        "`helix-mq model demo` prints one",
    )


def collect_model(path: Path, *, weights: bool) -> ModelFacts:
    """`weights`: this process reads them. GGUF files are looked at, not converted."""
    path = path.expanduser()
    try:
        if path.is_file() and path.suffix.lower() == ".gguf":
            return _gguf(path)
        report = inspect_model(resolve_model(path))
    except HelixError as e:
        return ModelFacts(str(path), fault=str(e))
    if weights and report.disk_problem is not None:
        return ModelFacts(str(path), fault=report.disk_problem, incomplete=True)
    return ModelFacts(
        str(path),
        f"{report.family}, {report.num_layers} layers, {report.model_bytes / _GIB:.2f} GiB in "
        f"{report.dtype}, context {report.max_context:,}",
    )


def _gguf(path: Path) -> ModelFacts:
    try:
        with path.open("rb") as f:
            head = f.read(len(_GGUF))
        size = path.stat().st_size
    except OSError as e:
        return ModelFacts(str(path), fault=f"cannot be read: {e.strerror}")
    if head != _GGUF:
        return ModelFacts(str(path), fault="its name says GGUF, its content does not")
    # Four bits become 32 at worst.
    return ModelFacts(
        str(path), f"a GGUF file of {size / _GIB:.2f} GiB, converted once", cache_bytes=8 * size
    )
