"""Our own engine: batcher, pages, slice, sampler, as a node's device thread drives them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch

from helix_mq.frames import pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SampleSpec
from helix_mq.sampling import SamplingParams
from nodes.batching import Batcher, BatchLimits, SeqKey, Work
from nodes.device import DeviceThread
from nodes.engine import Engine
from nodes.model.slice import ModelSlice
from nodes.payload import FrameUse, Payload, cut_payload
from nodes.step_loop import StepCalls, StepLoop
from nodes.steps import Batch, StepResult
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
        texts = Texts(self, prompts, new_tokens)
        while batch := texts.choose():
            texts.took(self.engine.run(batch))
        return texts.end()

    async def generate_beside(self, device: DeviceThread, texts: Texts) -> None:
        """The same by a node's step loop on the running event loop: what compiled threads compute
        by themselves begins and ends there, the rest is the device thread's."""
        steps = StepLoop(device)

        def over(batch: Batch, result: StepResult | None, error: BaseException | None) -> bool:
            steps.busy = False
            if error is not None:
                raise error
            if result is not None:
                texts.took(result)
            if not texts.left:
                running.cancel()
            return bool(texts.left)

        calls = StepCalls(
            self.engine, texts.choose, over, idle=_nothing, stall_s=_never, stalled=_nothing
        )
        running = asyncio.create_task(steps.run(calls))
        await asyncio.gather(running, return_exceptions=True)
        if not running.cancelled():
            running.result()

    def work(self, request: int, position: int, ids: list[int], prompt: int) -> Work[Payload]:
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


class Texts:
    """Prompts and what has come of them, `new_tokens` each at the end."""

    def __init__(self, program: Program, prompts: list[list[int]], new_tokens: int) -> None:
        self._program = program
        self._prompts = prompts
        self._new_tokens = new_tokens
        self.left = len(prompts)
        self._answers: list[list[int]] = [[] for _ in prompts]
        self._batcher: Batcher[Payload] = Batcher(
            cut_payload, BatchLimits(prefill_tokens=_PREFILL_TOKENS)
        )
        for request, prompt in enumerate(prompts):
            self._batcher.add(program.work(request, 0, prompt, len(prompt)))

    def choose(self) -> Batch:
        """The next step; empty at the end."""
        batch = self._batcher.next_batch(open_requests=len(self._prompts), depth=1)
        for work in batch:
            refusal = self._program.engine.admit(work)
            if refusal is not None:
                raise SystemExit(f"the engine refused a row: {refusal.reason}")
        return batch

    def took(self, result: StepResult) -> None:
        if result.refused:
            raise SystemExit(f"the engine refused a row: {result.refused[0].reason}")
        for item in result.tokens:
            answer = self._answers[item.request]
            answer.append(item.token)
            if len(answer) < self._new_tokens:
                length = len(self._prompts[item.request])
                work = self._program.work(item.request, item.position, [item.token], length)
                self._batcher.add(work)
            else:
                self.left -= 1

    def end(self) -> list[list[int]]:
        """The answers; nothing of them is left in the engine."""
        for request in range(len(self._prompts)):
            self._program.engine.free(SeqKey(RequestId(request), Attempt(0)))
        return self._answers


def _never() -> None:
    """No step waits for anything here."""


def _nothing() -> None:
    """Nobody waits for credit here."""


def load(job: dict[str, Any]) -> Program:
    return Program(job)
