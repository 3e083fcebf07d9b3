"""Loads a slice over several ranks: starts them, gives each its part, and reads rank 0's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation
from nodes.model.attention.choose import choose_attention
from nodes.model.parallel.group import RankGroup
from nodes.model.parallel.orders import LoadPart
from nodes.model.parallel.ranks import ProcessRanks
from nodes.model.parallel.slice import LeadSlice
from nodes.model.parallel.split import check_split, rank_config
from nodes.model.parallel.weights import load_part


@dataclass(frozen=True, slots=True)
class PartRequest:
    """What to load, and over how many ranks. device: rank 0's; on CUDA the next ones follow."""

    folder: Path
    layers: LayerRange
    device: torch.device
    dtype: torch.dtype
    attention: str
    size: int
    quantise: Quantisation = Quantisation.NONE


def rank_devices(first: torch.device, size: int, available: int) -> list[torch.device]:
    """A device per rank: so many CUDA devices from `first` on, or the processor for all.

    available: CUDA devices of this machine. ConfigError when they are too few.
    """
    if first.type != "cuda":
        return [first] * size
    begin = first.index or 0
    if begin + size > available:
        raise ConfigError(
            f"tensor_parallel = {size} from {first} on needs {begin + size} CUDA devices; this "
            f"machine has {available}",
            param="tensor_parallel",
        )
    return [torch.device("cuda", begin + i) for i in range(size)]


def load_lead(request: PartRequest, progress: Callable[[int, int], None] | None) -> LeadSlice:
    """Returns when every rank has its part. ConfigError, ModelFormatError or RankLost in words,
    and what `progress` raises; nothing is left running then."""
    config = ModelConfig.from_folder(request.folder)
    check_split(config, request.size)
    available = torch.cuda.device_count() if request.device.type == "cuda" else 0
    devices = rank_devices(request.device, request.size, available)
    choice = choose_attention(
        rank_config(config, request.size), request.device, request.dtype, request.attention
    )
    group = RankGroup(request.size)
    try:
        for rank in range(1, request.size):
            group.tell_rank(rank, _order(request, rank, devices[rank], group.meeting))
        ranks = ProcessRanks(group.meeting, 0, request.size, devices[0])
        group.on_broken = ranks.abort
        weights = load_part(
            request.folder,
            config,
            request.layers,
            ranks,
            device=devices[0],
            dtype=request.dtype,
            progress=progress,
            quantise=request.quantise,
        )
        group.answers()
    except BaseException:
        group.close()
        raise
    return LeadSlice(config, request.layers, weights, choice, ranks, group, request.quantise)


def _order(request: PartRequest, rank: int, device: torch.device, meeting: Path) -> LoadPart:
    return LoadPart(
        meeting=str(meeting),
        rank=rank,
        size=request.size,
        folder=str(request.folder.resolve()),
        first=request.layers.first,
        end=request.layers.end,
        device=str(device),
        dtype=str(request.dtype).removeprefix("torch."),
        attention=request.attention,
        quantise=request.quantise,
        threads=max(1, torch.get_num_threads() // request.size),
    )
