"""Matrix products with weights that never change: compiled kernels of our own where they are
(nodes.model.native.products), else oneDNN's packed ones, else the plain one.

On CPUs the packed form holds the weights in the blocked order that the kernel reads them in. On two
cores of an EPYC (Zen 4), one SmolLM2 layer's four products took, plain against packed: float32
1163 -> 646 us for 1 row, 1723 -> 565 for 4, 2530 -> 1413 for 32; bfloat16 547 -> 377 and
1022 -> 778. It also gives each row the same bits whatever other rows are in the batch, which plain
float32 does not. The packed operators are those that torch.compile emits for frozen weights.

oneDNN compiles a kernel for each number of rows it meets: a millisecond, and 0.55 MiB (two buffers
of 256 KiB) that nothing gives back, for each shape of weight. Batches have any number of rows, so
nodes grew by hundreds of MiB in a quarter of an hour, with 1.4 GiB in sight for steps of up to 512
rows. So rows come in a few sizes only, and what lies between is filled up: see pieces().
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch.nn import functional as F

from nodes.model.native.memory import WeightMemory
from nodes.model.native.products import native_linear, products_for

_PACK_ROWS = 32
"""Batch size the blocked layout is chosen for; it was the best or equal to it for 1 to 512 rows."""
_MOST_ROWS = 512


def pieces(rows: int) -> list[int]:
    """Sizes of the calls that multiply `rows` rows, in order: one up to _MOST_ROWS. Only the last
    may be larger than what is left for it, by an eighth at most. Of 56 values, whatever `rows` is.

    Rounding up to four significant bits costs 4 % on average, and nothing to 16 rows. Against
    taking the rest apart: one more pass over weights that no cache holds costs as much as 20 rows.
    """
    whole, rest = divmod(rows, _MOST_ROWS)
    step = 1 << max(0, (rest - 1).bit_length() - 4)
    return [_MOST_ROWS] * whole + ([-(-rest // step) * step] if rest else [])


class Linear(Protocol):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, in] times the weight's transpose, plus the bias: [rows, out]."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias."""
        ...


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """weight: [out, in]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """weight: opaque, made by pack(); the plain weight can be dropped."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @classmethod
    def pack(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS), bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        sizes = pieces(rows)
        if sizes == [rows] or not rows:
            return self._product(x)
        parts, at = [], 0
        for size in sizes:
            part = x[at : at + size]
            if len(part) < size:
                part = F.pad(part, (0, 0, 0, size - len(part)))
            parts.append(self._product(part))
            at += size
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        assert isinstance(out, torch.Tensor)
        return out

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of `dtype` can be held in an order of their own, and are multiplied correctly
    then: by a compiled kernel, or by this torch on this machine.

    Tried, not looked up: torch's operators are not a public interface and differ between builds.
    """
    return device.type == "cpu" and (products_for(dtype) is not None or _torch_packs(dtype))


@lru_cache
def _torch_packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    x = torch.randn(3, 32, generator=generator).to(dtype)
    try:
        got = PackedLinear.pack(weight, bias)(x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    expected = F.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return bool(torch.allclose(got.double(), expected, atol=tolerance, rtol=tolerance))


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    packed: bool,
    memory: WeightMemory | None = None,
) -> Linear:
    """Of `weight` [out, in]; `packed` only where can_pack() said so. memory: of weights that are
    dropped together."""
    if not packed:
        return PlainLinear(weight, bias)
    native = native_linear(weight, bias, memory)
    if native is not None:
        return native
    if not _torch_packs(weight.dtype):
        return PlainLinear(weight, bias)
    return PackedLinear.pack(weight, bias)
