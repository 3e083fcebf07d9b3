"""Which sizes decode steps are recorded in. Pure.

A recorded step has fixed shapes, so a batch is filled up with rows of nobody to the next size, and
its page tables to the next power of two. Sizes are close where a row costs most in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass

from helix_mq.layers import LayerRange

MAX_ROWS = 256
MAX_RECORDINGS = 64
MAX_TABLE_ENTRIES = 1 << 24
"""Of all layers and rows together: 64 MiB. Longer contexts in larger batches run unrecorded; their
attention takes so long that launches do not count."""
_LEAST_PAGES = 16


@dataclass(frozen=True, slots=True)
class StepShape:
    """layers: that all rows run. rows, pages: sizes after filling up; pages per row and layer."""

    layers: LayerRange
    rows: int
    pages: int

    @property
    def table_entries(self) -> int:
        return len(self.layers) * self.rows * self.pages


def padded_rows(rows: int) -> int:
    """1, 2, 4, 8, 16, then steps of 8 to 64, of 16 to 128, of 32 beyond: at most a third more."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 64 else 16 if rows <= 128 else 32
    return -(-rows // step) * step


def padded_pages(pages: int) -> int:
    return max(_LEAST_PAGES, 1 << (pages - 1).bit_length())


def shape_of(layers: LayerRange, rows: int, pages: int) -> StepShape | None:
    """What a step of so many rows, the longest of so many pages, is recorded as; None: not."""
    shape = StepShape(layers, padded_rows(rows), padded_pages(pages))
    if shape.rows > MAX_ROWS or shape.table_entries > MAX_TABLE_ENTRIES:
        return None
    return shape


def table_entries(held: LayerRange, max_pages: int) -> int:
    """Room that any recordable step of a slice needs for its page tables."""
    most = len(held) * MAX_ROWS * padded_pages(max_pages)
    return min(most, MAX_TABLE_ENTRIES)
