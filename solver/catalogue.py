"""Which machines there are: GPU types by datasheet, and tensor-parallel groups of them by name.

Only figures that makers publish, each entry naming where; how much of them a model gets is in
roofline.py. Compute is dense FP16 with FP32 accumulation (sparsity never counted, and on GeForce
cards half of what FP16 accumulation gives). A name that cannot be read says what is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from helix_mq.errors import ConfigError

MACHINE_SIZES: Final = (1, 2, 4, 8)
"""GPUs that work on each layer together."""
LOW_POWER_W: Final = 75.0
"""What a PCIe slot alone may deliver: boards up to it cannot hold their clock in long products."""


class UnknownMachine(ConfigError):
    """No machine type of this name."""

    code = "unknown_machine"


@dataclass(frozen=True, slots=True)
class GpuType:
    """One device by its datasheet.

    `nvlink_bytes_per_s` is per direction and GPU, 0 where GPUs of one machine meet over PCIe;
    `vram_bytes` is the decimal figure printed on the box.
    """

    name: str
    fp16_flops_per_s: float
    memory_bytes_per_s: float
    vram_bytes: int
    board_power_w: float
    nvlink_bytes_per_s: float
    source: str

    @property
    def low_power(self) -> bool:
        return self.board_power_w <= LOW_POWER_W


@dataclass(frozen=True, slots=True)
class Machine:
    """`count` devices of one type, each layer split over all of them."""

    gpu: GpuType
    count: int = 1

    def __post_init__(self) -> None:
        if self.count not in MACHINE_SIZES:
            raise UnknownMachine(
                f"{self.gpu.name}: {self.count} devices cannot share a layer evenly; use one of "
                f"{', '.join(map(str, MACHINE_SIZES))}",
                param="count",
            )

    @property
    def name(self) -> str:
        """As `machine` reads it."""
        return self.gpu.name if self.count == 1 else f"{self.gpu.name}x{self.count}"

    @property
    def vram_bytes(self) -> int:
        return self.gpu.vram_bytes * self.count


_GB: Final = 10**9

_TYPES: Final = (
    GpuType("T4", 65e12, 320e9, 16 * _GB, 70, 0, "NVIDIA T4 datasheet, Turing whitepaper"),
    GpuType("V100", 125e12, 900e9, 16 * _GB, 300, 150e9, "NVIDIA V100 datasheet (SXM2, 16 GB)"),
    GpuType("L4", 121e12, 300e9, 24 * _GB, 72, 0, "NVIDIA L4 datasheet (242 with sparsity)"),
    GpuType("A10", 125e12, 600e9, 24 * _GB, 150, 0, "NVIDIA A10 datasheet (250 with sparsity)"),
    GpuType("A100-40", 312e12, 1555e9, 40 * _GB, 400, 300e9, "NVIDIA A100 datasheet (SXM4 40 GB)"),
    GpuType("A100-80", 312e12, 2039e9, 80 * _GB, 400, 300e9, "NVIDIA A100 datasheet (SXM4 80 GB)"),
    GpuType("L40S", 362e12, 864e9, 48 * _GB, 350, 0, "NVIDIA L40S datasheet (733 with sparsity)"),
    GpuType("RTX3090", 71e12, 936e9, 24 * _GB, 350, 0, "NVIDIA GA102 whitepaper"),
    GpuType("RTX4090", 165.2e12, 1008e9, 24 * _GB, 450, 0, "NVIDIA Ada whitepaper"),
    GpuType("RTX5090", 209.5e12, 1792e9, 32 * _GB, 575, 0, "NVIDIA RTX Blackwell whitepaper"),
    GpuType("H100", 989.4e12, 3350e9, 80 * _GB, 700, 450e9, "NVIDIA H100 datasheet (SXM5)"),
    GpuType("H200", 989.4e12, 4800e9, 141 * _GB, 700, 450e9, "NVIDIA H200 datasheet (SXM)"),
    GpuType(
        "B200",
        2250e12,
        8000e9,
        180 * _GB,
        1000,
        900e9,
        "NVIDIA DGX B200 datasheet, an eighth of the system (half of its sparse compute)",
    ),
    GpuType(
        "cpu",
        5.9e12,
        204.8e9,
        128 * _GB,
        270,
        0,
        "Intel Xeon Platinum 8380, one socket: 40 cores x 2.3 GHz x 64 FP32 flops (two AVX-512 "
        "units), 8 channels of DDR4-3200 with 16 GB each; measure the machine you have",
    ),
)

GPU_TYPES: Final[Mapping[str, GpuType]] = {gpu.name: gpu for gpu in _TYPES}

_ALIASES: Final[Mapping[str, str]] = {
    "A100": "A100-40",
    "A10G": "A10",
    "V100-16": "V100",
    "H100-80": "H100",
    "H200-141": "H200",
    "B200-180": "B200",
}
_MAX_NAME: Final = 64
_SPELLING: Final = re.compile(
    r"(?:(?P<before>[0-9]{1,3})X)?(?P<gpu>.+?)(?:X(?P<after>[0-9]{1,3}))?"
)
_BY_KEY: Final[Mapping[str, GpuType]] = {
    **{name.upper(): gpu for name, gpu in GPU_TYPES.items()},
    **{alias: GPU_TYPES[name] for alias, name in _ALIASES.items()},
}


def machine(name: str) -> Machine:
    """The machine of that name; UnknownMachine (a ConfigError) lists the names there are.

    A GPU type, alone or with 2, 4 or 8 of it sharing each layer: `L4`, `L4x2`, `2xL4`. Case does
    not matter, nor do spaces, nor a maker's name or `GB` around it: `8 x H100`,
    `NVIDIA A100-80GB`, `RTX 4090`. `A100` is the 40 GB one, as in the published clusters.
    """
    key = re.sub(r"[\s_]+", "", name[: _MAX_NAME + 1]).upper()
    match = _SPELLING.fullmatch(key) if len(name) <= _MAX_NAME else None
    if match is not None and not (match["before"] and match["after"]):
        gpu = _BY_KEY.get(_plain(match["gpu"]))
        count = int(match["before"] or match["after"] or 1)
        if gpu is not None and count in MACHINE_SIZES and not (gpu.name == "cpu" and count > 1):
            return Machine(gpu, count)
    sizes = ", ".join(f"x{n}" for n in MACHINE_SIZES[1:])
    raise UnknownMachine(
        f"machine type {name!r:.80} is not known: use one of {', '.join(GPU_TYPES)} (A100 means "
        f"A100-40), all but cpu also with {sizes} behind it; or give measured tables for the node",
        param="type",
    )


def _plain(spelling: str) -> str:
    """Upper-case spelling without the maker, the unit of memory, or `RTX-`'s dash."""
    spelling = re.sub(r"^(?:NVIDIA|GEFORCE|TESLA|-)+", "", spelling)
    spelling = re.sub(r"^RTX-", "RTX", spelling)
    return re.sub(r"(-[0-9]+)G(?:I?B)?$", r"\1", spelling)
