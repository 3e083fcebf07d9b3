"""Steps in which every row is the next token of a text: passed on, or, where its route ends,
a token chosen, with no probabilities wanted.

That is what a node does nearly all the time, and between two passes of compiled code everything
that is touched comes from memory: a step's weights have driven it out of the caches, and one call
of PyTorch's costs 60 to 80 us there. So no tensor is made here. What is no such step, or not in
order, is left to the engine's general way, which comes to the same results or says what is wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import torch

from helix_mq.ids import ROUTER
from helix_mq.messages.data import TokenItem
from nodes.batching import SeqKey
from nodes.frame_making import frames_of, in_order
from nodes.kv_cache import KvCache
from nodes.model.native.decodes import Given, NativeDecodes
from nodes.model.sampler import SamplerState
from nodes.model.sampler_draw import compiled_draws
from nodes.steps import Batch, OutFrame, StepResult
from nodes.wire_format import WIRE_NAMES, WireFormats, to_wire

_TOKENS = "int32"


class PlainSteps:
    """Of one engine, whose pages and samplers these are; device thread."""

    def __init__(
        self,
        node: str,
        decodes: NativeDecodes,
        cache: KvCache,
        samplers: Mapping[SeqKey, SamplerState],
        formats: WireFormats,
    ) -> None:
        self._node = node
        self._decodes = decodes
        self._cache = cache
        self._samplers = samplers
        self._formats = formats
        self._dtype = WIRE_NAMES[decodes.dtype]
        self._width = decodes.width
        self._draws = compiled_draws() is not None

    def run(self, batch: Batch) -> StepResult | None:
        """As Engine.run(); None where the step is none of these, or must be done again to say what
        is wrong. No row has blocks, so there is nothing that others could go on from."""
        started_s = time.perf_counter()
        first = batch[0]
        layers, taken = first.layers, first.payload.dtype
        ends = first.next_hop == ROUTER
        starts = taken == _TOKENS
        alike, drawn, edited = True, False, False
        if not starts and taken != self._dtype:
            return None
        for work in batch:
            payload = work.payload
            if (
                work.count != 1
                or not work.sample
                or not work.position
                or (work.next_hop == ROUTER) is not ends
                or payload.dtype != taken
                or payload.spec is not None
                or payload.blocks is not None
                or (work.layers is not layers and work.layers != layers)
            ):
                return None
            if work.next_hop != first.next_hop or payload.epoch != first.payload.epoch:
                alike = False
            if ends:
                sampler = self._samplers[work.seq]
                if sampler.params.logprobs:
                    return None
                if work.position + 1 < sampler.plain_from:
                    if not self._draws and sampler.params.temperature:
                        return None
                    drawn = True
                    edited = edited or work.position + 1 < sampler.simple_from
        works = batch if alike else in_order(batch)
        places = [(w.seq, w.position) for w in works]
        if starts:
            order = sys.byteorder
            given = Given([int.from_bytes(w.payload.data, order, signed=True) for w in works])
        else:
            given = Given((), [w.payload.data for w in works])
        if ends:
            found = self._decodes.tokens(
                places,
                layers,
                self._cache,
                given,
                [self._samplers[w.seq].choice for w in works] if drawn else (),
                [self._samplers[w.seq].edits_at(w.position + 1) for w in works] if edited else (),
            )
            if found is None:
                return None
            computed_s = time.perf_counter()
            if edited:
                for work, token in zip(works, found, strict=True):
                    self._samplers[work.seq].took(token)
            tokens = [
                TokenItem(w.seq.request, w.seq.attempt, w.position + 1, token)
                for w, token in zip(works, found, strict=True)
            ]
            return _result([], tokens, works, started_s, computed_s)
        leaving = self._decodes.hidden(places, layers, self._cache, given)
        if leaving is None:
            return None
        computed_s = time.perf_counter()
        size = len(leaving) // len(works)

        def wire(start: int, end: int, peer: str) -> tuple[str, memoryview]:
            rows, form = leaving[start * size : end * size], self._formats.of(peer)
            if not form:
                return self._dtype, rows
            numbers = torch.frombuffer(rows, dtype=self._decodes.dtype)
            return to_wire(numbers.view(-1, self._width), form)

        frames = frames_of(self._node, works, self._width, wire)
        return _result(frames, [], works, started_s, computed_s)


def _result(
    frames: list[OutFrame],
    tokens: list[TokenItem],
    works: Batch,
    started_s: float,
    computed_s: float,
) -> StepResult:
    count, seconds = len(works), time.perf_counter() - started_s
    layer_tokens = count * len(works[0].layers)
    return StepResult(frames, tokens, seconds, count, layer_tokens, (), started_s, computed_s)
