"""The device of a node as `helix-mq doctor` sees it: torch, driver, GPUs, attention, memory."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from helix_mq.doctor.findings import Finding, ok, problem, warning
from helix_mq.errors import HelixError
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import resolve_model
from nodes.identity import find_device
from nodes.model.attention.choose import FLASH_ATTN, HOPPER, choose_attention
from nodes.model.dtype import choose_dtype
from nodes.settings import NodeSettings

CHECK = "gpu"
FLASH_CAPABILITY = (8, 0)
"""FlashAttention 2 needs Ampere or newer."""
FLASH_HEAD = 256
"""The widest head of FlashAttention 2."""
FEW_FREE = 0.5
_GIB = 1 << 30
_ASK_S = 10


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """`cuda_build`: the CUDA that torch was built for, empty without. `driver`: what nvidia-smi
    says, empty where it is not there; `driver_fault` if it ends with an error. `flash_attn`: its
    version, or `flash_fault`, why it cannot be imported. `torch_said`: torch's own words."""

    torch: str
    cuda_build: str = ""
    cuda_works: bool = False
    torch_said: str = ""
    driver: str = ""
    driver_fault: str = ""
    gpus: tuple[Gpu, ...] = ()
    flash_attn: str = ""
    flash_fault: str = ""


def check_device(facts: DeviceFacts) -> list[Finding]:
    if facts.driver_fault:
        return [
            problem(
                CHECK,
                f"nvidia-smi ends with an error: {facts.driver_fault}",
                "the driver is not loaded, or of another version than its library",
                "reboot after a driver upgrade; else load or reinstall the driver",
            )
        ]
    if not facts.driver and not facts.cuda_works:
        return [ok(CHECK, f"torch {facts.torch}; no NVIDIA driver: this machine computes on CPU")]
    if not facts.cuda_build:
        return [
            problem(
                CHECK,
                f"driver {facts.driver}, but torch {facts.torch} is built without CUDA",
                "the GPU would not be used",
                "install a CUDA build: pip install torch --index-url "
                "https://download.pytorch.org/whl/cu126",
            )
        ]
    if not facts.cuda_works:
        return [
            problem(
                CHECK,
                f"torch {facts.torch} for CUDA {facts.cuda_build} does not see the GPU of driver "
                f"{facts.driver}: {facts.torch_said or 'no reason given'}",
                "the GPU would not be used",
                "upgrade the driver, or install a torch for an older CUDA; in a container, pass "
                "the GPU on (--gpus all)",
            )
        ]
    driver = facts.driver or "unknown"
    found = [ok(CHECK, f"torch {facts.torch} for CUDA {facts.cuda_build}, driver {driver}")]
    return found + [_gpu(g) for g in facts.gpus] + _flash(facts)


def _gpu(gpu: Gpu) -> Finding:
    text = (
        f"{gpu.name}: {gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free, "
        f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    )
    if gpu.free_bytes < FEW_FREE * gpu.total_bytes:
        return warning(
            CHECK,
            text,
            "another process holds more than half of it; a node takes 90% of what is free",
            "`nvidia-smi` names it; stop it, or set `memory` to what this node may have",
        )
    return ok(CHECK, text)


def _flash(facts: DeviceFacts) -> list[Finding]:
    old = [g.name for g in facts.gpus if g.capability < FLASH_CAPABILITY]
    if facts.flash_attn and not old:
        return [ok(CHECK, f"flash-attn {facts.flash_attn}")]
    if old:
        return [ok(CHECK, f"flash-attn does not run on {old[0]}; PyTorch's kernels are used")]
    return [
        warning(
            CHECK,
            f"flash-attn cannot be imported: {facts.flash_fault}",
            "PyTorch's own FlashAttention kernels are used; decodes with long contexts are slower",
            f"pip install flash-attn --no-build-isolation (against torch {facts.torch})",
        )
    ]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """`device_fault`: why the device that is asked for is not there."""

    device: str
    free_bytes: int = 0
    wanted_bytes: int | None = None
    device_fault: str = ""


def check_memory(facts: MemoryFacts) -> list[Finding]:
    if facts.device_fault:
        return [
            problem(
                "memory",
                facts.device_fault,
                "this node will not start",
                'set `device` to one that is there; "auto" takes the first GPU, or the CPU',
            )
        ]
    free = f"{facts.free_bytes / _GIB:.1f} GiB free on {facts.device}"
    wanted = facts.wanted_bytes
    if wanted is None:
        return [ok("memory", f"{free}, of which most is taken; `memory` sets how much")]
    text = f"memory = {wanted / _GIB:.1f} GiB, {free}"
    if wanted > facts.free_bytes:
        return [
            problem(
                "memory",
                text,
                "loading fails, or the system kills what is largest",
                "set `memory` to less than what is free, or stop what holds it",
            )
        ]
    return [ok("memory", text)]


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    on_gpu: bool
    head_dim: int
    backend: str = ""
    reason: str = ""
    fault: str = ""
    wants_flash: bool = True


def check_attention(facts: AttentionFacts) -> list[Finding]:
    if facts.fault:
        return [
            problem(
                "attention",
                facts.fault,
                "this node will not load any layer",
                'set `attention = "auto"` and `dtype = "auto"`',
            )
        ]
    text = f"{facts.reason}, with heads of {facts.head_dim}"
    if facts.on_gpu and facts.wants_flash and not facts.backend.startswith(FLASH_ATTN):
        why = (
            f"flash-attn computes heads of {FLASH_HEAD} at most"
            if facts.head_dim > FLASH_HEAD
            else "it is right, and slower than flash-attn"
        )
        return [
            warning("attention", text, why, "install flash-attn where the GPU is Ampere or newer")
        ]
    return [ok("attention", text)]


def collect_device() -> DeviceFacts:
    driver, driver_fault = _driver()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
    said = str(caught[0].message).splitlines()[0][:300] if caught else ""
    gpus = tuple(_look(i) for i in range(torch.cuda.device_count())) if works else ()
    version, flash_fault = _flash_attn(gpus)
    return DeviceFacts(
        torch=torch.__version__,
        cuda_build=torch.version.cuda or "",
        cuda_works=works,
        torch_said=said,
        driver=driver,
        driver_fault=driver_fault,
        gpus=gpus,
        flash_attn=version,
        flash_fault=flash_fault,
    )


def _driver() -> tuple[str, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "", ""
    try:
        said = subprocess.run(
            [command, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return "", f"{type(e).__name__}"
    lines = said.stdout.strip().splitlines()
    if said.returncode or not lines:
        return "", (said.stderr or said.stdout).strip()[:200] or f"code {said.returncode}"
    return lines[0].strip(), ""


def _flash_attn(gpus: Sequence[Gpu]) -> tuple[str, str]:
    """Its version, or why there is none. On Hopper alone, version 3 does as well."""
    try:
        import flash_attn
    except Exception as e:  # What a library built for another PyTorch raises is unknown.
        if gpus and all(gpu.capability[0] == HOPPER for gpu in gpus) and _flash_3():
            return "3 (flash_attn_interface)", ""
        return "", (str(e) or type(e).__name__).splitlines()[0][:300]
    return str(getattr(flash_attn, "__version__", "of unknown version")), ""


def _flash_3() -> bool:
    try:
        import flash_attn_interface  # noqa: F401
    except Exception:
        return False
    return True


def _look(index: int) -> Gpu:
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(
        torch.cuda.get_device_name(index), free, total, torch.cuda.get_device_capability(index)
    )


def collect_memory(given: NodeSettings) -> MemoryFacts:
    wanted = int(given.memory) if given.memory is not None else None
    try:
        device = find_device(given.device)
    except HelixError as e:
        return MemoryFacts(given.device, wanted_bytes=wanted, device_fault=str(e))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return MemoryFacts(str(device), free, wanted)


def collect_attention(given: NodeSettings) -> AttentionFacts:
    """Runs the attention that would be chosen, once, with the model's own head size."""
    config = ModelConfig.from_folder(resolve_model(given.model))
    try:
        device = find_device(given.device)
        dtype = torch.float32
        if given.dtype != "auto" or device.type == "cuda":
            dtype = choose_dtype(given.dtype, config, device).dtype
        choice = choose_attention(config, device, dtype, given.attention)
    except HelixError as e:
        return AttentionFacts(given.device != "cpu", config.head_dim, fault=str(e))
    return AttentionFacts(
        on_gpu=device.type == "cuda",
        head_dim=config.head_dim,
        backend=choice.backend.name,
        reason=choice.reason,
        wants_flash=dtype is not torch.float32,
    )
