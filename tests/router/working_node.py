"""A node of a FaultWorld that runs production workers and engines; only the model is played.

Its KV says, for every layer, which token stands at which position, and whatever a step reads is
held against that: pages that are shared, moved or written over wrongly are seen where they are
read. Activations say how far a token has come. `spoken` is the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import numpy as np
import torch

from helix_mq.errors import KvExhausted, LocalError
from helix_mq.features import FEATURES
from helix_mq.foreseen import Foreseen
from helix_mq.frames import Buffer, decode, encode, split_frame
from helix_mq.ids import ROUTER
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Assign, Retain
from helix_mq.messages.data import FrameHeader, Refused, RefusedItem, Release, ReleaseItem
from helix_mq.outlink import is_urgent
from nodes.batching import BatchLimits, SeqKey, Work
from nodes.device import DeviceThread
from nodes.engine import Engine
from nodes.holdings import Changed, Holdings
from nodes.inbox import NodeView, check_sender
from nodes.kv_cache import KvCache
from nodes.ledger import Ledger
from nodes.model.batch import SliceBatch, SliceOutput
from nodes.model.slice import ModelSlice
from nodes.payload import Payload
from nodes.steps import Batch, WorkerOptions
from nodes.worker import Worker
from tests.router.fault_world_node import (
    PAGE_TOKENS,
    STEP_S,
    Message,
    Outside,
    RowsFrame,
    SimNode,
)
from tests.router.world import CONFIG, EOS, VOCAB

ROW_BYTES = 4 * CONFIG.hidden_size


def spoken(tokens: Sequence[int]) -> int:
    """What the model says next: decided by all tokens so far, and often the text over again, so
    that drafts may be right."""
    value = 0
    for token in tokens:
        value = (value * 1_000_003 + token + 1) & 0xFFFFFFFF
    value >>= 7
    if value % 67 == 0:
        return EOS
    return tokens[-3] if value % 8 and len(tokens) > 3 else value // 8 % VOCAB


def pieces(
    header: FrameHeader, buffers: Sequence[Buffer], most_bytes: int
) -> list[tuple[FrameHeader, Sequence[Buffer]]]:
    """As links send frames: prompts in pieces, decodes whole."""
    return [(header, buffers)] if is_urgent(header) else split_frame(header, buffers, most_bytes)


def framed(header: FrameHeader, buffers: Sequence[Buffer]) -> RowsFrame:
    """By way of the wire's bytes."""
    message = decode([bytes(part) for part in encode(header, buffers)])
    assert isinstance(message.header, FrameHeader)
    return RowsFrame(message.header, tuple(message.buffers))


class PlayedSlice:
    """`fail_next`: steps that break off when half of their KV is written. `drafts`: seen so far."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.device = torch.device("cpu")
        self.fail_next = 0
        self.drafts = 0

    def decodes(self, cache: KvCache) -> None:
        """It computes nothing."""

    def forward(self, batch: SliceBatch, cache: KvCache, *, brief: bool = False) -> SliceOutput:
        hidden: list[np.ndarray] = []
        logits: list[np.ndarray] = []
        ids_at = hidden_at = 0
        for number, row in enumerate(batch.rows):
            if self.fail_next and 2 * number >= len(batch.rows):
                self.fail_next -= 1
                raise LocalError("the device broke off")
            end, first = row.position + row.count, row.layers.first
            places = np.arange(row.position, end)
            if first == 0:
                assert batch.token_ids is not None
                ids = batch.token_ids.numpy()[ids_at : ids_at + row.count]
                ids_at += row.count
            else:
                assert batch.hidden is not None
                came = batch.hidden.numpy()[hidden_at : hidden_at + row.count].astype(np.int64)
                hidden_at += row.count
                assert (came[:, 1] == first).all(), "layers are missing or run twice"
                assert (came[:, 2] == places).all(), "activations of another position"
                ids = came[:, 0]
            table = cache.pool.table(row.seq)
            pages, offsets = table[:, places // PAGE_TOKENS], places % PAGE_TOKENS
            layers = np.arange(first, row.layers.end)
            keys = cache.keys.numpy()
            for what, value in enumerate((ids + 1, places + 1, layers[:, None] + 1)):
                keys[pages, 0, offsets, what] = value
            text = keys[table][:, :, 0].reshape(len(layers), -1, CONFIG.head_dim)[:, :end]
            assert (text[0, :, 0] == text[:, :, 0]).all(), "layers with different texts"
            assert (text[:, :, 1] == np.arange(1, end + 1)).all(), "KV that was never written"
            assert (text[:, :, 2] == layers[:, None] + 1).all(), "a page of another layer"
            if row.wants_logits:
                self.drafts += row.logit_tokens - 1
                tokens = (text[0, :, 0].astype(np.int64) - 1).tolist()
                for after in range(end - row.logit_tokens + 1, end + 1):
                    token = spoken(tokens[:after])
                    scores = np.zeros(VOCAB, np.float32)
                    scores[token], scores[(token + 1) % VOCAB] = 100, 50
                    logits.append(scores)
            if row.layers.end < CONFIG.num_layers:
                out = np.zeros((row.count, CONFIG.hidden_size), np.float32)
                out[:, 0], out[:, 1], out[:, 2] = ids, row.layers.end, places
                hidden.append(out)
        return SliceOutput(
            torch.from_numpy(np.concatenate([np.zeros((0, CONFIG.hidden_size), "f4"), *hidden])),
            torch.from_numpy(np.array(logits, np.float32).reshape(-1, VOCAB)),
        )


class SqueezedEngine(Engine):
    """`refuse_next`: rows that find no pages. `fault`: what a row came to that is no refusal; the
    worker would go on after it."""

    refuse_next = 0
    fault: Exception | None = None

    def admit(self, work: Work[Payload]) -> RefusedItem | None:
        if self.refuse_next:
            self.refuse_next -= 1
            return RefusedItem(*work.seq, "kv_exhausted", "no pages")
        try:
            refused = super().admit(work)
        except Exception as e:
            self.fault = e
            raise
        if work.drafts and refused is not None and refused.code == "kv_exhausted":
            self.fault = self._crowded(work)
        return refused

    def _crowded(self, work: Work[Payload]) -> AssertionError | None:
        """Rows that have no pages would have none without drafts."""
        try:
            self._pool.ensure(work.seq, work.position + 1)
        except KvExhausted:
            return None
        return AssertionError("drafts took the room of their token")


class WorkingSlice:
    """One slice of a node with its worker. Steps are as Worker.run() and its device thread do them,
    on the world's time."""

    def __init__(self, node: WorkingNode, layers: LayerRange, epoch: int) -> None:
        self.model = PlayedSlice()
        cache = KvCache.allocate(
            CONFIG,
            total_pages=node.pages,
            device=self.model.device,
            dtype=torch.float32,
            page_tokens=PAGE_TOKENS,
        )
        self.engine = SqueezedEngine(node.name, cast(ModelSlice, self.model), cache)
        view = NodeView(
            *(node.name, frozenset({epoch}), layers, CONFIG.num_layers),
            *(CONFIG.hidden_size, VOCAB, CONFIG.max_context, CONFIG.eos_ids),
        )
        self.worker = Worker(
            view,
            self.engine,
            options=WorkerOptions(depth=2, limits=BatchLimits(prefill_tokens=48)),
            clock=node.outside.time.clock,
            device=cast(DeviceThread, None),
            links=node,
        )
        self.resize_next = False
        self._node = node
        self._stepping = False

    def go_on(self) -> None:
        if self._stepping or not self._node.alive:
            return
        if self.resize_next:
            # Between two steps: pages move, and what prompts left is forgotten.
            self.resize_next = False
            self.engine.shrink(1)
            self.engine.grow(self._node.pages)
        batch = self.worker._next_batch()
        if self.engine.fault is not None:
            raise self.engine.fault
        if batch:
            self._stepping = self.worker._loop.busy = True
            done = lambda: self._node.do(lambda: self._stepped(batch))  # noqa: E731
            self._node.outside.time.later(STEP_S, done)

    def _stepped(self, batch: Batch) -> None:
        try:
            result = self.engine.run(batch)
        except LocalError as e:
            self.worker._fail(batch, e.code, e.message)
        else:
            self.worker._forward(result)
        self.worker._device_idle()
        for work in batch:
            work.payload.use.take(work.count)
        self._stepping = False
        self.worker.check()
        self.go_on()

    def check_empty(self) -> None:
        self.worker.check()
        assert not self._stepping
        assert not self.worker._ledger.sequences()
        assert not len(self.worker._returns)
        assert not len(self.worker._batcher)
        assert self.engine.free_pages == self.engine.total_pages


class _AllOpen(Ledger):
    """What is open on any of a node's slices."""

    def __init__(self, slices: Callable[[], list[WorkingSlice]]) -> None:
        super().__init__()
        self._slices = slices

    def __len__(self) -> int:
        return len(self.sequences())

    def sequences(self) -> list[SeqKey]:
        return [seq for slice_ in self._slices() for seq in slice_.worker._ledger.sequences()]


class WorkingNode(SimNode):
    """Holds and frees slices as production's SliceKeeper does; loading takes a while."""

    features = FEATURES

    def __init__(self, outside: Outside, name: str, incarnation: int, pages: int) -> None:
        super().__init__(outside, name, incarnation)
        self.outside = outside
        self.pages = pages
        self.unconsumed = 0
        """Frames whose credit has not gone back."""
        self.freed: list[WorkingSlice] = []
        self._holdings: Holdings[WorkingSlice] = Holdings()
        self._orders: list[Assign] = []
        self._loaded_s = 0.0
        self.ledger = _AllOpen(lambda: self.slices)

    @property
    def slices(self) -> list[WorkingSlice]:
        return [held.slice for held in self._holdings]

    # -- control ------------------------------------------------------------------

    def on_control(self, message: msgspec.Struct) -> None:
        time = self.outside.time
        match message:
            case Assign():
                self._orders.append(message)
                # One after the other.
                self._loaded_s = max(self._loaded_s, time.now_s + time.draw.uniform(0.05, 0.6))
                act = lambda: self.do(lambda: self._assign(message))  # noqa: E731
                time.later(self._loaded_s - time.now_s, act)
            case Retain(epochs):
                self._orders = [order for order in self._orders if order.epoch in epochs]
                self._changed(self._holdings.retain(epochs))
            case _:
                super().on_control(message)

    def _assign(self, order: Assign) -> None:
        if order not in self._orders:
            return
        self._orders.remove(order)
        layers = LayerRange(order.first, order.end)
        held = self._holdings.of(layers)
        if held is None:
            new = WorkingSlice(self, layers, order.epoch)
            self._changed(self._holdings.add(layers, order.epoch, new))
        else:
            if order.epoch in held.epochs:
                held.slice.worker.close_epoch(order.epoch)
            self._changed(self._holdings.serve(held, order.epoch))
        self.say_ready(order.epoch, layers)

    def _changed(self, changed: Changed[WorkingSlice]) -> None:
        for held in changed.stay:
            held.slice.worker.serve(frozenset(held.epochs))
            held.slice.go_on()
        for held in changed.freed:
            held.slice.worker.close_all()
            self.freed.append(held.slice)
        self._slices = {e: held.layers for held in self._holdings for e in held.epochs}

    # -- its links ----------------------------------------------------------------

    def send(self, peer: str, header: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> bool:
        if not isinstance(header, FrameHeader):
            return self.outside.send(self.name, peer, header)
        parts = pieces(header, buffers, 40 * ROW_BYTES)
        went = [self.outside.send(self.name, peer, framed(*part)) for part in parts]
        return all(went)

    @property
    def foreseen(self) -> dict[bytes, Foreseen]:
        """Nobody asks here: frames come read."""
        return {}

    def blocked_peers(self) -> set[str]:
        return set()

    def overdraft(self) -> None:
        """Nothing waits for credit."""

    # -- rows -----------------------------------------------------------------------

    def on_data(self, message: Message) -> None:
        match message:
            case RowsFrame(header, buffers):
                self._frame(header, buffers)
            case ReleaseItem():
                for slice_ in self.slices:
                    slice_.worker.on_release(Release((message,)))
            case _:
                raise AssertionError(f"a node is sent {message}")
        self._go_on()

    def _frame(self, header: FrameHeader, buffers: tuple[memoryview, ...]) -> None:
        check_sender(header)
        held = self._holdings.serving(header.epoch)
        if held is None:
            items = tuple(
                RefusedItem(row.request, row.attempt, "stale_epoch", "not served")
                for row in header.rows
            )
            self.outside.send(self.name, ROUTER, Refused(header.epoch, self.name, items))
            return
        self.unconsumed += 1

        def consumed() -> None:
            self.unconsumed -= 1

        held.slice.worker.on_frame(header, buffers, consumed)

    def on_link_lost(self, peer: str) -> None:
        for slice_ in self.slices:
            slice_.worker.on_link_lost(peer)
        self._go_on()

    def _go_on(self) -> None:
        for slice_ in self.slices:
            slice_.go_on()
