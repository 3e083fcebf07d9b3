"""What this process is before it joins: model folder, device, dtype, memory budget.

Found out once at start; the result is what Register tells the router.
"""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from helix_mq.errors import ConfigError
from helix_mq.messages.control import StepTimes
from helix_mq.models.config import ModelConfig
from helix_mq.models.digest import model_digest
from helix_mq.models.quantisation import Quantisation
from nodes.model.dtype import choose_dtype
from nodes.model.parallel.lead import rank_devices
from nodes.model.parallel.split import check_groups, check_split
from nodes.model.quantised import check_quantised, check_widths
from nodes.settings import NodeSettings
from nodes.shared_device import device_id

log = logging.getLogger(__name__)

_CPU_SHARE = 0.5
"""Of free main memory: other processes live there too."""
_GPU_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    folder: Path
    model_digest: str
    device: torch.device
    device_text: str
    dtype: torch.dtype
    memory_bytes: int
    device_id: str = ""
    """What other nodes on its device say as well; see nodes.shared_device."""
    times: StepTimes | None = None
    """What its device has measured with this model; None where it has not."""


def identify(settings: NodeSettings, folder: Path) -> NodeIdentity:
    """Looks at the machine. ConfigError when the settings ask for what is not here."""
    device = find_device(settings.device)
    threads = settings.threads or _default_threads()
    torch.set_num_threads(threads)
    config = ModelConfig.from_folder(folder)
    ranks = settings.tensor_parallel
    check_split(config, ranks)
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    ranks_on = rank_devices(device, ranks, devices)
    quantise = Quantisation(settings.quantise)
    check_quantised(quantise, device)
    check_widths(quantise, config)
    check_groups(quantise, config, ranks)
    dtype, reason = choose_dtype(settings.dtype, config, device)
    log.info("computing in %s: %s", str(dtype).removeprefix("torch."), reason)
    return NodeIdentity(
        folder=folder,
        model_digest=model_digest(folder),
        device=device,
        device_text=_device_text(device, threads) + (f" x {ranks}" if ranks > 1 else ""),
        dtype=dtype,
        memory_bytes=int(settings.memory) if settings.memory else _free_memory(ranks_on),
        device_id=device_id(settings.shares_device, ranks_on, threads),
    )


def find_device(wanted: str) -> torch.device:
    """The device of the `device` setting. ConfigError where this machine has none such."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device = {wanted!r}: this torch sees no CUDA device; check the driver with "
            'nvidia-smi, or set device = "cpu"',
            param="device",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {wanted!r}: this machine has {torch.cuda.device_count()} CUDA devices",
            param="device",
        )
    return device


def _default_threads() -> int:
    return len(os.sched_getaffinity(0))


def _device_text(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    return f"cpu {name} ({threads} thread{'s' if threads > 1 else ''})"


def _free_memory(devices: list[torch.device]) -> int:
    """Of all together; as much of each as the fullest has, since ranks hold the same."""
    if devices[0].type == "cuda":
        free = min(torch.cuda.mem_get_info(device)[0] for device in devices)
        return int(free * _GPU_SHARE) * len(devices)
    return int(psutil.virtual_memory().available * _CPU_SHARE)
