"""The compiled functions on tensors, and whether they compute what PyTorch computes.

All tensors are on the CPU, contiguous but where a stride is passed, of one dtype; shapes are the
caller's business. Calls give up the interpreter's lock for their time.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from nodes.model.native.build import built
from nodes.model.native.calls import COUNT, POINTER, REAL, SUFFIXES, THREADS, address, function_of

_ARGUMENTS = {
    "add_norm": [*[POINTER] * 5, *[COUNT] * 2, REAL, THREADS],
    "silu_mul": [*[POINTER] * 2, *[COUNT] * 2, THREADS],
    "rotate_store": [*[POINTER] * 8, *[COUNT] * 4, REAL, THREADS],
    "attend": [
        POINTER,
        COUNT,
        *[POINTER] * 3,
        COUNT,
        *[POINTER] * 4,
        *[COUNT] * 5,
        THREADS,
    ],
}
ATTEND_WIDTHS = (16, 32, 64, 96, 128)
"""Head sizes that attend() is compiled for; it takes any other for the last."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights [width] of the norms of queries and keys per head, where a model has them."""

    query: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    eps: float = 0.0


class Kernels:
    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._add_norm = function_of(library, "add_norm", dtype, _ARGUMENTS["add_norm"])
        self._silu_mul = function_of(library, "silu_mul", dtype, _ARGUMENTS["silu_mul"])
        self._rotate_store = function_of(library, "rotate_store", dtype, _ARGUMENTS["rotate_store"])
        self._attend = function_of(library, "attend", dtype, _ARGUMENTS["attend"])
        self.wide = hasattr(library, "product_float32")
        """The processor has registers of 512 bits. Elsewhere attend() takes 3 times as long for
        prompts as PyTorch's products do."""

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
        norms: HeadNorms = HeadNorms(),
    ) -> None:
        """Norms (where there are weights for it) and turns queries and keys of qkv [tokens, heads +
        2 * kv_heads, width] where they are, and writes keys and values to the cache. cos, sin:
        [tokens, 1, width]; slots: int64 [tokens * kv_heads], rows of `width` elements in keys and
        values."""
        tokens, everything, width = qkv.shape
        # With one key/value head numpy leaves the tokens of a layer apart.
        slots = slots.contiguous()
        self._rotate_store(
            qkv.data_ptr(),
            address(norms.query),
            address(norms.keys),
            cos.data_ptr(),
            sin.data_ptr(),
            slots.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            tokens,
            heads,
            (everything - heads) // 2,
            width,
            norms.eps,
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
        owners: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, [tokens, heads, width]; those of `query` (same shape) may be apart;
        width is one of ATTEND_WIDTHS. keys, values: [pages, kv_heads, page_tokens, width]; tables:
        int32 [rows, pages of a row]; owners: int32 [tokens], the row of each, without it each is
        one; a token sees its row's from `firsts` up to, not including, `ends` (int32
        [tokens])."""
        tokens, heads, width = query.shape
        out = query.new_empty((tokens, heads, width))
        self._attend(
            query.data_ptr(),
            query.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            tables.data_ptr(),
            tables.stride(0),
            address(owners),
            firsts.data_ptr(),
            ends.data_ptr(),
            out.data_ptr(),
            tokens,
            heads,
            keys.shape[1],
            width,
            keys.shape[2],
            torch.get_num_threads(),
        )
        return out


@functools.cache
def kernels_for(dtype: torch.dtype) -> Kernels | None:
    """Those for `dtype`; None where there are none, or where they compute something else here."""
    library = built().library
    if library is None or dtype not in SUFFIXES:
        return None
    kernels = Kernels(library, dtype)
    return kernels if _right(kernels) else None


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
