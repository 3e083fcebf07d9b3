"""Matrix products by compiled kernels, for weights that never change: see products.h.

Against oneDNN's packed products, all those of SmolLM2-135M on two cores of an EPYC (Zen 4) in
bfloat16: 13.6 -> 6 ms for 1 row, 14.8 -> 8 for 8, 29.7 -> 21 for 32. A row has the same bits
whatever other rows are beside it and however many threads there are, and no size of batch costs
anything the first time. Only where the processor has AVX-512, for bfloat16 with its products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from nodes.model.native.build import built
from nodes.model.native.calls import COUNT, POINTER, SUFFIXES, THREADS, address, function_of
from nodes.model.native.memory import WeightMemory

_ARGUMENTS = [*[POINTER] * 4, *[COUNT] * 3, THREADS]
_WIDE = 16
_COLUMNS = 2 * _WIDE
_STEP_BYTES = 4


@dataclass(frozen=True, slots=True)
class Products:
    """into: as the rows are; into_floats: the same numbers as float32."""

    into: Callable[..., None]
    into_floats: Callable[..., None]


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """packed: the weight as products.h orders it; the plain one can be dropped."""

    packed: torch.Tensor
    bias: torch.Tensor | None
    outputs: int
    inputs: int
    _products: Products = field(repr=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(self._products.into, x, x.dtype)

    def floats(self, x: torch.Tensor) -> torch.Tensor:
        """The same, float32."""
        return self._run(self._products.into_floats, x, torch.float32)

    def _run(self, product: Callable[..., None], x: torch.Tensor, out: torch.dtype) -> torch.Tensor:
        if x.dtype is not self.packed.dtype or x.shape[1] != self.inputs:
            raise ValueError(f"{x.dtype} {list(x.shape)} times a weight of {self.inputs} inputs")
        x, rows = x.contiguous(), x.shape[0]
        result = torch.empty((rows, self.outputs), dtype=out)
        if rows:
            product(
                x.data_ptr(),
                self.packed.data_ptr(),
                address(self.bias),
                result.data_ptr(),
                rows,
                self.outputs,
                self.inputs,
                torch.get_num_threads(),
            )
        return result

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def halves_meet(self) -> bool:
        """Whether each group holds as many outputs of the first half as of the second."""
        return not _added(self.outputs)


def native_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, memory: WeightMemory | None = None
) -> NativeLinear | None:
    """Of `weight` [outputs, inputs], held in `memory` or else by itself; None where there is no
    kernel for it, or the last group would be an eighth of the weight, and empty."""
    products = products_for(weight.dtype) if weight.device.type == "cpu" else None
    if products is None or not _fits(weight):
        return None
    return _packed(weight, bias, memory, products)


@functools.cache
def products_for(dtype: torch.dtype) -> Products | None:
    """Those for `dtype`; None where there are none, or where they compute something else here."""
    library = built().library
    if library is None or dtype not in SUFFIXES:
        return None
    try:
        found = Products(
            function_of(library, "product", dtype, _ARGUMENTS),
            function_of(library, "product_floats", dtype, _ARGUMENTS),
        )
    except AttributeError:
        return None
    return found if _right(found, dtype) else None


def _fits(weight: torch.Tensor) -> bool:
    outputs, inputs = weight.shape
    return inputs * weight.element_size() % _STEP_BYTES == 0 and _added(outputs) * 8 <= outputs


def _added(outputs: int) -> int:
    """Outputs of the last group that are not there."""
    return -outputs % _COLUMNS


def _packed(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    memory: WeightMemory | None,
    products: Products,
) -> NativeLinear:
    outputs, inputs = weight.shape
    step = _STEP_BYTES // weight.element_size()
    groups = (outputs + _added(outputs)) // _COLUMNS
    shape = (groups, inputs // step, 2, _WIDE, step)
    # Of torch, too, memory begins at a line of the cache, which the kernels count on.
    packed = memory.take(shape, weight.dtype) if memory else weight.new_empty(shape)
    if _added(outputs):
        padded = F.pad(weight, (0, 0, 0, _added(outputs)))
        ordered = padded.view(groups, 2, _WIDE, -1, step).permute(0, 3, 1, 2, 4)
    else:
        ordered = weight.reshape(2, groups, _WIDE, -1, step).permute(1, 3, 0, 2, 4)
    packed.copy_(ordered)
    return NativeLinear(packed, bias, outputs, inputs, products)


def _right(products: Products, dtype: torch.dtype) -> bool:
    """Whether they agree with PyTorch: a product of whole groups, and one of a part."""
    generator = torch.Generator().manual_seed(0)
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    x = torch.randn(14, 34, generator=generator).to(dtype)
    for outputs in (64, 50):
        weight = torch.randn(outputs, 34, generator=generator).to(dtype)
        bias = torch.randn(outputs, generator=generator).to(dtype)
        linear = _packed(weight, bias, None, products)
        expected = F.linear(x.double(), weight.double(), bias.double())
        for got in (linear(x), linear.floats(x)):
            if not torch.allclose(got.double(), expected, rtol=tolerance, atol=tolerance):
                return False
    return True
