"""Engines of the same weights that make their steps in different ways, held against each other."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from helix_mq.frames import pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SampleSpec
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey, Work
from nodes.engine import Engine
from nodes.model.slice import ModelSlice
from nodes.payload import FrameUse, Payload
from nodes.steps import Batch, StepResult

Checkpoint = Callable[[str], Any]

CPU = torch.device("cpu")
WAIT_S = 240.0
WHOLE = LayerRange(0, 4)
PARTS = {"whole": WHOLE, "first": LayerRange(0, 2), "last": LayerRange(2, 4)}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
GREEDY = SamplingParams(temperature=0.0)
ROUTES = {
    name: Route((Hop(NodeId("me"), WHOLE),))
    if part == WHOLE
    else Route((Hop(NodeId("me"), PARTS["first"]), Hop(NodeId("next"), PARTS["last"])))
    if name == "first"
    else Route((Hop(NodeId("before"), PARTS["first"]), Hop(NodeId("me"), PARTS["last"])))
    for name, part in PARTS.items()
}
OTHER = Route((Hop(NodeId("me"), PARTS["first"]), Hop(NodeId("aside"), PARTS["last"])))


class Twins:
    """Three engines of the same weights: with plain steps on the calling thread, without, and with
    those that compiled threads compute by themselves."""

    def __init__(self, folder: Any, part: str, dtype: torch.dtype) -> None:
        self.part, self.layers, self.dtype = part, PARTS[part], dtype
        self.engines: list[Engine] = []
        self.begun: list[bool] = []
        """Whether each batch was one that the third needed nobody for."""
        self.again: list[bool] = []
        """Of those that were offered with their payload: whether it went on from the last one."""
        for _ in range(3):
            model = ModelSlice.load(folder, WHOLE, device=CPU, dtype=dtype)
            self.engines.append(Engine("me", model, model.new_cache(600)))
        assert self.engines[0]._plain is not None
        self.engines[1]._plain = None
        assert self.engines[2]._plain is not None
        self.engines[2]._plain._threads = 2
        # Small as they are.
        self.engines[2]._plain._no_crew = False
        self.width = self.engines[0]._model.config.hidden_size
        self._generator = torch.Generator().manual_seed(1)

    def work(
        self,
        request: int,
        position: int,
        count: int = 1,
        *,
        sampling: SamplingParams = GREEDY,
        route: Route | None = None,
        data: bytes | None = None,
        dtype: str = "",
        epoch: int = 1,
        prompt: int = 0,
        history: Sequence[int] = (),
    ) -> Work[Payload]:
        """The tokens of a prompt from position 0; the next one of a text elsewhere."""
        hop = int(self.part == "last")
        if data is None and not hop:
            ids = torch.randint(0, 151, (count,), generator=self._generator)
            data = ids.to(torch.int32).numpy().tobytes()
        elif data is None:
            rows = torch.randn((count, self.width), generator=self._generator).to(self.dtype)
            data = rows.view(torch.uint8).numpy().tobytes()
        route = route or ROUTES[self.part]
        spec = None if position else SampleSpec(sampling, prompt or count, len(history))
        last = hop + 1 == len(route.hops)
        payload = Payload(
            dtype or ("int32" if not hop else NAMES[self.dtype]),
            1 if not hop else self.width,
            memoryview(data),
            FrameUse(count, lambda: None),
            route,
            pack_route(route),
            hop,
            epoch,
            request,
            spec,
            np.array(history, np.int32) if history else None,
            direct=request % 2 == 1,
        )
        seq = SeqKey(RequestId(request), Attempt(0))
        next_hop = ROUTER if last else route.hops[hop + 1].node
        return Work(seq, position, count, self.layers, next_hop, True, payload)

    def run(self, batch: Sequence[Work[Payload]], payload: memoryview | None = None) -> StepResult:
        """What all come to, and their caches. `payload`: of a frame that was foreseen."""
        first, plain, by_itself = self.engines
        results = [ran(engine, list(batch)) for engine in (first, plain)]
        results.append(self._by_itself(by_itself, list(batch), payload))
        for fast in (results[0], results[2]):
            _compare(fast, results[1])
        caches = [engine._cache for engine in self.engines]
        for name in ("keys", "values"):
            mine, *others = (getattr(cache, name).view(torch.uint8) for cache in caches)
            assert all(torch.equal(mine, other) for other in others)
        return results[0]

    def _by_itself(self, engine: Engine, batch: Batch, payload: memoryview | None) -> StepResult:
        bell = None
        if payload is not None:
            bell = engine.again(batch, payload)
            self.again.append(bell is not None)
        if bell is None:
            for work in batch:
                assert engine.admit(work) is None
            bell = engine.begin(batch)
        self.begun.append(bell is not None)
        if bell is not None:
            assert select.select([bell], [], [], WAIT_S)[0], "nobody rang"
            result = engine.end()
            assert not select.select([bell], [], [], 0)[0], "it rings for the next one, too"
            if result is not None:
                return result
        plain, engine._plain = engine._plain, None
        try:
            return engine.run(batch)
        finally:
            engine._plain = plain


def _compare(fast: StepResult, plain: StepResult) -> None:
    assert fast.tokens == plain.tokens
    assert list(fast.refused) == list(plain.refused)
    assert [f.peer for f in fast.frames] == [f.peer for f in plain.frames]
    for one, other in zip(fast.frames, plain.frames, strict=True):
        assert one.header == other.header
        assert [bytes(b) for b in one.buffers] == [bytes(b) for b in other.buffers]
        assert one.sequences == other.sequences
    assert (fast.num_tokens, fast.layer_tokens) == (plain.num_tokens, plain.layer_tokens)
    assert 0 < fast.began_s <= fast.computed_s
    assert fast.seconds > 0


def ran(engine: Engine, batch: Batch) -> StepResult:
    for work in batch:
        assert engine.admit(work) is None
    return engine.run(batch)
