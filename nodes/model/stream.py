"""The residual stream of one pass: which rows' tokens are in the tensor, as rows come and go.

Copies happen only where the set of rows changes; a pass in which all rows run the same layers
copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nodes.model.batch import RowSpec

Piece = tuple[torch.Tensor, int, int]
"""Tokens [begin, end) of a tensor."""


class HiddenStream:
    """Tokens of the active rows, [tokens, hidden], in the order of the current segment."""

    def __init__(
        self,
        rows: Sequence[RowSpec],
        embedded: torch.Tensor | None,
        hidden: torch.Tensor | None,
    ) -> None:
        """embedded: tokens of the rows that start at layer 0; hidden: of the others; both in row
        order."""
        self._rows = rows
        self._at: dict[int, Piece] = {}
        """Where each row's tokens are now; updated as they move."""
        begin = {True: 0, False: 0}
        for i, row in enumerate(rows):
            starts_model = row.layers.first == 0
            source = embedded if starts_model else hidden
            assert source is not None
            end = begin[starts_model] + row.count
            self._at[i] = (source, begin[starts_model], end)
            begin[starts_model] = end

    def take(self, order: Sequence[int]) -> torch.Tensor:
        """[tokens of the rows in `order`, hidden]: a view where they already lie like that."""
        pieces: list[Piece] = []
        for i in order:
            tensor, begin, end = self._at[i]
            if pieces and pieces[-1][0] is tensor and pieces[-1][2] == begin:
                pieces[-1] = (tensor, pieces[-1][1], end)
            else:
                pieces.append((tensor, begin, end))
        parts = [tensor[begin:end] for tensor, begin, end in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def put(self, order: Sequence[int], x: torch.Tensor) -> None:
        """`x` holds the tokens of the rows in `order` from now on."""
        begin = 0
        for i in order:
            end = begin + self._rows[i].count
            self._at[i] = (x, begin, end)
            begin = end
