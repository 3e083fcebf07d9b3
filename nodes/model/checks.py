"""The contract of a forward pass, checked before anything is executed.

Batches are made of what other machines sent, so a wrong shape or token id must end in a BatchError
that names it, never in a write to another sequence's pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes.kv_pages import LayerPagePool
from nodes.model.batch import BatchError, RowSpec, SliceBatch


def check_batch(
    batch: SliceBatch, layers: LayerRange, config: ModelConfig, pool: LayerPagePool
) -> None:
    """BatchError unless `batch` can run on a slice of `layers` with the pages in `pool`."""
    if not batch.rows:
        raise BatchError("a batch needs at least one row")
    if len({row.seq for row in batch.rows}) != len(batch.rows):
        raise BatchError("a sequence may have only one row in a batch")
    for row in batch.rows:
        _check_row(row, layers, config, pool)
    _check_tokens(batch, config)
    _check_hidden(batch, config)


def tokens_from_ids(rows: Sequence[RowSpec]) -> int:
    """Tokens that come in as ids: those of rows that start at the model's first layer."""
    return sum(row.count for row in rows if row.layers.first == 0)


def _check_row(row: RowSpec, layers: LayerRange, config: ModelConfig, pool: LayerPagePool) -> None:
    end = row.position + row.count
    if not layers.covers(row.layers):
        raise BatchError(f"row of {row.seq!r} wants {row.layers}; this slice holds {layers}")
    if row.wants_logits and row.layers.end != config.num_layers:
        raise BatchError(f"row of {row.seq!r} wants logits but stops after {row.layers}")
    if end > config.max_context:
        raise BatchError(f"row of {row.seq!r} reaches token {end} of {config.max_context}")
    if row.seq not in pool:
        raise BatchError(f"row of {row.seq!r}: the sequence is not open here")
    if not pool.layers(row.seq).covers(row.layers):
        raise BatchError(
            f"row of {row.seq!r} wants {row.layers}; its pages are of {pool.layers(row.seq)}"
        )
    if pool.room_tokens(row.seq) < end:
        raise BatchError(
            f"row of {row.seq!r} reaches token {end}; it has pages for {pool.room_tokens(row.seq)}"
        )


def _check_tokens(batch: SliceBatch, config: ModelConfig) -> None:
    wanted, ids = tokens_from_ids(batch.rows), batch.token_ids
    if ids is None:
        if wanted:
            raise BatchError(f"token_ids is missing; the rows need {wanted}")
        return
    if ids.dtype != torch.int64 or ids.shape != (wanted,):
        raise BatchError(
            f"token_ids is {ids.dtype} {list(ids.shape)}; the rows need int64 [{wanted}]"
        )
    # A device tensor is not checked, since reading it would wait for the device; ids arrive on the
    # host, and ModelSlice moves them after this check.
    if wanted and ids.device.type == "cpu":
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            raise BatchError(f"token id {bad} is not in 0..{config.vocab_size - 1}")


def _check_hidden(batch: SliceBatch, config: ModelConfig) -> None:
    wanted = sum(row.count for row in batch.rows) - tokens_from_ids(batch.rows)
    hidden = batch.hidden
    if hidden is None:
        if wanted:
            raise BatchError(f"hidden is missing; the rows need [{wanted}, {config.hidden_size}]")
        return
    if hidden.shape != (wanted, config.hidden_size) or not hidden.is_floating_point():
        raise BatchError(
            f"hidden is {hidden.dtype} {list(hidden.shape)}; the rows need floats "
            f"[{wanted}, {config.hidden_size}]"
        )
