"""Steps in which every row is one token over the same layers, in one compiled call: see decode.h.

That is what a node does nearly all the time. What this module does not take, and whatever is wrong
with a batch, is left to the slice's general pass, which gives the same bits or says what is wrong.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache, KvLayout
from nodes.kv_pages import SeqKey
from nodes.model.batch import SliceBatch, SliceOutput
from nodes.model.native.build import built
from nodes.model.native.calls import (
    COUNT,
    POINTER,
    REAL,
    THREADS,
    Block,
    Pieces,
    address,
    function_of,
    pointer,
)
from nodes.model.native.crew import Crew, crew_function
from nodes.model.native.layers import NativeLayers
from nodes.model.native.odds import Odds
from nodes.model.native.products import NativeLinear
from nodes.model.native.ready import IDS, Given, Memory, Ready, X, counts, filled, reals
from nodes.model.rope import inverse_frequencies, rotation
from nodes.model.weights import SliceWeights

FIRST_TURNS, MOST_TURNS = 1024, 1 << 16
"""Positions whose rotations are kept: doubled when a step needs more, 16 MiB at most for heads of
64 in 16 bits. Tokens behind those take the general pass."""

KEPT_BYTES = 16 << 20
"""Of logits that are used again. Larger blocks of fresh memory cost more than what is computed into
them: the kernel clears each page first, a millisecond for 32 rows of 49,152 logits."""

_KNOWN_SIZES = 1024

_Step = COUNT * 18
"""As decode.h lists them."""
_NOTHING = (0, 0, 0)

Place = tuple[SeqKey, int]
"""A row: its sequence, and the position of its one token."""


class NativeDecodes:
    """Of one slice; one thread, as the slice. `native` and `weights` are the slice's."""

    def __init__(self, native: NativeLayers, layers: LayerRange, weights: SliceWeights) -> None:
        """decodes_for() builds one, where one works."""
        config = self._config = native.config
        norm = weights.layers[0].attention_norm
        self.dtype = norm.dtype
        self.width = config.hidden_size
        self._native = native
        self._layers = layers
        self._weights = weights
        self._eps = config.rms_eps
        self.worth_threads = native.worth_threads
        self._layers_at = [native.address_of(n) for n in range(len(layers))]
        self._sizes: dict[tuple[int, int, int], object] = {}
        """Of so many layers, rows, and tokens of a page."""
        library = built().library
        assert library is not None
        arguments = [*[POINTER] * 3, REAL, THREADS, THREADS]
        self._run = function_of(library, "decode", self.dtype, arguments, THREADS)
        self._post = crew_function("decode", self.dtype, arguments)
        windows = [config.window_of(n) or 0 for n in range(layers.first, layers.end)]
        self._windows = np.array(windows, np.int64)
        self._windows_at = pointer(self._windows)
        self._inverse_freq = inverse_frequencies(config)
        self._turns = torch.empty((0, 2, config.head_dim), dtype=self.dtype)
        self._known = self._kept = 0
        head, ending = weights.head, weights.final_norm
        self._ending = _NOTHING
        if ending is not None and isinstance(head, NativeLinear):
            self._ending = (ending.data_ptr(), head.packed.data_ptr(), address(head.bias) or 0)
        self._embedding_at = address(weights.embedding) or 0
        self._no_hidden = torch.empty((0, config.hidden_size), dtype=self.dtype)
        self._no_logits = self._kept_logits = torch.empty((0, config.vocab_size))
        self._kept_at = 0
        self._most_kept = KEPT_BYTES // (4 * config.vocab_size)
        self._row_bytes = config.hidden_size * self.dtype.itemsize
        self._given, self._last = Block(0), Block(0)
        self._choices, self._edits = Block(0), Block(0)
        self._pieces = Pieces()
        self._ids = counts(0)()
        self._newest: Ready | None = None
        """What was made ready last, if nothing that it needs has changed since."""

    def run(self, batch: SliceBatch, cache: KvCache, *, brief: bool = False) -> SliceOutput | None:
        """None, having done nothing, where the batch is none of these steps or not in order.
        `brief` as ModelSlice.forward() has it."""
        self.forget()
        config, rows = self._config, batch.rows
        if not rows:
            return None
        layers, count = rows[0].layers, len(rows)
        whole = layers.end == config.num_layers
        for row in rows:
            if row.count != 1 or row.wants_logits != whole:
                return None
            if row.layers is not layers and row.layers != layers:
                return None
        ids, source = self._source(batch, count, starts=layers.first == 0)
        if source is None:
            return None
        x = torch.empty((count, config.hidden_size), dtype=self.dtype)
        logits = self._logits(count, brief) if whole else self._no_logits
        where = Memory(
            ids.data_ptr() if ids is not None else 0,
            source.data_ptr(),
            x.data_ptr(),
            logits.data_ptr(),
        )
        places = [(row.seq, row.position) for row in rows]
        if not self.now(self._ready(places, layers, cache, where)):
            return None
        return SliceOutput(self._no_hidden if whole else x, logits)

    def hidden(
        self, places: Sequence[Place], layers: LayerRange, cache: KvCache, given: Given
    ) -> Ready | None:
        """A step whose `leaving` become bytes of the activations [rows, hidden] that leave
        `layers`, in the compute dtype; None as run() gives it. Without a tensor: each call of
        PyTorch's costs 60 to 80 us when a step's weights have driven it out of the caches, and all
        of ours as much as one."""
        if layers.end == self._config.num_layers:
            return None
        ids, source = self._taken(given, len(places), starts=layers.first == 0)
        leaving, at = self._pieces.next(len(places) * self._row_bytes)
        where = Memory(ids, source, at, 0)
        return self._ready(places, layers, cache, where, leaving=leaving) if source else None

    def tokens(
        self,
        places: Sequence[Place],
        layers: LayerRange,
        cache: KvCache,
        given: Given,
        choices: Sequence[bytes] = (),
        edits: Sequence[bytes] = (),
        wanted: Sequence[int] = (),
    ) -> Ready | None:
        """A step whose `best` become a token of each row at the model's end: by its choice
        (`draws.choice_of`), the most probable one where none are given, of its logits after its
        edits (`draws.edits_of`), where there are any; None as run() gives it. Its `odds` tell of
        the probabilities that are `wanted`, as Odds has it, where they are given."""
        count = len(places)
        if layers.end != self._config.num_layers or not all(self._ending[:2]):
            return None
        if count > self._most_kept:
            return None
        ids, source = self._taken(given, count, starts=layers.first == 0)
        if len(self._last.data) < count * self._row_bytes:
            self._last = Block(count * self._row_bytes)
        best, highest = counts(count)(), reals(count)()
        if count > self._kept:
            self._logits(count, brief=True)
        found = ctypes.addressof(best), ctypes.addressof(highest)
        if choices:
            self._choices = filled(self._choices, choices)
        if edits:
            self._edits = filled(self._edits, edits)
        odds = Odds(wanted, self._config.vocab_size) if wanted else None
        where = Memory(
            ids,
            source,
            self._last.at,
            self._kept_at,
            *found,
            self._choices.at if choices else 0,
            self._edits.at if edits else 0,
            odds.at if odds is not None else 0,
        )
        if not source:
            return None
        return self._ready(places, layers, cache, where, best=best, highest=highest, odds=odds)

    def again(self, step: Ready, payload: memoryview) -> bool:
        """Has it be the step of the same rows one token on, of `payload`: int32 token ids, or bytes
        of all activations in the compute dtype. False, having changed nothing, where a row comes to
        a page of its own, or something else has been made ready since."""
        if step is not self._newest:
            return False
        numbers, page, known = step.numbers, step.page_tokens, self._known
        places = range(2, len(numbers), 3)
        for at in places:
            position = numbers[at] + 1
            if not position % page or position >= known:
                return False
        ids = self._ids
        if step.step[IDS]:
            if payload.nbytes != 4 * len(ids):
                return False
            for row, token in enumerate(payload.cast("B").cast("i")):
                ids[row] = token
        elif payload.nbytes == len(places) * self._row_bytes:
            self._given.view[: payload.nbytes] = payload.cast("B")
        else:
            return False
        if step.leaving is not None:
            # The last one may still be on its way.
            step.leaving, step.step[X] = self._pieces.next(len(step.leaving))
        for at in places:
            numbers[at] += 1
        return True

    def forget(self) -> None:
        """Pages have moved, or sequences are gone: nothing goes on as it was."""
        self._newest = None

    def now(self, step: Ready | None) -> bool:
        """Computes it on this thread. False, having done nothing, where there is none or it names
        tokens that the model has not."""
        if step is None:
            return False
        threads = torch.get_num_threads()
        layer_threads, eps = threads if self.worth_threads else 1, self._eps
        bad: int = self._run(step.layers_at, step.sizes, step.step, eps, layer_threads, threads)
        return not bad

    def begin(self, step: Ready, crew: Crew) -> None:
        """Has it computed by a crew, whose took() gives 0 where now() gives True."""
        assert self._post is not None, "where there is a crew, there is what posts to it"
        threads = crew.threads
        layer_threads, eps = threads if self.worth_threads else 1, self._eps
        crew.held[0] = self, step
        self._post(crew.at, step.layers_at, step.sizes, step.step, eps, layer_threads, threads)

    def _taken(self, given: Given, count: int, *, starts: bool) -> tuple[int, int]:
        """Addresses of token ids and embeddings, or of nothing and activations; of nothing at all
        where they are not what these layers take."""
        self.forget()
        rows = given.activations
        if len(given.ids if starts else rows) != count:
            return 0, 0
        if starts:
            self._ids = counts(len(given.ids))(*given.ids)
            return ctypes.addressof(self._ids), self._embedding_at
        size = self._row_bytes
        if len(self._given.data) < len(rows) * size:
            self._given = Block(len(rows) * size)
        view, at = self._given.view, 0
        for row in rows:
            if row.nbytes != size:
                return 0, 0
            view[at : at + size] = row
            at += size
        return 0, self._given.at if at else 0

    def _ready(
        self,
        places: Sequence[Place],
        layers: LayerRange,
        cache: KvCache,
        where: Memory,
        **leaving: Any,
    ) -> Ready | None:
        """`leaving`: of Ready. None where something is not in order."""
        config, count = self._config, len(places)
        first, end = layers.first, layers.end
        if cache.layout is not KvLayout.HEAD_MAJOR:
            return None
        if first < self._layers.first or end > self._layers.end:
            return None
        find, last = cache.pool.place, 0
        held: list[int] = []
        for seq, position in places:
            place = find(seq, layers, position)
            if place is None:
                return None
            held += place
            held.append(position)
            if position > last:
                last = position
        if not (last < self._known or self._knows(last)):
            return None
        if count > 1 and len({seq for seq, _ in places}) < count:
            return None
        # Few calls on purpose: a step's weights drive all that they touch out of the caches.
        skipped = first - self._layers.first
        of = end - first, count, cache.pool.page_tokens
        sizes = self._sizes.get(of)
        if sizes is None:
            if len(self._sizes) >= _KNOWN_SIZES:
                self._sizes.clear()
            # How many pages the longest row has is seen there.
            sizes = self._sizes[of] = self._native.sizes(*of[:2], cache, 0)
        numbers = counts(3 * count)(*held)
        step = _Step(
            ctypes.addressof(numbers),
            where.ids,
            where.source,
            self._turns.data_ptr(),
            self._windows_at + 8 * skipped,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            where.x,
            *(self._ending if end == config.num_layers else _NOTHING),
            where.logits,
            config.vocab_size,
            where.best,
            where.highest,
            where.choices,
            where.edits,
            where.odds,
        )
        read = (cache.keys, cache.values, self._turns)
        ready = Ready(
            self._layers_at[skipped],
            sizes,
            step,
            numbers,
            cache.pool.page_tokens,
            read,
            **leaving,
        )
        if leaving:
            self._newest = ready
        return ready

    def _logits(self, count: int, brief: bool) -> torch.Tensor:
        if not brief or count > self._most_kept:
            return torch.empty((count, self._config.vocab_size))
        if count > self._kept:
            self._kept = min(self._most_kept, max(count, 2 * self._kept))
            self._kept_logits = torch.empty((self._kept, self._config.vocab_size))
            self._kept_at = self._kept_logits.data_ptr()
        return self._kept_logits[:count]

    def _knows(self, position: int) -> bool:
        """The rotations up to `position`; False where they are not kept."""
        if position >= min(MOST_TURNS, self._config.max_context):
            return False
        self._known = max(FIRST_TURNS, 1 << math.ceil(math.log2(position + 1)))
        turns = rotation(self._inverse_freq, torch.arange(self._known), self.dtype)
        self._turns = torch.cat((turns.cos, turns.sin), dim=1).contiguous()
        return True

    def _source(
        self, batch: SliceBatch, count: int, *, starts: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Token ids and embeddings, or nothing and activations; neither where they are not as the
        batch's rows need them."""
        ids, hidden = batch.token_ids, batch.hidden
        if starts:
            if ids is None or hidden is not None or ids.dtype is not torch.int64:
                return None, None
            if ids.shape != (count,) or not ids.is_cpu:
                return None, None
            return ids.contiguous(), self._weights.embedding
        if hidden is None or ids is not None or not hidden.is_cpu:
            return None, None
        if hidden.shape != (count, self._config.hidden_size) or not hidden.is_floating_point():
            return None, None
        return None, hidden.to(self.dtype).contiguous()


def decodes_for(
    native: NativeLayers | None, layers: LayerRange, weights: SliceWeights
) -> NativeDecodes | None:
    """None where the layers run otherwise, or what comes before and after them is held in a way
    that the compiled step does not read."""
    if native is None or not (weights.head is None or isinstance(weights.head, NativeLinear)):
        return None
    table = weights.embedding
    if table is not None and not (
        table.is_contiguous() and table.dtype is weights.layers[0].attention_norm.dtype
    ):
        return None
    return NativeDecodes(native, layers, weights)
