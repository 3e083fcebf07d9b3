"""Products with a part of a weight, made whole by the ranks together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nodes.model.linear import Linear
from nodes.model.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class SummedLinear:
    """part: some of the weight's columns, for as many of x's; the bias is in one rank's part."""

    part: Linear
    ranks: Ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.sum(self.part(x).contiguous())

    @property
    def nbytes(self) -> int:
        return self.part.nbytes


@dataclass(frozen=True, slots=True)
class CollectedLinear:
    """part: some of the weight's rows, the same number on each rank; `rows`: of the whole weight.

    Rank 0 gets all of the result; the others nothing, [x's rows, 0].
    """

    part: Linear
    ranks: Ranks
    rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.ranks.collect(self.part(x).contiguous())
        return torch.cat(parts, dim=1)[:, : self.rows] if parts else x.new_empty((len(x), 0))

    @property
    def nbytes(self) -> int:
        return self.part.nbytes
