"""What goes into one forward pass of a slice and what comes out.

A batch mixes prefill chunks and decodes of many sequences, each with its own range of layers. The
types check themselves where it is cheap; the slice checks the rest before it touches any memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from helix_mq.errors import LocalError
from helix_mq.layers import LayerRange
from nodes.kv_pages import SeqKey


class BatchError(LocalError):
    """A batch that breaks the slice's contract; nothing was executed, no KV was written."""

    code = "bad_batch"


class RowSpec(msgspec.Struct, frozen=True, gc=False):
    """`count` consecutive tokens of one sequence, the first of them at `position`.

    layers: the part of the slice that this row runs. wants_logits: of its last `logit_tokens`
    tokens; only for rows that run the model's last layer. More than one only behind a position: a
    sequence's first row attends to itself and cannot be cut.

    A struct, since one is made for every row of every step.
    """

    seq: SeqKey
    position: int
    count: int
    layers: LayerRange
    wants_logits: bool = False
    logit_tokens: int = 1

    def __post_init__(self) -> None:
        if self.position < 0 or self.count < 1:
            raise BatchError(
                f"row of {self.seq!r}: position={self.position}, count={self.count}; position must "
                "be at least 0 and count at least 1"
            )
        if not (self.logit_tokens == 1 or (1 < self.logit_tokens <= self.count and self.position)):
            raise BatchError(
                f"row of {self.seq!r} wants logits of {self.logit_tokens} of its {self.count} "
                f"tokens at {self.position}"
            )


@dataclass(frozen=True, slots=True)
class SliceBatch:
    """Rows in any order, at most one per sequence.

    token_ids: int64 [tokens of the rows that start at layer 0], in row order, or None.
    hidden: float [tokens of all other rows, hidden_size], in row order, or None.
    """

    rows: Sequence[RowSpec]
    token_ids: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class SliceOutput:
    """hidden: [tokens of the rows that leave before the model's last layer, hidden_size] in the
    compute dtype, in row order. logits: float32 [logit_tokens of the rows that want them,
    vocab_size], in row order."""

    hidden: torch.Tensor
    logits: torch.Tensor
