"""The calling conventions of the CUDA attention libraries; nothing else knows them.

Each class takes the library's functions when it is built, so that what is passed to them is tested
without the library. `load()` imports them, or raises BackendUnavailable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nodes.kv_cache import KvCache
from nodes.model.attention.base import BackendUnavailable
from nodes.model.attention.paged import PagedRows

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class FlashAttention2:
    """The flash-attn package (2.x). Its decode kernel splits long sequences over the GPU, its
    varlen kernel does not, so decodes go apart."""

    varlen: Function
    with_kvcache: Function
    page_multiple = 256
    """Checked by its kernels: "block size must be divisible by 256"."""
    decodes_apart = True

    @classmethod
    def load(cls) -> FlashAttention2:
        try:
            from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
        except Exception as error:
            raise _cannot_be_imported("the flash-attn package", error) from error
        return cls(flash_attn_varlen_func, flash_attn_with_kvcache)

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        common = {
            "causal": True,
            "window_size": _window(window),
            "block_table": rows.tables[layer],
        }
        if rows.max_count == 1:
            out = self.with_kvcache(
                query[:, None], cache.keys, cache.values, cache_seqlens=rows.kv_lens, **common
            )
            return _tensor(out)[:, 0]
        out = self.varlen(
            query,
            cache.keys,
            cache.values,
            cu_seqlens_q=rows.starts,
            cu_seqlens_k=rows.kv_starts,
            max_seqlen_q=rows.max_count,
            max_seqlen_k=rows.max_kv_len,
            **common,
        )
        return _tensor(out)


@dataclass(frozen=True, slots=True)
class FlashAttention3:
    """The Hopper kernels (module flash_attn_interface): one call for every mixture of rows."""

    with_kvcache: Function
    page_multiple = 1
    decodes_apart = False

    @classmethod
    def load(cls) -> FlashAttention3:
        try:
            from flash_attn_interface import flash_attn_with_kvcache
        except Exception as error:
            raise _cannot_be_imported("flash_attn_interface", error) from error
        return cls(flash_attn_with_kvcache)

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        out = self.with_kvcache(
            query,
            cache.keys,
            cache.values,
            cache_seqlens=rows.kv_lens,
            page_table=rows.tables[layer],
            cu_seqlens_q=rows.starts,
            max_seqlen_q=rows.max_count,
            causal=True,
            window_size=_window(window),
        )
        return _tensor(out)


@dataclass(frozen=True, slots=True)
class TorchVarlen:
    """PyTorch's own FlashAttention kernels, from the release that reads block tables on."""

    varlen: Function
    page_multiple = 256
    """They are built from flash-attn 2, with its check."""
    decodes_apart = False

    @classmethod
    def load(cls) -> TorchVarlen:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise BackendUnavailable(f"torch {torch.__version__} has no varlen_attn") from error
        if "block_table" not in inspect.signature(varlen_attn).parameters:
            raise BackendUnavailable(
                f"varlen_attn of torch {torch.__version__} reads no block tables"
            )
        return cls(varlen_attn)

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        out = self.varlen(
            query,
            cache.keys,
            cache.values,
            rows.starts,
            None,
            rows.max_count,
            rows.max_kv_len,
            window_size=(-1, 0) if window is None else _window(window),
            enable_gqa=query.shape[1] != cache.kv_heads,
            seqused_k=rows.kv_lens,
            block_table=rows.tables[layer],
        )
        return _tensor(out)


def _cannot_be_imported(what: str, error: Exception) -> BackendUnavailable:
    """Any exception: one built for another torch raises what it likes while it registers itself."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return BackendUnavailable(f"{what} cannot be imported ({text[:200]})")


def _window(window: int | None) -> tuple[int, int]:
    """(left, right) neighbours besides the query's own key; -1 for all."""
    return (-1, -1) if window is None else (window - 1, 0)


def _tensor(out: object) -> torch.Tensor:
    """Releases differ in whether the sums' logarithms come along unasked."""
    if isinstance(out, tuple):
        out = out[0]
    assert isinstance(out, torch.Tensor)
    return out
