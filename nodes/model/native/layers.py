"""Whole layers of a pass in one compiled call: decodes, drafts and prompts, also side by side.

Between products there is little to compute, and a call for each of it costs as much as that. One
call for all layers also lets go of the interpreter's lock for all of them, for the event loop. A
token has the same bits however a prompt is cut, and whether it came as a prompt or as a decode.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache, KvLayout
from nodes.model.linear import Linear
from nodes.model.metadata import SegmentIndex
from nodes.model.native.build import built
from nodes.model.native.calls import (
    COUNT,
    POINTER,
    REAL,
    THREADS,
    address,
    function_of,
    pointer,
)
from nodes.model.native.kernels import ATTEND_WIDTHS
from nodes.model.native.products import NativeLinear, products_for
from nodes.model.rope import Rotation
from nodes.model.weights import LayerWeights

WORTH_THREADS_BYTES = 1 << 19
"""Of a layer's weights: below, threads wait for each other longer than they compute."""

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_Sizes = COUNT * 9
"""As layers.h lists them, like the next."""
_Tokens = COUNT * 17


class NativeLayers:
    """The layers of a slice as layers.h takes them. `weights` must live as long."""

    def __init__(
        self,
        run: Callable[..., None],
        config: ModelConfig,
        layers: LayerRange,
        weights: Sequence[LayerWeights],
    ) -> None:
        """layers_for() builds one, where one works."""
        self._run = run
        self.config = config
        self._layers = layers
        self._weights = weights
        self._addresses = np.array([_addresses(w) for w in weights], np.int64)
        self._first_address = pointer(self._addresses)
        self._layer_stride = self._addresses.strides[0]
        self._windows = [config.window_of(n) for n in range(layers.first, layers.end)]
        kv_width = config.num_kv_heads * config.head_dim
        query_width = config.num_heads * config.head_dim
        layer_bytes = sum(p.nbytes for p in _products(weights[0]))
        self.worth_threads = layer_bytes >= WORTH_THREADS_BYTES
        self._spare = config.hidden_size + 2 * query_width + 2 * kv_width + config.intermediate_size

    def address_of(self, layer: int) -> int:
        """Where the addresses of the slice's `layer`-th layer's weights are."""
        return self._first_address + layer * self._layer_stride

    def sizes(
        self, layers: int, tokens: int, cache: KvCache, pages: int
    ) -> ctypes.Array[ctypes.c_int64]:
        """As layers.h lists them. pages: of the longest table."""
        config = self.config
        return _Sizes(
            layers,
            tokens,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            cache.page_tokens,
            pages,
        )

    def takes(self, cache: KvCache) -> bool:
        return cache.layout is KvLayout.HEAD_MAJOR

    def run(
        self,
        x: torch.Tensor,
        layers: LayerRange,
        index: SegmentIndex,
        rotation: Rotation,
        cache: KvCache,
        kept: I64 | None = None,
    ) -> torch.Tensor:
        """The residual stream after `layers` of x [tokens, hidden], a new tensor; keys and values
        are stored. `index` and `rotation` are of the same tokens. `kept`: the tokens, ascending,
        whose results are wanted; all without it."""
        # Few calls on purpose: a step's weights drive all that they touch out of the caches.
        rows, count = index.attention, x.shape[0]
        x = x.clone(memory_format=torch.contiguous_format)
        tables = np.ascontiguousarray(rows.tables, np.int32)
        owners: I32 | None = None
        if len(rows.kv_lens) < count:
            owners = np.repeat(np.arange(len(rows.kv_lens), dtype=np.int32), rows.counts)
        ends = (index.positions + 1).astype(np.int32)
        first = layers.first - self._layers.first
        windows = self._windows[first : layers.end - self._layers.first]
        firsts = _firsts(ends, windows)
        last: list[I32] = []
        if kept is not None:
            own = owners if owners is not None else np.arange(count, dtype=np.int32)
            last = [kept.astype(np.int32), own[kept], firsts[-1][kept], ends[kept]]
        slots = np.ascontiguousarray(index.slots)
        space = torch.empty((count, self._spare), dtype=x.dtype)
        sizes = self.sizes(len(windows), count, cache, tables.shape[2])
        tokens = _Tokens(
            x.data_ptr(),
            rotation.cos.data_ptr(),
            rotation.sin.data_ptr(),
            pointer(slots),
            pointer(tables),
            pointer(owners) if owners is not None else 0,
            pointer(firsts),
            pointer(ends),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            space.data_ptr(),
            len(rows.kv_lens),
            count if kept is None else len(kept),
            *(pointer(array) for array in last),
        )
        self._run(
            self.address_of(first),
            sizes,
            tokens,
            self.config.rms_eps,
            torch.get_num_threads() if self.worth_threads else 1,
        )
        return x if kept is None else x[: len(kept)]


def layers_for(
    config: ModelConfig, layers: LayerRange, weights: Sequence[LayerWeights]
) -> NativeLayers | None:
    """None where some product is none of the compiled ones, or of a size they do not take whole."""
    dtype = weights[0].attention_norm.dtype
    library = built().library
    products = [p for w in weights for p in _products(w)]
    whole = all(isinstance(p, NativeLinear) and p.halves_meet for p in products)
    if library is None or not whole or config.head_dim not in ATTEND_WIDTHS:
        return None
    if products_for(dtype) is None:
        return None
    run = function_of(library, "layers", dtype, [*[POINTER] * 3, REAL, THREADS])
    return NativeLayers(run, config, layers, weights)


def _products(w: LayerWeights) -> tuple[Linear, ...]:
    return w.qkv, w.out, w.gate_up, w.down


def _firsts(ends: I32, windows: Sequence[int | None]) -> I32:
    """[layers, tokens]: the first token that each sees."""
    firsts = np.zeros((len(windows), len(ends)), np.int32)
    for layer, window in enumerate(windows):
        if window is not None:
            np.maximum(ends - window, 0, out=firsts[layer])
    return firsts


def _addresses(w: LayerWeights) -> list[int]:
    """In the order of layers.h; 0 for what the model has not."""
    found: list[torch.Tensor | None] = [w.attention_norm]
    found += [*_held(w.qkv), w.q_norm, w.k_norm, *_held(w.out)]
    found += [w.mlp_norm, *_held(w.gate_up), *_held(w.down)]
    return [address(tensor) or 0 for tensor in found]


def _held(linear: object) -> tuple[torch.Tensor, torch.Tensor | None]:
    assert isinstance(linear, NativeLinear)
    return linear.packed, linear.bias
