"""Matrix products with weights in 8 or 4 bits, through torch's own weight-only kernels.

int8 holds one scale per output, int4 a scale and a zero per group of inputs. Products are computed
on bfloat16 rows whatever dtype the rest of the slice has: the kernels have fast forms for it alone
(on two cores of an EPYC the float32 form takes 14 times as long, the float16 form 30 times).
Whether this torch, on this machine, computes them rightly is tried, not looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import INT4_GROUPS, Quantisation, group_of
from nodes.model.linear import Linear, pieces

_COMPUTE = torch.bfloat16
_KERNEL_ROWS = 8
"""Rows up to which the int8 kernel is used. Kernels for few bits take as long per row, however many
there are; above, weights are widened a piece at a time and multiplied as any others. One core, 576
to 3072 widths, kernel against widened: 396 and 509 us for 8 rows, 804 and 656 for 16; int4, 1338
and 3131 for 32, with most of the widening, some 2000, whatever the rows."""
_KERNEL_WIDTHS = 16
"""torch 2.13's int8 kernel reads beyond rows whose width this does not divide: wrong sums, and for
several rows the end of the process."""
_INT4_KERNEL_ROWS = 48
_BLOCK = 64
"""Outputs that the CPU's packed int4 form interleaves: the nibbles of a byte are 32 apart."""
_WIDE_ELEMENTS = 1 << 21
"""Weights that are widened at once: 4 MiB, which caches hold."""
_INNER_TILES = (8, 4, 2)
"""Of the CUDA kernel's layout: a row's width must be a multiple of 16 times one of them."""


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """weight: int8 [out, in]; scales: bfloat16 [out]; bias in the compute dtype."""

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    kernel_rows: int

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kernel_rows: int,
        largest: torch.Tensor | None = None,
    ) -> Int8Linear:
        """Of a weight [out, in] of any float dtype. Errors are half a scale at most, which is a
        127th of the largest weight of the output: `largest`, float32 [out], where others hold more
        of its inputs."""
        whole = weight.float()
        if largest is None:
            largest = largest_of(weight)
        scales = (largest / 127).clamp(min=1e-12).to(_COMPUTE)
        steps = torch.round(whole / scales.float()[:, None]).clamp_(-127, 127)
        steps = steps.to(torch.int8).contiguous()
        return cls(steps, scales, bias, 0 if weight.shape[1] % _KERNEL_WIDTHS else kernel_rows)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        narrow = x.to(_COMPUTE).contiguous()
        if len(x) <= self.kernel_rows:
            out = torch.ops.aten._weight_int8pack_mm(narrow, self.weight, self.scales)
        else:
            out = self._widened(narrow)
        return _finish(out, x.dtype, self.bias)

    def _widened(self, x: torch.Tensor) -> torch.Tensor:
        """bfloat16 holds every int8 exactly, so the scale can follow the product."""
        rows_out, width = self.weight.shape
        step = max(1, _WIDE_ELEMENTS // width)
        # As in nodes.model.linear: oneDNN keeps a kernel for each number of rows it meets.
        sizes = pieces(len(x))
        padded = F.pad(x, (0, 0, 0, sum(sizes) - len(x)))
        out = torch.empty((len(padded), rows_out), dtype=x.dtype, device=x.device)
        for first in range(0, rows_out, step):
            part = slice(first, first + step)
            wide, at = self.weight[part].to(_COMPUTE), 0
            for size in sizes:
                product = F.linear(padded[at : at + size], wide)
                torch.mul(product, self.scales[part], out=out[at : at + size, part])
                at += size
        return out[: len(x)]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scales.nbytes + _nbytes(self.bias)


@dataclass(frozen=True, slots=True)
class Int4Linear:
    """weight: opaque, packed by torch for this kind of device; scales_and_zeros: bfloat16
    [in / group, out, 2], a weight being (q - 8) * scale + zero with q of 0 to 15."""

    weight: torch.Tensor
    scales_and_zeros: torch.Tensor
    group: int
    bias: torch.Tensor | None
    kernel_rows: int | None = None
    """Where weights can be widened: rows up to which they are not."""

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        group: int | None = None,
        kernel_rows: int | None = None,
    ) -> Int4Linear:
        """Of a weight [out, in] of any float dtype; ConfigError where groups do not divide it.
        Errors are half a step at most, a fifteenth of the range of the group's weights, and what
        bfloat16 rounds of the group's zero."""
        rows, width = weight.shape
        group = group or group_of(width)
        if group is None or width % group:
            raise _indivisible(width, group or INT4_GROUPS[-1])
        parts = weight.float().view(rows, width // group, group)
        low, high = parts.amin(dim=2), parts.amax(dim=2)
        scales = ((high - low) / 15).clamp(min=1e-12).to(_COMPUTE)
        zeros = (low + 8 * scales.float()).to(_COMPUTE)
        steps = torch.round((parts - zeros.float()[..., None]) / scales.float()[..., None])
        codes = (steps + 8).clamp_(0, 15).to(torch.int32).view(rows, width)
        both = torch.stack((scales, zeros), dim=-1).transpose(0, 1).contiguous()
        return cls(_pack(codes), both, group, bias, None if rows % _BLOCK else kernel_rows)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        narrow = x.to(_COMPUTE).contiguous()
        if self.kernel_rows is not None and len(x) > self.kernel_rows:
            return _finish(self._widened(narrow), x.dtype, self.bias)
        product = (
            torch.ops.aten._weight_int4pack_mm_for_cpu
            if x.device.type == "cpu"
            else torch.ops.aten._weight_int4pack_mm
        )
        out = product(narrow, self.weight, self.group, self.scales_and_zeros)
        return _finish(out, x.dtype, self.bias)

    def _widened(self, x: torch.Tensor) -> torch.Tensor:
        rows_out, groups = self.scales_and_zeros.shape[1], self.scales_and_zeros.shape[0]
        blocks = rows_out // _BLOCK
        table = (
            self.scales_and_zeros.view(groups, blocks, _BLOCK, 2).permute(3, 1, 0, 2).contiguous()
        )
        scales, zeros = table[0][:, :, None], table[1][:, :, None]
        step = max(1, _WIDE_ELEMENTS // (groups * self.group * _BLOCK))
        packed = self.weight.view(blocks, -1)
        padded = F.pad(x, (0, 0, 0, sum(pieces(len(x))) - len(x)))
        outs = []
        for first in range(0, blocks, step):
            part = slice(first, first + step)
            codes = unpack_cpu(packed[part], len(packed[part]))
            wide = codes.view(-1, groups, self.group, _BLOCK).to(_COMPUTE).sub_(8)
            torch.addcmul(zeros[part], wide, scales[part], out=wide)
            outs.append(torch.matmul(padded, wide.view(codes.shape)))
        return torch.cat(outs).transpose(0, 1).reshape(len(padded), rows_out)[: len(x)]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scales_and_zeros.nbytes + _nbytes(self.bias)


def largest_of(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each output of a weight [out, in]: float32 [out]."""
    return weight.float().abs().amax(dim=1)


def make_quantised(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    quantise: Quantisation,
    largest: torch.Tensor | None = None,
) -> Linear:
    """Of `weight` [out, in] on its device. ConfigError where this form cannot hold its shape.
    `largest`: of int8, as Int8Linear.of() has it."""
    if quantise is Quantisation.INT4:
        return Int4Linear.of(weight, bias, kernel_rows=int4_kernel_rows(weight.device))
    return Int8Linear.of(weight, bias, int8_kernel_rows(weight.device), largest)


def check_quantised(quantise: Quantisation, device: torch.device) -> None:
    """ConfigError in words where this torch cannot compute with such weights on `device`."""
    if quantise is Quantisation.INT4 and not _int4_works(device):
        raise ConfigError(
            f'quantise = "int4": torch {torch.__version__} has no working kernel for it on '
            f'{device}; use quantise = "int8", which every device computes',
            param="quantise",
        )


def check_widths(quantise: Quantisation, config: ModelConfig) -> None:
    """ConfigError in words where a model's weights cannot be held so."""
    for width in (config.hidden_size, config.q_size, config.intermediate_size):
        if quantise is Quantisation.INT4 and group_of(width) is None:
            raise _indivisible(width, INT4_GROUPS[-1])


def _indivisible(width: int, group: int) -> ConfigError:
    return ConfigError(
        f'quantise = "int4": rows of {width} weights do not divide into groups of {group}; use '
        'quantise = "int8" for this model',
        param="quantise",
    )


@lru_cache(maxsize=8)
def int8_kernel_rows(device: torch.device) -> int:
    """Rows up to which torch's int8 kernel is worth its while here; 0 where it does not work."""
    weight, x = _trial(device)
    return _KERNEL_ROWS if _right(lambda: Int8Linear.of(weight, None, len(x)), weight, x) else 0


@lru_cache(maxsize=8)
def int4_kernel_rows(device: torch.device) -> int | None:
    """Rows up to which the int4 kernel is used; None where its packed form is not the one that can
    be read here, and it is used for any number."""
    if device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (2 * _BLOCK, 64), generator=generator, dtype=torch.int32)
    packed = _pack(codes)
    if packed.dtype != torch.uint8 or packed.numel() * 2 != codes.numel():
        return None
    read = unpack_cpu(packed, 2).transpose(1, 2).reshape(codes.shape)
    return _INT4_KERNEL_ROWS if torch.equal(read.to(torch.int32), codes) else None


@lru_cache(maxsize=8)
def _int4_works(device: torch.device) -> bool:
    weight, x = _trial(device)
    return _right(lambda: Int4Linear.of(weight, None), weight, x)


def _trial(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights that lie on a grid of 16 steps, so that both forms hold them all but exactly."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 256), generator=generator)
    # Both ends in each group: quantising then finds the grid again.
    codes[:, ::32], codes[:, 1::32] = 0, 15
    x = torch.randn(3, 256, generator=generator)
    return ((codes - 8) / 8).to(device), x.to(device=device, dtype=_COMPUTE)


def _right(make: object, weight: torch.Tensor, x: torch.Tensor) -> bool:
    assert callable(make)
    try:
        got = make()(x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    exact = F.linear(x.double(), weight.double())
    return bool((got.double() - exact).norm() < 0.02 * exact.norm())


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """int32 codes of 0 to 15 [out, in] in the layout of the device's kernel."""
    if codes.device.type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    else:
        width = codes.shape[1]
        tiles = next((t for t in _INNER_TILES if width % (16 * t) == 0), _INNER_TILES[-1])
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)
    assert isinstance(packed, torch.Tensor)
    return packed


def unpack_cpu(packed: torch.Tensor, blocks: int) -> torch.Tensor:
    """The CPU kernel's packed form as codes: uint8 [blocks, in, 64 outputs]."""
    pairs = packed.view(blocks, -1, _BLOCK // 2)
    return torch.cat((pairs & 15, pairs >> 4), dim=2)


def _finish(out: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None) -> torch.Tensor:
    whole = out.to(dtype)
    return whole if bias is None else whole + bias


def _nbytes(bias: torch.Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes
