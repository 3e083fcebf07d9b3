"""From an assignment to a working engine: load the slice, size the KV pool, warm up, measure.

Blocking work, run on the device thread; reports progress in words through a callback.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.step_budget import StepProfile, prefill_tokens
from nodes.engine import Engine
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.slice import ModelSlice
from nodes.model.weights import held_bytes

log = logging.getLogger(__name__)

Report = Callable[[str], None]

_WARM_UP_TOKENS = 64
_WARM_UP_STEPS = 3
_PROFILE_TOKENS = (16, 32, 64, 128, 256, 512)
_PROFILE_TRIES = 2
_LONG_STEP = 4.0
"""Times a pass of one token, after which longer prefills need not be measured."""
_WORKSPACE_SHARE = 0.05
"""Of the memory budget, for a step's own tensors."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load and within which bounds."""

    node: str
    folder: Path
    layers: LayerRange
    device: torch.device
    dtype: torch.dtype
    attention: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    engine: Engine
    layers: LayerRange
    config: ModelConfig
    kv_pages: int
    page_tokens: int
    load_s: float
    layer_tokens_per_s: float
    profile: StepProfile
    notes: str

    def prefill_budget(self, objective_s: float | None) -> int:
        """Prompt tokens per step that suit this device and slice."""
        return prefill_tokens(self.profile, objective_s)


def kv_pages_within(request: LoadRequest, config: ModelConfig, page_tokens: int) -> int:
    """Layer-pages that fit beside the weights; ConfigError in words when too few do.

    Never more than 64 sequences of the full context would fill: a pool nobody can use only costs
    start-up time.
    """
    weights = held_bytes(config, request.layers, device=request.device, dtype=request.dtype)
    left = request.memory_bytes * (1 - _WORKSPACE_SHARE) - weights
    page = KvCache.page_bytes(config, request.dtype, page_tokens)
    pages = int(left // page)
    per_sequence = len(request.layers) * -(-config.max_context // page_tokens)
    least = len(request.layers)
    if pages < least:
        raise ConfigError(
            f"{request.layers} take {weights / 2**20:.0f} MiB of weights; of the "
            f"{request.memory_bytes / 2**20:.0f} MiB allowed nothing is left for KV cache: give "
            "this node fewer layers or more memory",
            param="memory",
        )
    return min(pages, 64 * per_sequence)


def load(request: LoadRequest, report: Report) -> Loaded:
    """Loads, allocates, warms up. Raises ConfigError or ModelFormatError in words."""
    started_s = time.perf_counter()
    config = ModelConfig.from_folder(request.folder)
    # Before anything is read: a slice that leaves no room for KV is refused at once.
    kv_pages_within(request, config, DEFAULT_PAGE_TOKENS)
    report(f"loading {request.layers}")
    model = ModelSlice.load(
        request.folder,
        request.layers,
        device=request.device,
        dtype=request.dtype,
        attention=request.attention,
        progress=lambda done, total: (
            report(f"loading {request.layers}: {done}/{total} tensors")
            if done == total or done % 50 == 0
            else None
        ),
    )
    page_tokens = model.page_tokens()
    pages = kv_pages_within(request, config, page_tokens)
    cache = model.new_cache(pages, page_tokens)
    report("warming up")
    rate = _measure(model, cache)
    profile = measure_profile(model, cache)
    return Loaded(
        engine=Engine(request.node, model, cache),
        layers=request.layers,
        config=config,
        kv_pages=pages,
        page_tokens=page_tokens,
        load_s=time.perf_counter() - started_s,
        layer_tokens_per_s=rate,
        profile=profile,
        notes=f"{str(request.dtype).removeprefix('torch.')} on {request.device}, "
        f"{model.attention.reason}",
    )


def _measure(model: ModelSlice, cache: KvCache) -> float:
    """Tokens of one layer per second over a few small prefills and decodes; also the warm-up."""
    config, layers = model.config, model.layers
    count = min(
        _WARM_UP_TOKENS,
        config.max_context - 1,
        cache.pool.total_pages // len(layers) * cache.page_tokens,
    )
    best = 0.0
    for step in range(_WARM_UP_STEPS):
        seq = ("warm-up", step)
        cache.pool.open(seq, layers)
        try:
            cache.pool.ensure(seq, count)
            started_s = time.perf_counter()
            position, ran = 0, 0
            # One prompt, then some decodes: the mix that serving has, roughly.
            for part in [max(1, count // 2)] + [1] * min(8, count - max(1, count // 2)):
                model.forward(_warm_batch(model, seq, position, part), cache)
                position, ran = position + part, ran + part
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            elapsed_s = max(time.perf_counter() - started_s, 1e-6)
            best = max(best, ran * len(layers) / elapsed_s)
        finally:
            cache.pool.free(seq)
    return best


def measure_profile(model: ModelSlice, cache: KvCache) -> StepProfile:
    """Seconds of steps of one token and of prefills, the best of a few tries each."""
    room = min(
        model.config.max_context,
        cache.pool.total_pages // len(model.layers) * cache.page_tokens,
    )
    pass_s = _step_s(model, cache, 1)
    prefill: list[tuple[float, float]] = []
    for tokens in [n for n in _PROFILE_TOKENS if n <= room] or [1]:
        prefill.append((float(tokens), _step_s(model, cache, tokens)))
        if prefill[-1][1] > _LONG_STEP * pass_s and len(prefill) > 1:
            break
    return StepProfile(pass_s, tuple(prefill))


def _step_s(model: ModelSlice, cache: KvCache, tokens: int) -> float:
    best_s = math.inf
    for _ in range(_PROFILE_TRIES):
        seq = ("profile", tokens)
        cache.pool.open(seq, model.layers)
        try:
            cache.pool.ensure(seq, tokens)
            batch = _warm_batch(model, seq, 0, tokens)
            started_s = time.perf_counter()
            model.forward(batch, cache)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            best_s = min(best_s, time.perf_counter() - started_s)
        finally:
            cache.pool.free(seq)
    return max(best_s, 1e-9)


def _warm_batch(model: ModelSlice, seq: object, position: int, count: int) -> SliceBatch:
    config, layers = model.config, model.layers
    row = RowSpec(
        seq=seq,
        position=position,
        count=count,
        layers=layers,
        wants_logits=layers.end == config.num_layers,
    )
    if layers.first == 0:
        ids = np.arange(count, dtype=np.int64) % config.vocab_size
        return SliceBatch([row], token_ids=torch.from_numpy(ids))
    return SliceBatch([row], hidden=torch.zeros(count, config.hidden_size, dtype=model.dtype))
