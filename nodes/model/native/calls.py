"""Compiled functions as Python calls them: by name, number format and types of arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch

POINTER, COUNT, REAL, THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Number formats that there are kernels for."""


def function_of(
    library: ctypes.CDLL,
    name: str,
    dtype: torch.dtype,
    arguments: Sequence[Any],
    result: Any = None,
) -> Callable[..., Any]:
    """AttributeError where the library has none, since the processor lacks what it needs."""
    function = getattr(library, f"{name}_{SUFFIXES[dtype]}")
    function.argtypes = list(arguments)
    function.restype = result
    found: Callable[..., Any] = function
    return found


def pointer(array: npt.NDArray[Any]) -> int:
    """Where an array's memory begins; `array.ctypes` makes three objects for it."""
    at: int = array.__array_interface__["data"][0]
    return at


def address(tensor: torch.Tensor | None) -> int | None:
    """What a kernel takes for it; nothing for None."""
    return tensor.data_ptr() if tensor is not None else None


class Block:
    """Memory that compiled code knows by its address `at`, and Python as bytes by a view."""

    __slots__ = ("_hold", "at", "data", "view")

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)
        self.view = memoryview(self.data)
        # Keeps it from being resized, and so in place.
        self._hold = (ctypes.c_char * nbytes).from_buffer(self.data) if nbytes else None
        self.at = ctypes.addressof(self._hold) if self._hold is not None else 0


class Pieces:
    """Memory for one result after the other, each of which somebody may keep: none is given twice.
    Small ones share a block, as a block takes longer to come by than they do to be filled."""

    _SHARED_BYTES = 1 << 16
    _ALIGNED = 64

    def __init__(self) -> None:
        self._block = Block(0)
        self._used = 0

    def next(self, nbytes: int) -> tuple[memoryview, int]:
        """As many bytes, and where they begin."""
        start = self._used
        if start + nbytes > len(self._block.data):
            self._block, start = Block(max(nbytes, self._SHARED_BYTES)), 0
        block = self._block
        self._used = start + -(-nbytes // self._ALIGNED) * self._ALIGNED
        return block.view[start : start + nbytes], block.at + start
