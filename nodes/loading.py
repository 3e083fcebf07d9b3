"""From an assignment to a working engine: load the slice, size the KV pool, warm up, measure.

Blocking work, run on the device thread; reports progress in words through a callback.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.step_budget import StepProfile, prefill_tokens
from nodes.engine import Engine
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.slice import ModelSlice
from nodes.model.weights import held_bytes
from nodes.stepping import Span, Stepper

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
    model, cache = load_model(request, report)
    report("warming up")
    rate = _measure(model, cache)
    profile = measure_profile(model, cache)
    return Loaded(
        engine=Engine(request.node, model, cache),
        layers=request.layers,
        config=model.config,
        kv_pages=cache.pool.total_pages,
        page_tokens=cache.page_tokens,
        load_s=time.perf_counter() - started_s,
        layer_tokens_per_s=rate,
        profile=profile,
        notes=f"{str(request.dtype).removeprefix('torch.')} on {request.device}, "
        f"{model.attention.reason}",
    )


def load_model(
    request: LoadRequest, report: Report, most_pages: Callable[[int], int] | None = None
) -> tuple[ModelSlice, KvCache]:
    """The slice, and a KV cache of what memory is left. Raises as load().

    most_pages: from the tokens of a page, how many layer-pages are of use.
    """
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
    if most_pages is not None:
        pages = min(pages, most_pages(page_tokens))
    return model, model.new_cache(pages, page_tokens)


def _measure(model: ModelSlice, cache: KvCache) -> float:
    """Tokens of one layer per second over a few small prefills and decodes; also the warm-up."""
    stepper, layers = Stepper(model, cache), len(model.layers)
    count = min(_WARM_UP_TOKENS, model.config.max_context - 1, room_tokens(model, cache))
    prompt = max(1, count // 2)
    # One prompt, then some decodes: the mix that serving has, roughly.
    spans = [Span(0, prompt)]
    spans += [Span(at, 1) for at in range(prompt, prompt + min(8, count - prompt))]
    best = 0.0
    for _ in range(_WARM_UP_STEPS):
        elapsed_s = 0.0
        for span in spans:
            with stepper.step([span]) as step:
                elapsed_s += step.run_s()
        best = max(best, sum(span.count for span in spans) * layers / elapsed_s)
    return best


def room_tokens(model: ModelSlice, cache: KvCache) -> int:
    """Tokens of one sequence that runs all layers, as far as pages go."""
    return cache.pool.total_pages // len(model.layers) * cache.page_tokens


def measure_profile(model: ModelSlice, cache: KvCache) -> StepProfile:
    """Seconds of steps of one token and of prefills, the best of a few tries each."""
    stepper = Stepper(model, cache)
    room = min(model.config.max_context, room_tokens(model, cache))
    pass_s = _best_s(stepper, 1)
    prefill: list[tuple[float, float]] = []
    for tokens in [n for n in _PROFILE_TOKENS if n <= room] or [1]:
        prefill.append((float(tokens), _best_s(stepper, tokens)))
        if prefill[-1][1] > _LONG_STEP * pass_s and len(prefill) > 1:
            break
    return StepProfile(pass_s, tuple(prefill))


def _best_s(stepper: Stepper, tokens: int) -> float:
    with stepper.step([Span(0, tokens)]) as step:
        return min(step.run_s() for _ in range(_PROFILE_TRIES))
