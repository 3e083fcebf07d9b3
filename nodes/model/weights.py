"""Reads the tensors of a slice, and nothing else, into the form the forward pass wants.

q, k and v projections become one matrix, gate and up another: a decode step is bound by the number
and size of its matmuls' weights, and one wide matmul reads them faster than three narrow ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.files import ModelFiles
from helix_mq.models.safetensors_header import TensorEntry
from helix_mq.models.tensor_names import EMBEDDING, FINAL_NORM, head_name

Progress = Callable[[float, str], None]
"""Called with the finished fraction, 0 to 1, of the bytes to read, and the tensor just read."""


class TensorReader(Protocol):
    def read(self, entry: TensorEntry) -> torch.Tensor:
        """The tensor as it is on disk: its own dtype, on the CPU."""
        ...


class SafetensorsReader:
    """Reads through the safetensors library; one file stays open at a time."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._handle: safe_open | None = None

    def read(self, entry: TensorEntry) -> torch.Tensor:
        try:
            if self._handle is None or self._file != entry.file:
                self._handle = safe_open(entry.file, framework="pt", device="cpu")
                self._file = entry.file
            tensor = self._handle.get_tensor(entry.name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise ModelFormatError(
                f"cannot read {entry.name} from {entry.file}: {error}"
            ) from error
        assert isinstance(tensor, torch.Tensor)
        return tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; projections [out, in]. qkv: q, k, v stacked; gate_up: gate, up stacked."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """embedding: [vocab, hidden] with the first layer; final_norm and head [vocab, hidden] with
    the last. A tied head in the slice that holds the embedding is the same tensor."""

    layers: tuple[LayerWeights, ...]
    embedding: torch.Tensor | None
    final_norm: torch.Tensor | None
    head: torch.Tensor | None


def load_slice(
    folder: Path,
    config: ModelConfig,
    layers: LayerRange,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
    reader: TensorReader | None = None,
) -> SliceWeights:
    """Weights of `layers` on `device` in `dtype`; ModelFormatError where the folder is not whole.

    Peak host memory beyond the result is one layer: each is converted, fused and moved in turn.
    """
    entries = {e.name: e for e in ModelFiles.open(folder).slice_entries(config, layers)}
    source = _Source(entries, reader or SafetensorsReader(), device, dtype, progress)
    embedding = source.optional(EMBEDDING) if layers.first == 0 else None
    blocks = tuple(_layer(source, i) for i in range(layers.first, layers.end))
    final_norm = head = None
    if layers.end == config.num_layers:
        final_norm = source.tensor(FINAL_NORM)
        tied_here = config.tie_embeddings and embedding is not None
        head = embedding if tied_here else source.tensor(head_name(config))
    return SliceWeights(blocks, embedding, final_norm, head)


class _Source:
    """Reads, converts and moves one tensor at a time, and says how far it is."""

    def __init__(
        self,
        entries: dict[str, TensorEntry],
        reader: TensorReader,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None,
    ) -> None:
        self._entries = entries
        self._reader = reader
        self._device = device
        self._dtype = dtype
        self._progress = progress
        self._total_bytes = sum(e.nbytes for e in entries.values())
        self._read_bytes = 0

    def tensor(self, name: str) -> torch.Tensor:
        return self._fused((name,))

    def optional(self, *names: str) -> torch.Tensor | None:
        """The tensors stacked along their first dimension; None where the model has none."""
        return self._fused(names) if names[0] in self._entries else None

    def fused(self, *names: str) -> torch.Tensor:
        return self._fused(names)

    def _fused(self, names: Sequence[str]) -> torch.Tensor:
        parts = []
        for name in names:
            entry = self._entries[name]
            parts.append(self._reader.read(entry).to(self._dtype))
            self._read_bytes += entry.nbytes
            if self._progress is not None:
                self._progress(self._read_bytes / self._total_bytes, name)
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        # clone: a tensor that needed no conversion may still be a view of the mapped file.
        return whole.to(self._device) if self._device.type != "cpu" else whole.clone()


def _layer(source: _Source, layer: int) -> LayerWeights:
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    return LayerWeights(
        attention_norm=source.tensor(f"model.layers.{layer}.input_layernorm.weight"),
        qkv=source.fused(*(f"{attention}{p}_proj.weight" for p in "qkv")),
        qkv_bias=source.optional(*(f"{attention}{p}_proj.bias" for p in "qkv")),
        q_norm=source.optional(attention + "q_norm.weight"),
        k_norm=source.optional(attention + "k_norm.weight"),
        out=source.tensor(attention + "o_proj.weight"),
        out_bias=source.optional(attention + "o_proj.bias"),
        mlp_norm=source.tensor(f"model.layers.{layer}.post_attention_layernorm.weight"),
        gate_up=source.fused(mlp + "gate_proj.weight", mlp + "up_proj.weight"),
        gate_up_bias=source.optional(mlp + "gate_proj.bias", mlp + "up_proj.bias"),
        down=source.tensor(mlp + "down_proj.weight"),
        down_bias=source.optional(mlp + "down_proj.bias"),
    )
