"""From an assignment to a working engine: load the slice, size the KV pool, warm up, measure.

Blocking work. Steps go through the LoadHost, one at a time, so that a slice which serves meanwhile
has its turn between any two of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from helix_mq.errors import ConfigError, NoRoom
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from helix_mq.slice_room import least_tokens, usable_bytes
from helix_mq.step_budget import StepProfile, prefill_tokens
from nodes.engine import Engine
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.parallel.lead import PartRequest, load_lead
from nodes.model.parallel.split import node_kv_config, node_weight_bytes
from nodes.model.recorders import CudaGraphs
from nodes.model.slice import ModelSlice
from nodes.model.weights import Progress, held_bytes
from nodes.step_expectation import StepExpectation
from nodes.stepping import Span, Stepper

log = logging.getLogger(__name__)

Report = Callable[[str], None]

_WARM_UP_TOKENS = 64
_WARM_UP_STEPS = 3
_PROFILE_TOKENS = (16, 32, 64, 128, 256, 512)
_PROFILE_TRIES = 2
_DECODE_ROWS = (1, 4, 16, 64)
_DECODE_CONTEXT = 128
_LONG_DECODES = 8.0
_LONG_STEP = 4.0
"""Times a pass of one token, after which longer prefills need not be measured."""


class LoadHost(Protocol):
    """Who a slice is loaded for."""

    def go_on(self) -> None:
        """Called between tensors and between steps; raises when the slice is wanted no more."""
        ...

    def run(self, step: Callable[[], float]) -> float:
        """What `step` returns, run where steps run."""
        ...


class Alone:
    """Nothing else runs, and nobody changes their mind."""

    def go_on(self) -> None:
        pass

    def run(self, step: Callable[[], float]) -> float:
        return step()


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load and within which bounds. `others_bytes`: of `memory_bytes`, what slices that
    stay beside it hold."""

    node: str
    folder: Path
    layers: LayerRange
    device: torch.device
    dtype: torch.dtype
    attention: str
    memory_bytes: int
    others_bytes: int = 0
    quantise: Quantisation = Quantisation.NONE
    tensor_parallel: int = 1
    cuda_graphs: bool = True

    def page_bytes(self, config: ModelConfig, page_tokens: int) -> int:
        """Of one layer-page, over all ranks."""
        return KvCache.page_bytes(
            node_kv_config(config, self.tensor_parallel), self.dtype, page_tokens
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    engine: Engine
    request: LoadRequest
    layers: LayerRange
    config: ModelConfig
    page_tokens: int
    weight_bytes: int
    load_s: float
    layer_tokens_per_s: float
    profile: StepProfile
    decodes: tuple[tuple[float, float], ...]
    """(rows, seconds) of steps of decodes."""
    notes: str

    def expectation(self) -> StepExpectation:
        """What steps should take, by what was measured here."""
        return StepExpectation(len(self.layers), self.profile, self.decodes)

    @property
    def kv_pages(self) -> int:
        return self.engine.total_pages

    @property
    def held_bytes(self) -> int:
        """Weights and KV pool."""
        page = self.request.page_bytes(self.config, self.page_tokens)
        return self.weight_bytes + self.kv_pages * page

    def kv_pages_beside(self, others_bytes: int) -> int:
        """Layer-pages it would have got with slices of so many bytes beside it; at least what it
        has."""
        request = replace(self.request, others_bytes=others_bytes)
        return max(self.kv_pages, _fitting(request, self.config, self.page_tokens))

    def pages_left_beside(self, request: LoadRequest) -> int:
        """Layer-pages that this slice may keep when another is loaded beside it: half of what KV
        room the two have; as many as it has where the other fits as it is."""
        try:
            kv_pages_within(request, self.config, self.page_tokens)
        except NoRoom:
            page = self.request.page_bytes(self.config, self.page_tokens)
            weights = _weight_bytes(request, self.config)
            others = request.others_bytes - self.kv_pages * page
            budget = usable_bytes(request.memory_bytes) - weights - others
            return max(1, min(self.kv_pages, int(budget / 2 // page)))
        return self.kv_pages

    def prefill_budget(self, objective_s: float | None) -> int:
        """Prompt tokens per step that suit this device and slice."""
        return prefill_tokens(self.profile, objective_s)


def _weight_bytes(request: LoadRequest, config: ModelConfig) -> int:
    ranks = request.tensor_parallel
    if ranks > 1:
        form = WeightForm(request.dtype.itemsize, request.quantise)
        return node_weight_bytes(config, request.layers, ranks, form)
    return held_bytes(
        config,
        request.layers,
        device=request.device,
        dtype=request.dtype,
        quantise=request.quantise,
    )


def _fitting(request: LoadRequest, config: ModelConfig, page_tokens: int) -> int:
    """Layer-pages that fit beside everything else, negative where not even that does.

    Never more than 64 sequences of the full context would fill: a pool nobody can use only costs
    start-up time.
    """
    budget = usable_bytes(request.memory_bytes) - request.others_bytes
    page = request.page_bytes(config, page_tokens)
    pages = int((budget - _weight_bytes(request, config)) // page)
    per_sequence = len(request.layers) * -(-config.max_context // page_tokens)
    return min(pages, 64 * per_sequence)


def kv_pages_within(request: LoadRequest, config: ModelConfig, page_tokens: int) -> int:
    """Layer-pages that fit beside the weights and the other slices; in words when too few do:
    ConfigError where it has the memory for itself, NoRoom else."""
    weights = _weight_bytes(request, config)
    pages = _fitting(request, config, page_tokens)
    if request.others_bytes:
        least = len(request.layers) * -(-least_tokens(config) // page_tokens)
        if pages < least:
            kv_bytes = least * request.page_bytes(config, page_tokens)
            raise NoRoom(
                f"{request.layers} take {weights / 2**20:.0f} MiB of weights and at least "
                f"{kv_bytes / 2**20:.0f} MiB of KV cache; of the "
                f"{request.memory_bytes / 2**20:.0f} MiB allowed, the slices held take "
                f"{request.others_bytes / 2**20:.0f} MiB: free them first, or give this node more "
                "memory"
            )
    elif pages < len(request.layers):
        raise ConfigError(
            f"{request.layers} take {weights / 2**20:.0f} MiB of weights; of the "
            f"{request.memory_bytes / 2**20:.0f} MiB allowed nothing is left for KV cache: give "
            "this node fewer layers or more memory",
            param="memory",
        )
    return pages


EngineMaker = Callable[[str, ModelSlice, KvCache], Engine]
"""From the node's name, a slice and its cache."""

SliceMaker = Callable[[LoadRequest, Progress], ModelSlice]
"""Reads a slice's weights, or comes by them in another way."""


def load(
    request: LoadRequest,
    report: Report,
    host: LoadHost | None = None,
    engine: EngineMaker = Engine,
    make: SliceMaker | None = None,
) -> Loaded:
    """Loads, allocates, warms up. Raises ConfigError, NoRoom or ModelFormatError in words, and
    what `host` raises."""
    host = host or Alone()
    started_s = time.perf_counter()
    model, cache = load_model(request, report, host=host, make=make)
    report("warming up")
    try:
        rate = _measure(model, cache, host)
        profile = measure_profile(model, cache, host)
        decodes = measure_decodes(model, cache, host)
    except BaseException:
        model.close()
        raise
    return Loaded(
        engine=engine(request.node, model, cache),
        request=request,
        layers=request.layers,
        config=ModelConfig.from_folder(request.folder),
        page_tokens=cache.page_tokens,
        weight_bytes=model.weight_bytes,
        load_s=time.perf_counter() - started_s,
        layer_tokens_per_s=rate,
        profile=profile,
        decodes=decodes,
        notes=f"{str(request.dtype).removeprefix('torch.')}{_weights_note(request)} on "
        f"{request.device}, "
        f"{model.attention.reason}",
    )


def _weights_note(request: LoadRequest) -> str:
    if request.quantise is Quantisation.NONE:
        return ""
    return f" with {request.quantise} weights"


def load_model(
    request: LoadRequest,
    report: Report,
    most_pages: Callable[[int], int] | None = None,
    host: LoadHost | None = None,
    make: SliceMaker | None = None,
) -> tuple[ModelSlice, KvCache]:
    """The slice, and a KV cache of what memory is left. Raises as load().

    most_pages: from the tokens of a page, how many layer-pages are of use.
    """
    host = host or Alone()

    def progress(done: int, total: int) -> None:
        host.go_on()
        if done == total or done % 50 == 0:
            report(f"loading {request.layers}: {done}/{total} tensors")

    config = ModelConfig.from_folder(request.folder)
    # Before anything is read: a slice that leaves no room for KV is refused at once.
    kv_pages_within(request, config, DEFAULT_PAGE_TOKENS)
    report(f"loading {request.layers}")
    model = (make or _load_slice)(request, progress)
    try:
        page_tokens = model.page_tokens()
        pages = kv_pages_within(request, config, page_tokens)
        if most_pages is not None:
            pages = min(pages, most_pages(page_tokens))
        return model, model.new_cache(pages, page_tokens)
    except BaseException:
        model.close()
        raise


def _load_slice(request: LoadRequest, progress: Progress) -> ModelSlice:
    if request.tensor_parallel > 1:
        return load_lead(
            PartRequest(
                request.folder,
                request.layers,
                request.device,
                request.dtype,
                request.attention,
                request.tensor_parallel,
                request.quantise,
            ),
            progress,
        )
    model = ModelSlice.load(
        request.folder,
        request.layers,
        device=request.device,
        dtype=request.dtype,
        attention=request.attention,
        progress=progress,
        quantise=request.quantise,
    )
    if request.cuda_graphs and request.device.type == "cuda":
        # The steps that warm up and measure are the first that are recorded.
        model.record_decodes(CudaGraphs(request.device))
    return model


def _measure(model: ModelSlice, cache: KvCache, host: LoadHost) -> float:
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
                host.go_on()
                elapsed_s += host.run(step.run_s)
        best = max(best, sum(span.count for span in spans) * layers / elapsed_s)
    return best


def room_tokens(model: ModelSlice, cache: KvCache) -> int:
    """Tokens of one sequence that runs all layers, as far as pages go."""
    return cache.pool.total_pages // len(model.layers) * cache.page_tokens


def measure_profile(model: ModelSlice, cache: KvCache, host: LoadHost | None = None) -> StepProfile:
    """Seconds of steps of one token and of prefills, the best of a few tries each."""
    host = host or Alone()
    stepper = Stepper(model, cache)
    room = min(model.config.max_context, room_tokens(model, cache))
    pass_s = _best_s(stepper, [Span(0, 1)], host)
    prefill: list[tuple[float, float]] = []
    for tokens in [n for n in _PROFILE_TOKENS if n <= room] or [1]:
        prefill.append((float(tokens), _best_s(stepper, [Span(0, tokens)], host)))
        if prefill[-1][1] > _LONG_STEP * pass_s and len(prefill) > 1:
            break
    return StepProfile(pass_s, tuple(prefill))


def measure_decodes(
    model: ModelSlice, cache: KvCache, host: LoadHost | None = None
) -> tuple[tuple[float, float], ...]:
    """(rows, seconds) of steps of decodes in the middle of short answers, rows rising from 1."""
    host = host or Alone()
    stepper = Stepper(model, cache)
    context = min(_DECODE_CONTEXT, model.config.max_context - 1)
    points: list[tuple[float, float]] = []
    for rows in _DECODE_ROWS:
        spans = [Span(context, 1)] * rows
        if points and not stepper.fits(spans):
            break
        if not stepper.fits(spans):
            spans = [Span(0, 1)]
        points.append((float(rows), _best_s(stepper, spans, host)))
        if points[-1][1] > _LONG_DECODES * points[0][1]:
            break
    return tuple(points)


def _best_s(stepper: Stepper, spans: list[Span], host: LoadHost) -> float:
    times = []
    with stepper.step(spans) as step:
        for _ in range(_PROFILE_TRIES):
            host.go_on()
            times.append(host.run(step.run_s))
    return min(times)
