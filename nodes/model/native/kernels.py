"""The compiled functions on tensors, and whether they compute what PyTorch computes.

All tensors are on the CPU, contiguous but where a stride is passed, of one dtype; shapes are the
caller's business. Calls give up the interpreter's lock for their time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

from nodes.model.native.build import built

_POINTER, _COUNT, _REAL, _THREADS = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_int,
)
_ARGUMENTS = {
    "add_norm": [*[_POINTER] * 5, *[_COUNT] * 2, _REAL, _THREADS],
    "silu_mul": [*[_POINTER] * 2, *[_COUNT] * 2, _THREADS],
    "rotate_store": [*[_POINTER] * 6, *[_COUNT] * 4, _THREADS],
    "attend": [
        _POINTER,
        _COUNT,
        *[_POINTER] * 3,
        _COUNT,
        *[_POINTER] * 3,
        *[_COUNT] * 5,
        _REAL,
        _THREADS,
    ],
}
ATTEND_WIDTHS = (16, 32, 64, 96, 128)
"""Head sizes that attend() is compiled for; it takes any other for the last."""
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Kernels:
    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._add_norm = _function(library, "add_norm", dtype)
        self._silu_mul = _function(library, "silu_mul", dtype)
        self._rotate_store = _function(library, "rotate_store", dtype)
        self._attend = _function(library, "attend", dtype)

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm over the last dimension of x [rows, width]."""
        out = torch.empty_like(x)
        self._add_norm(
            x.data_ptr(),
            None,
            weight.data_ptr(),
            None,
            out.data_ptr(),
            *x.shape,
            eps,
            torch.get_num_threads(),
        )
        return out

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + delta, and its RMSNorm; all [rows, width]."""
        total, out = torch.empty_like(x), torch.empty_like(x)
        self._add_norm(
            x.data_ptr(),
            delta.data_ptr(),
            weight.data_ptr(),
            total.data_ptr(),
            out.data_ptr(),
            *x.shape,
            eps,
            torch.get_num_threads(),
        )
        return total, out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up [rows, width] of gate_up [rows, 2 * width]."""
        rows, both = gate_up.shape
        out = gate_up.new_empty((rows, both // 2))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, both // 2, torch.get_num_threads())
        return out

    def rotate_store(
        self,
        qkv: torch.Tensor,
        heads: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Turns queries and keys of qkv [tokens, heads + 2 * kv_heads, width] where they are, and
        writes keys and values to the cache. cos, sin: [tokens, 1, width]; slots: int64
        [tokens * kv_heads], rows of `width` elements in keys and values."""
        tokens, everything, width = qkv.shape
        # With one key/value head numpy leaves the tokens of a layer apart.
        slots = slots.contiguous()
        self._rotate_store(
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            slots.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            tokens,
            heads,
            (everything - heads) // 2,
            width,
            torch.get_num_threads(),
        )

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tables: torch.Tensor,
        firsts: torch.Tensor,
        ends: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one query per row, [rows, heads, width]; rows of `query` (same shape) may be
        apart; width is one of ATTEND_WIDTHS. keys, values: [pages, kv_heads, page_tokens, width];
        tables: int32 [rows, pages of a row]; each row sees its tokens from `firsts` up to, not
        including, `ends` (int32 [rows])."""
        rows, heads, width = query.shape
        out = query.new_empty((rows, heads, width))
        self._attend(
            query.data_ptr(),
            query.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            tables.data_ptr(),
            tables.stride(0),
            firsts.data_ptr(),
            ends.data_ptr(),
            out.data_ptr(),
            rows,
            heads,
            keys.shape[1],
            width,
            keys.shape[2],
            width**-0.5,
            torch.get_num_threads(),
        )
        return out


@functools.cache
def kernels_for(dtype: torch.dtype) -> Kernels | None:
    """Those for `dtype`; None where there are none, or where they compute something else here."""
    library = built().library
    if library is None or dtype not in _SUFFIXES:
        return None
    kernels = Kernels(library, dtype)
    return kernels if _right(kernels) else None


def _function(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(library, f"{name}_{_SUFFIXES[dtype]}")
    function.argtypes = _ARGUMENTS[name]
    function.restype = None
    found: Callable[..., None] = function
    return found


def _right(kernels: Kernels) -> bool:
    """Whether the elementwise ones agree with PyTorch; attention is tried as a backend."""
    generator = torch.Generator().manual_seed(0)
    dtype = kernels.dtype
    x, delta = (torch.randn(5, 96, generator=generator).to(dtype) for _ in range(2))
    weight = torch.rand(96, generator=generator).to(dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2

    def near(got: torch.Tensor, expected: torch.Tensor) -> bool:
        return torch.allclose(got.double(), expected.double(), rtol=tolerance, atol=tolerance)

    total, normed = kernels.add_norm(x, delta, weight, 1e-5)
    exact = (x + delta).double()
    gate, up = x.double().chunk(2, dim=-1)
    return (
        near(total, exact)
        and near(normed, F.rms_norm(exact, (96,), weight.double(), 1e-5))
        and near(
            kernels.norm(x, weight, 1e-5), F.rms_norm(x.double(), (96,), weight.double(), 1e-5)
        )
        and near(kernels.silu_mul(x), F.silu(gate) * up)
    )
