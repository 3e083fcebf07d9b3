"""Reads a rank's part of a slice: no rank reads what another holds, beyond norms and biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.files import ModelFiles
from helix_mq.models.quantisation import Quantisation
from helix_mq.models.safetensors_header import TensorEntry
from helix_mq.models.tensor_names import EMBEDDING, FINAL_NORM, head_name
from nodes.model.linear import Linear, can_pack, make_linear
from nodes.model.native.memory import WeightMemory
from nodes.model.parallel.linears import CollectedLinear, SummedLinear
from nodes.model.parallel.ranks import Ranks
from nodes.model.parallel.split import Share, share_of, vocab_rows
from nodes.model.quantised import check_quantised, largest_of, make_quantised
from nodes.model.weights import LayerWeights, SliceWeights

Part = tuple[int, int]
"""Rows, or columns, [begin, end)."""


def load_part(
    folder: Path,
    config: ModelConfig,
    layers: LayerRange,
    ranks: Ranks,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
    quantise: Quantisation = Quantisation.NONE,
) -> SliceWeights:
    """The weights of `layers` that this rank holds; ModelFormatError where the folder is broken.

    config: of the whole model, which check_split() has passed for so many ranks. All ranks must
    load at the same time.
    """
    check_quantised(quantise, device)
    share = share_of(config, ranks.rank, ranks.size)
    entries = {e.name: e for e in ModelFiles.open(folder).slice_entries(config, layers)}
    reader = _PartReader(entries, device, dtype, progress)
    form = _Form(ranks, quantise, can_pack(device, dtype), WeightMemory())
    blocks = tuple(_layer(reader, i, share, form) for i in range(layers.first, layers.end))
    embedding = reader.read(EMBEDDING) if share.leads and layers.first == 0 else None
    final_norm: torch.Tensor | None = None
    head: Linear | None = None
    if layers.end == config.num_layers:
        final_norm = reader.read(FINAL_NORM)
        rows = vocab_rows(config, ranks.size)
        table = reader.read(head_name(config), rows=share.vocab)
        table = F.pad(table, (0, 0, 0, rows - len(table)))
        head = CollectedLinear(form.head(table), ranks, config.vocab_size)
    return SliceWeights(
        blocks, embedding, final_norm, head, _nbytes(blocks, embedding, final_norm, head)
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """How parts of weights are held. Quantised, they are those of the whole weight: its scales are
    per output, or per group of inputs, and no group is on two ranks."""

    ranks: Ranks
    quantise: Quantisation
    packed: bool
    memory: WeightMemory

    def by_rows(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        if self.quantise is Quantisation.NONE:
            return make_linear(weight, bias, packed=self.packed, memory=self.memory)
        return make_quantised(weight, bias, self.quantise)

    def by_columns(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        if self.quantise is not Quantisation.INT8:
            return SummedLinear(self.by_rows(weight, bias), self.ranks)
        largest = self.ranks.largest(largest_of(weight))
        return SummedLinear(make_quantised(weight, bias, self.quantise, largest), self.ranks)

    def head(self, table: torch.Tensor) -> Linear:
        if self.quantise is Quantisation.NONE:
            return make_linear(table, None, packed=self.packed, memory=self.memory)
        return make_quantised(table, None, Quantisation.INT8)


def _layer(reader: _PartReader, layer: int, share: Share, form: _Form) -> LayerWeights:
    at = f"model.layers.{layer}."

    def by_rows(*names: tuple[str, Part]) -> Linear:
        weight = torch.cat([reader.read(f"{at}{n}_proj.weight", rows=part) for n, part in names])
        biases = [reader.optional(f"{at}{n}_proj.bias", part) for n, part in names]
        present = [b for b in biases if b is not None]
        bias = torch.cat(present) if present else None
        return form.by_rows(weight, bias)

    def by_columns(name: str, part: Part) -> Linear:
        weight = reader.read(f"{at}{name}_proj.weight", columns=part)
        bias = reader.optional(f"{at}{name}_proj.bias") if share.leads else None
        return form.by_columns(weight, bias)

    attention = (("self_attn.q", share.query), ("self_attn.k", share.key))
    return LayerWeights(
        attention_norm=reader.read(at + "input_layernorm.weight"),
        qkv=by_rows(*attention, ("self_attn.v", share.key)),
        q_norm=reader.optional(at + "self_attn.q_norm.weight"),
        k_norm=reader.optional(at + "self_attn.k_norm.weight"),
        out=by_columns("self_attn.o", share.query),
        mlp_norm=reader.read(at + "post_attention_layernorm.weight"),
        gate_up=by_rows(("mlp.gate", share.inner), ("mlp.up", share.inner)),
        down=by_columns("mlp.down", share.inner),
    )


class _PartReader:
    """Rows or columns of stored tensors, on the device in the compute dtype."""

    def __init__(
        self,
        entries: dict[str, TensorEntry],
        device: torch.device,
        dtype: torch.dtype,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._entries = entries
        self._device = device
        self._dtype = dtype
        self._progress = progress
        self._done = 0
        self._file: Path | None = None
        self._handle: safe_open | None = None

    def optional(self, name: str, rows: Part | None = None) -> torch.Tensor | None:
        return self.read(name, rows=rows) if name in self._entries else None

    def read(
        self, name: str, *, rows: Part | None = None, columns: Part | None = None
    ) -> torch.Tensor:
        entry = self._entries[name]
        try:
            if self._handle is None or self._file != entry.file:
                self._handle = safe_open(entry.file, framework="pt", device="cpu")
                self._file = entry.file
            stored = self._handle.get_slice(name)  # type: ignore[no-untyped-call]
            if columns is not None:
                tensor = stored[:, columns[0] : columns[1]]
            elif rows is not None:
                tensor = stored[rows[0] : rows[1]]
            else:
                tensor = stored[:]
        except (SafetensorError, OSError) as error:
            raise ModelFormatError(f"cannot read {name} from {entry.file}: {error}") from error
        assert isinstance(tensor, torch.Tensor)
        self._done += 1
        if self._progress is not None:
            self._progress(min(self._done, len(self._entries)), len(self._entries))
        # A copy of its own: what needed no conversion may still be a view of the mapped file.
        return torch.empty(tensor.shape, dtype=self._dtype, device=self._device).copy_(tensor)


def _nbytes(
    layers: tuple[LayerWeights, ...],
    embedding: torch.Tensor | None,
    final_norm: torch.Tensor | None,
    head: Linear | None,
) -> int:
    parts: list[torch.Tensor | Linear | None] = [embedding, final_norm, head]
    for w in layers:
        parts += [w.attention_norm, w.mlp_norm, w.q_norm, w.k_norm]
        parts += [w.qkv, w.out, w.gate_up, w.down]
    return sum(part.nbytes for part in parts if part is not None)
