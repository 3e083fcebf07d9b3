"""Our own engine: batcher, pages, slice, sampler, as a node's device thread drives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from helix_mq.frames import pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SampleSpec
from helix_mq.sampling import SamplingParams
from nodes.batching import Batcher, BatchLimits, SeqKey, Work
from nodes.engine import Engine
from nodes.inbox import FrameUse, Payload, cut_payload
from nodes.model.slice import ModelSlice
from nodes.tuning import tune_process

_NODE = "bench"
_PREFILL_TOKENS = 512


class Program:
    def __init__(self, job: dict[str, Any]) -> None:
        tune_process()
        if job["device"] == "cpu":
            torch.set_num_threads(job["threads"])
        from helix_mq.models.config import ModelConfig

        self._layers = LayerRange(0, ModelConfig.from_folder(job["folder"]).num_layers)
        self.model_slice = ModelSlice.load(
            job["folder"],
            self._layers,
            device=torch.device(job["device"]),
            dtype=getattr(torch, job["dtype"]),
        )
        per_page = self.model_slice.page_tokens()
        pages = len(self._layers) * job["batch"] * -(-job["context"] // per_page)
        self.engine = Engine(_NODE, self.model_slice, self.model_slice.new_cache(pages))
        self._sampling = SamplingParams(**job.get("sampling", {"temperature": 0.0}))
        self._route = Route((Hop(NodeId(_NODE), self._layers),))
        self._blob = pack_route(self._route)

    def about(self) -> dict[str, str]:
        return {
            "torch": str(torch.__version__),
            "dtype": str(self.model_slice.dtype).removeprefix("torch."),
            "attention": self.model_slice.attention.backend.name,
        }

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        limits = BatchLimits(prefill_tokens=_PREFILL_TOKENS)
        batcher: Batcher[Payload] = Batcher(cut_payload, limits)
        answers: list[list[int]] = [[] for _ in prompts]
        for request, prompt in enumerate(prompts):
            batcher.add(self._work(request, 0, prompt, len(prompt)))
        while batch := batcher.next_batch(open_requests=len(prompts), depth=1):
            for work in batch:
                refusal = self.engine.admit(work)
                if refusal is not None:
                    raise SystemExit(f"the engine refused a row: {refusal.reason}")
            result = self.engine.run(batch)
            if result.refused:
                raise SystemExit(f"the engine refused a row: {result.refused[0].reason}")
            for item in result.tokens:
                answer = answers[item.request]
                answer.append(item.token)
                if len(answer) < new_tokens:
                    length = len(prompts[item.request])
                    batcher.add(self._work(item.request, item.position, [item.token], length))
        for request in range(len(prompts)):
            self.engine.free(SeqKey(RequestId(request), Attempt(0)))
        return answers

    def _work(self, request: int, position: int, ids: list[int], prompt: int) -> Work[Payload]:
        payload = Payload(
            dtype="int32",
            width=1,
            data=np.array(ids, np.int32).data.cast("B"),
            use=FrameUse(len(ids), _nothing),
            route=self._route,
            route_blob=self._blob,
            hop=0,
            epoch=1,
            deadline_ms=0,
            spec=None if position else SampleSpec(self._sampling, prompt, 0),
            history=None,
        )
        seq = SeqKey(RequestId(request), Attempt(0))
        return Work(seq, position, len(ids), self._layers, ROUTER, True, payload)


def _nothing() -> None:
    """Nobody waits for credit here."""


def load(job: dict[str, Any]) -> Program:
    return Program(job)
