"""Reads the tensors of a slice, and nothing else, into the form the forward pass wants.

q, k and v projections become one matrix, gate and up another: a decode step is bound by the number
and size of its matmuls' weights, and one wide matmul reads them faster than three narrow ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.files import ModelFiles
from helix_mq.models.quantisation import Quantisation, WeightForm
from helix_mq.models.safetensors_header import TensorEntry
from helix_mq.models.tensor_names import EMBEDDING, FINAL_NORM, head_name
from nodes.model.linear import Linear, PlainLinear, can_pack, make_linear
from nodes.model.native.memory import WeightMemory
from nodes.model.quantised import check_quantised, make_quantised

Progress = Callable[[int, int], None]
"""Called with the number of tensors read so far, and of all there are to read."""


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
    """One layer. qkv: q, k, v projections stacked; gate_up: gate, up stacked."""

    attention_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """embedding: [vocab, hidden] with the first layer; final_norm and head with the last.

    A tied head shares the embedding's memory where the slice holds both and weights are not
    packed. nbytes: memory of everything, shared memory counted once.
    """

    layers: tuple[LayerWeights, ...]
    embedding: torch.Tensor | None
    final_norm: torch.Tensor | None
    head: Linear | None
    nbytes: int


def load_slice(
    folder: Path,
    config: ModelConfig,
    layers: LayerRange,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
    reader: TensorReader | None = None,
    quantise: Quantisation = Quantisation.NONE,
) -> SliceWeights:
    """Weights of `layers` on `device` in `dtype`; ModelFormatError where the folder is not whole,
    ConfigError where they cannot be held as `quantise` says.

    Peak memory beyond the result is one layer, or the head: each is converted, fused, moved and
    quantised in turn.
    """
    check_quantised(quantise, device)
    entries = {e.name: e for e in ModelFiles.open(folder).slice_entries(config, layers)}
    source = _Source(entries, reader or SafetensorsReader(), device, dtype, progress)
    make = _linears(device, dtype, quantise)
    embedding = source.tensor(EMBEDDING) if layers.first == 0 else None
    blocks = tuple(_layer(source, i, make) for i in range(layers.first, layers.end))
    final_norm, head = None, None
    if layers.end == config.num_layers:
        final_norm = source.tensor(FINAL_NORM)
        tied_here = embedding if config.tie_embeddings else None
        table = source.tensor(head_name(config)) if tied_here is None else tied_here
        if quantise is Quantisation.NONE:
            head = make(table, None)
        else:
            head = make_quantised(table, None, Quantisation.INT8)
    return SliceWeights(
        blocks, embedding, final_norm, head, _nbytes(blocks, embedding, final_norm, head)
    )


def held_bytes(
    config: ModelConfig,
    layers: LayerRange,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantise: Quantisation = Quantisation.NONE,
) -> int:
    """Memory that load_slice() will hold, to the few per cent that packing may pad.

    More than WeightForm.slice_bytes() in one case: a tied head in the slice that holds the
    embedding is a second, packed copy on CPUs, as a packed table cannot be looked up in.
    """
    count = WeightForm(dtype.itemsize, quantise).slice_bytes(config, layers)
    both_ends = layers.first == 0 and layers.end == config.num_layers
    plain = quantise is Quantisation.NONE
    if plain and config.tie_embeddings and both_ends and can_pack(device, dtype):
        count += config.embed_bytes(dtype.itemsize)
    return count


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
        self._done = 0

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
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, len(self._entries))
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        # clone: a tensor that needed no conversion may still be a view of the mapped file.
        return whole.to(self._device) if self._device.type != "cpu" else whole.clone()


MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]


def _linears(device: torch.device, dtype: torch.dtype, quantise: Quantisation) -> MakeLinear:
    """How the products of the layers are made of weight and bias."""
    if quantise is not Quantisation.NONE:
        return partial(make_quantised, quantise=quantise)
    return partial(make_linear, packed=can_pack(device, dtype), memory=WeightMemory())


def _layer(source: _Source, layer: int, make: MakeLinear) -> LayerWeights:
    at = f"model.layers.{layer}."

    def linear(*names: str) -> Linear:
        return make(
            source.fused(*(f"{at}{n}_proj.weight" for n in names)),
            source.optional(*(f"{at}{n}_proj.bias" for n in names)),
        )

    return LayerWeights(
        attention_norm=source.tensor(at + "input_layernorm.weight"),
        qkv=linear("self_attn.q", "self_attn.k", "self_attn.v"),
        q_norm=source.optional(at + "self_attn.q_norm.weight"),
        k_norm=source.optional(at + "self_attn.k_norm.weight"),
        out=linear("self_attn.o"),
        mlp_norm=source.tensor(at + "post_attention_layernorm.weight"),
        gate_up=linear("mlp.gate", "mlp.up"),
        down=linear("mlp.down"),
    )


def _nbytes(
    layers: Sequence[LayerWeights],
    embedding: torch.Tensor | None,
    final_norm: torch.Tensor | None,
    head: Linear | None,
) -> int:
    parts: list[torch.Tensor | Linear | None] = [embedding, final_norm]
    shared = isinstance(head, PlainLinear) and head.weight is embedding
    parts.append(None if shared else head)
    for w in layers:
        parts += [w.attention_norm, w.mlp_norm, w.q_norm, w.k_norm]
        parts += [w.qkv, w.out, w.gate_up, w.down]
    return sum(part.nbytes for part in parts if part is not None)
