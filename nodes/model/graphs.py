"""Decode steps recorded once per size and replayed: one launch for all of a step's kernels.

A layer is some 17 kernels, each launched by the host, which a GPU that reads a layer's weights in
100 us waits for. Recorded are steps in which every row is one token over the same layers. All
others, and sizes that cannot be recorded, run as ever; so does everything after a recording was
found to compute something else than the plain pass, which the first replay of each is compared
with.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache
from nodes.model.attention.base import AttentionPlan
from nodes.model.attention.paged import PagedAttention
from nodes.model.batch import SliceBatch, SliceOutput
from nodes.model.decode_buckets import MAX_RECORDINGS, StepShape, shape_of, table_entries
from nodes.model.decode_inputs import DecodeInputs
from nodes.model.layers import Block
from nodes.model.recorders import Recorder, Recording
from nodes.model.rope import rotation
from nodes.model.weights import SliceWeights

log = logging.getLogger(__name__)

_TOLERANCE = 0.1
"""Relative, of a row: other batch sizes take other kernels, which round 16-bit products
differently. Two right ones were 0.013 apart after 32 layers in bfloat16; a row that reads a wrong
page or position is off by about 1."""

PlainPass = Callable[[SliceBatch, KvCache], SliceOutput]


@dataclass(frozen=True, slots=True)
class SliceParts:
    """What a ModelSlice is made of. layers: that `weights` begin with; dtype: computed in."""

    config: ModelConfig
    layers: LayerRange
    weights: SliceWeights
    block: Block
    inverse_freq: torch.Tensor
    attention: PagedAttention
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class GraphStatistics:
    """recorded: sizes at hand. replays, plain: decode steps run either way. off: why none are
    recorded any more, or nothing."""

    recorded: int
    replays: int
    plain: int
    off: str


class DecodeGraphs:
    """Of one slice. One thread, as the slice."""

    def __init__(self, parts: SliceParts, recorder: Recorder, plain: PlainPass) -> None:
        """plain: the slice's pass without recordings."""
        self._parts = parts
        self._recorder = recorder
        self._plain = plain
        self._inputs: DecodeInputs | None = None
        self._recordings: OrderedDict[StepShape, Recording] = OrderedDict()
        self._place: tuple[object, ...] = ()
        self._off = ""
        self._replays = 0
        self._plain_steps = 0

    def statistics(self) -> GraphStatistics:
        return GraphStatistics(len(self._recordings), self._replays, self._plain_steps, self._off)

    def run(self, batch: SliceBatch, cache: KvCache) -> SliceOutput | None:
        """The step's results, valid until the next run; None when it has to run unrecorded.
        `batch` must have been checked."""
        layers = self._layers(batch)
        if layers is None:
            return None
        pages = max(row.position for row in batch.rows) // cache.page_tokens + 1
        shape = None if self._off else shape_of(layers, len(batch.rows), pages)
        if shape is None:
            self._plain_steps += 1
            return None
        if self._place != _place(cache):
            # The cache grew, shrank or is another: recordings read where it was.
            self._drop()
            self._place = _place(cache)
        recording = self._recordings.get(shape)
        if recording is None:
            self._plain_steps += 1
            return self._first(shape, batch, cache)
        self._recordings.move_to_end(shape)
        self._replays += 1
        inputs = self._inputs
        assert inputs is not None
        inputs.fill(shape, batch, cache)
        try:
            return self._output(recording.replay()[: len(batch.rows)], layers)
        except RuntimeError as e:
            # The plain pass writes the same keys and values once more.
            self._switch_off(f"a recorded step fails here: {_words(e)}")
            return None

    def _layers(self, batch: SliceBatch) -> LayerRange | None:
        """Those that all rows run, where this is a step of decodes alone."""
        layers = batch.rows[0].layers
        ends = layers.end == self._parts.config.num_layers
        for row in batch.rows:
            if row.count != 1 or row.layers != layers or row.wants_logits != ends:
                return None
        return layers

    def _first(self, shape: StepShape, batch: SliceBatch, cache: KvCache) -> SliceOutput | None:
        """Runs the step plainly, records it, and compares; what the plain pass gave."""
        if not self._recorder.has_room():
            self._switch_off("too little of the device's memory is free")
            return None
        while len(self._recordings) >= MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        plain = self._plain(batch, cache)
        if not _finite(plain):
            # One sequence that overflowed; nothing can be compared with it, and it is no reason to
            # go without recordings for good.
            return plain
        try:
            if self._inputs is None:
                self._inputs = self._new_inputs(cache)
            # The same keys and values go to the same places once more.
            self._inputs.fill(shape, batch, cache)
            recording = self._recorder.record(self._body(shape, cache))
            again = self._output(recording.replay()[: len(batch.rows)], shape.layers)
            # One of the two is empty, and off by nothing; max() would lose a NaN.
            error = _difference(again.hidden, plain.hidden)
            error += _difference(again.logits, plain.logits)
        except RuntimeError as e:
            self._switch_off(f"recording fails here: {_words(e)}")
            return plain
        if not error <= _TOLERANCE:
            self._switch_off(f"a recorded step of {shape.rows} rows is off by {error:.2g}")
            return plain
        self._recordings[shape] = recording
        log.debug("recorded decode steps of %d rows, %d pages", shape.rows, shape.pages)
        return plain

    def _switch_off(self, reason: str) -> None:
        log.warning("decode steps are not recorded any more: %s", reason)
        self._off = reason
        self._drop()
        self._inputs = None

    def _drop(self) -> None:
        if self._recordings:
            self._recordings.clear()
            self._recorder.dropped()

    def _new_inputs(self, cache: KvCache) -> DecodeInputs:
        parts = self._parts
        pages = -(-parts.config.max_context // cache.page_tokens)
        return DecodeInputs(
            parts.config, table_entries(parts.layers, pages), parts.device, parts.dtype
        )

    def _body(self, shape: StepShape, cache: KvCache) -> Callable[[], torch.Tensor]:
        """The pass over shape.layers, reading the inputs; [rows, hidden], or float32 logits."""
        parts, inputs, page_tokens = self._parts, self._inputs, cache.page_tokens
        assert inputs is not None
        numbers = range(shape.layers.first, shape.layers.end)
        windows = {parts.config.window_of(layer) for layer in numbers}

        @torch.inference_mode()
        def body() -> torch.Tensor:
            rows = inputs.paged_rows(shape, page_tokens)
            plans: Mapping[int | None, AttentionPlan] = {
                window: parts.attention.plan_decodes(rows, window, cache) for window in windows
            }
            turn = rotation(parts.inverse_freq, inputs.positions(shape), parts.dtype)
            slots = inputs.slots(shape, page_tokens)
            x = self._entering(shape, inputs)
            for at, layer in enumerate(numbers):
                weights = parts.weights.layers[layer - parts.layers.first]
                query, keys, values = parts.block.project(x, weights, turn)
                cache.write(slots[at], keys, values)
                plan = plans[parts.config.window_of(layer)]
                x = parts.block.finish(x, weights, plan.attend(at, query, keys, values))
            if shape.layers.end < parts.config.num_layers:
                return x
            norm, head = parts.weights.final_norm, parts.weights.head
            assert norm is not None
            assert head is not None
            return head(parts.block.norm(x, norm)).float()

        return body

    def _entering(self, shape: StepShape, inputs: DecodeInputs) -> torch.Tensor:
        if shape.layers.first:
            return inputs.hidden(shape)
        table = self._parts.weights.embedding
        assert table is not None
        return F.embedding(inputs.token_ids(shape), table)

    def _output(self, result: torch.Tensor, layers: LayerRange) -> SliceOutput:
        config = self._parts.config
        if layers.end == config.num_layers:
            return SliceOutput(result.new_empty((0, config.hidden_size)), result)
        return SliceOutput(result, result.new_empty((0, config.vocab_size)))


def _place(cache: KvCache) -> tuple[object, ...]:
    """Where a cache's tensors are; no reference to them, which would keep the memory."""
    return cache.keys.data_ptr(), cache.values.data_ptr(), len(cache.keys), cache.page_tokens


def _words(error: RuntimeError) -> str:
    """What went wrong, and before that: the end of a failed capture fails as well."""
    first = error.__context__
    texts = [str(e).strip() for e in (first, error) if e is not None]
    return "; ".join(text.splitlines()[0][:200] for text in texts if text) or repr(error)


def _finite(output: SliceOutput) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in (output.hidden, output.logits))


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the row that is off most, relative to it; NaN where either is no number."""
    if not wanted.numel():
        return 0.0
    off = torch.linalg.vector_norm(got.float() - wanted.float(), dim=1)
    return float((off / torch.linalg.vector_norm(wanted.float(), dim=1).clamp_min(1e-6)).max())
