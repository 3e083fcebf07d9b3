"""Splits one pass over a slice's layers into segments with a fixed set of rows. Pure: no tensors.

Rows join at their first layer and leave at their last; between two such boundaries the same rows
run every layer. Rows are ordered so that the leaving ones are at the end, which makes leaving a
slice of the hidden state instead of a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.layers import LayerRange
from nodes.model.batch import RowSpec


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers that run with the same rows; `rows` are indices into the batch, in tensor order."""

    layers: LayerRange
    rows: tuple[int, ...]


def split(rows: Sequence[RowSpec]) -> tuple[Segment, ...]:
    """Segments in the order of layers. Layers that no row runs are in none of them."""
    first = rows[0].layers
    if all(row.layers == first for row in rows):
        return (Segment(first, tuple(sorted(range(len(rows)), key=lambda i: _order(rows, i)))),)
    bounds = sorted({r.layers.first for r in rows} | {r.layers.end for r in rows})
    segments = []
    for low, high in itertools.pairwise(bounds):
        active = [i for i, r in enumerate(rows) if r.layers.first <= low and high <= r.layers.end]
        if active:
            active.sort(key=lambda i: _order(rows, i))
            segments.append(Segment(LayerRange(low, high), tuple(active)))
    return tuple(segments)


def _order(rows: Sequence[RowSpec], i: int) -> tuple[int, int, bool, int]:
    """Late leavers first, early joiners first among them (so that joining appends where it can),
    decodes before prefill chunks (so that attention takes each kind as one slice)."""
    row = rows[i]
    return (-row.layers.end, row.layers.first, row.count > 1, i)
