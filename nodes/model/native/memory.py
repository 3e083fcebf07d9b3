"""Memory for weights that are read whole for each token: in large pages, where the system has them.

A processor fetches ahead within a page and no further, and finds each page anew: with pages of
4 KiB, 270 MB of weights took one core 10.7 ms to multiply with one row, with pages of 2 MiB 9.3.
"""

from __future__ import annotations

import ctypes
import math
import mmap

import torch

_PAGE_BYTES = 2 << 20
_BLOCK_BYTES = 64 << 20
"""Asked for at a time; what is not used of it is not there either, but for the rest of a page."""
_LINE_BYTES = 64


class WeightMemory:
    """Hands out pieces of large blocks. A block goes when the last of its pieces does, so that one
    WeightMemory should serve what is dropped together."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Not filled; begins at a line of the cache."""
        count = math.prod(shape) * dtype.itemsize
        if self._used + count > len(self._block):
            self._block = _block(max(_BLOCK_BYTES, -(-count // _PAGE_BYTES) * _PAGE_BYTES))
            self._used = 0
        piece = self._block[self._used : self._used + count]
        self._used += -(-count // _LINE_BYTES) * _LINE_BYTES
        return piece.view(dtype).view(shape)


def _block(count: int) -> torch.Tensor:
    """uint8 [count], at the beginning of a large page."""
    memory = torch.empty(count + _PAGE_BYTES, dtype=torch.uint8)
    skipped = -memory.data_ptr() % _PAGE_BYTES
    block = memory[skipped : skipped + count]
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None and hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice: where it is not taken, pages are small.
        advise(
            ctypes.c_void_p(block.data_ptr()),
            ctypes.c_size_t(count),
            ctypes.c_int(mmap.MADV_HUGEPAGE),
        )
    return block
