"""Which attention backend a slice uses, and why, in words.

On CUDA the candidates are tried from fastest to plainest, each on the device with the model's own
head sizes; the first that computes attention is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from nodes.model.attention.base import AttentionBackend, BackendUnavailable
from nodes.model.attention.gather import GatherAttention
from nodes.model.attention.kernels import FlashAttention2, FlashAttention3, TorchVarlen
from nodes.model.attention.native import NativeAttention
from nodes.model.attention.paged import PagedAttention
from nodes.model.attention.trial import find_fault

AUTO = "auto"
FLASH_ATTN = "flash_attn"
TORCH_FLASH = "torch_flash"
CPU = "cpu"
HOPPER = 9
"""Major number of the compute capability that FlashAttention 3 is for."""
NAMES = (AUTO, FLASH_ATTN, TORCH_FLASH, CPU)


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """A backend, and the sentence that says why it was chosen."""

    backend: AttentionBackend
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """family: the name that asks for it; title: for people; build: the backend, or
    BackendUnavailable."""

    family: str
    title: str
    build: Callable[[], AttentionBackend]


def choose_attention(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, override: str = AUTO
) -> AttentionChoice:
    """override: one of NAMES. ConfigError when it names no backend or none that works here."""
    if override not in NAMES:
        raise ConfigError(
            f"attention={override!r} is unknown; use {', '.join(NAMES)}", param="attention"
        )
    on_cpu = device.type == "cpu"
    if on_cpu != (override == CPU) and override != AUTO:
        raise ConfigError(
            f"attention={override!r} does not run on {device}; use auto", param="attention"
        )
    if on_cpu:
        known = cpu_candidates(config.head_dim, device, dtype)
    else:
        known = cuda_candidates(device, dtype)
    candidates = [c for c in known if override in (AUTO, c.family)]
    return first_working(candidates, lambda b: find_fault(b, config, device, dtype))


def first_working(
    candidates: Sequence[Candidate], fault_of: Callable[[AttentionBackend], str | None]
) -> AttentionChoice:
    """The first candidate without a fault, and what was wrong with those before it."""
    passed_over: list[str] = []
    for candidate in candidates:
        try:
            backend = candidate.build()
        except BackendUnavailable as error:
            passed_over.append(f"{candidate.title}: {error}")
            continue
        fault = fault_of(backend)
        if fault is None:
            why = f" (passed over {'; '.join(passed_over)})" if passed_over else ""
            return AttentionChoice(backend, candidate.title + why)
        passed_over.append(f"{candidate.title}: {fault}")
    raise ConfigError(f"no attention works here: {'; '.join(passed_over)}", param="attention")


def cpu_candidates(width: int, device: torch.device, dtype: torch.dtype) -> list[Candidate]:
    """Fastest first; the last, which `cpu` asks for, is what the others are tried against."""
    return [
        Candidate(
            AUTO,
            "compiled kernels that read pages",
            lambda: NativeAttention(width, device=device, dtype=dtype),
        ),
        Candidate(
            CPU,
            "PyTorch's CPU kernels over gathered pages",
            lambda: GatherAttention(device=device, dtype=dtype),
        ),
    ]


def cuda_candidates(device: torch.device, dtype: torch.dtype) -> list[Candidate]:
    """Fastest first."""

    def paged(
        name: str, load: Callable[[], FlashAttention2 | FlashAttention3 | TorchVarlen]
    ) -> Callable[[], AttentionBackend]:
        def build() -> AttentionBackend:
            if dtype not in (torch.float16, torch.bfloat16):
                raise BackendUnavailable(f"it computes in 16 bits, not in {dtype}")
            return PagedAttention(name, load(), device)

        return build

    def hopper() -> FlashAttention3:
        # Elsewhere its kernels may be missing, and then it ends the process.
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            if major != HOPPER:
                raise BackendUnavailable(f"it is for compute capability 9, not {major}.{minor}")
        return FlashAttention3.load()

    return [
        Candidate(FLASH_ATTN, "FlashAttention 3", paged("flash_attn_3", hopper)),
        Candidate(FLASH_ATTN, "FlashAttention 2", paged("flash_attn_2", FlashAttention2.load)),
        Candidate(
            TORCH_FLASH, "PyTorch's FlashAttention kernels", paged("torch_varlen", TorchVarlen.load)
        ),
        Candidate(
            TORCH_FLASH,
            "PyTorch's attention over gathered pages",
            lambda: GatherAttention(device=device, dtype=dtype),
        ),
    ]
