"""A Service without nodes, for tests of the edges: real tokenizer, real text and stop handling.

What a model would say is decided by arithmetic on prompt, seed and position: the same request gives
the same tokens. Tests hold it at a token, break a stream, or make it refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from helix_mq.errors import ContextExceeded, HelixError, QueueFull
from helix_mq.ids import RequestId
from helix_mq.models.tokenizer import Tokenizer
from router.service import (
    NO_ORIGIN,
    Broken,
    Delta,
    EventStream,
    Finished,
    Generation,
    LinkStatus,
    NodeStanding,
    NodeStatus,
    Origin,
    ServiceStatus,
    Standing,
    TokenLogprob,
)
from router.text import TextStream

EOS = 256
LETTERS = range(32)
"""Token ids of the byte tokenizer that stand for one letter each."""


def expected_ids(generation: Generation) -> list[int]:
    """The output of a generation, stop strings left aside."""
    s = generation.sampling
    draw = s.seed if s.temperature > 0 else 0
    base = sum(generation.prompt_ids) + draw
    return [LETTERS[(base + 7 * k) % len(LETTERS)] for k in range(s.max_tokens)]


class EchoService:
    def __init__(self, folder: Path, *, max_open: int = 1000) -> None:
        self.model_name = "echo"
        self.max_context = 4096
        self.tokenizer = Tokenizer.from_folder(folder)
        self.vocab_size = self.tokenizer.vocab_size
        self.open: dict[RequestId, asyncio.Task[None]] = {}
        self.streams: dict[RequestId, EventStream] = {}
        self.submitted: list[Generation] = []
        self.cancelled: list[RequestId] = []
        self.max_open = max_open
        self.refusal: HelixError | None = None
        self.hold_at: int | None = None
        """Every stream waits before this token until `go` is set."""
        self.go = asyncio.Event()
        self.break_at: tuple[int, HelixError] | None = None
        self.serving = True
        self.statuses = 0
        """How often the whole status was asked for, which costs."""
        self.changed = asyncio.Event()
        self._seeds = 1000

    def submit(self, generation: Generation, origin: Origin = NO_ORIGIN) -> EventStream:
        if self.refusal is not None:
            raise self.refusal
        if len(self.open) >= self.max_open:
            raise QueueFull(f"{self.max_open} are waiting already", retry_after_s=2.3)
        prompt = len(generation.prompt_ids)
        if prompt < 1:
            raise ContextExceeded("the prompt is empty", param="prompt")
        if prompt + generation.sampling.max_tokens > self.max_context:
            raise ContextExceeded(
                f"{prompt} prompt tokens do not fit {self.max_context}", param="max_tokens"
            )
        self.submitted.append(generation)
        request = RequestId(len(self.submitted))
        stream = self.streams[request] = EventStream(request, prompt)
        self.open[request] = asyncio.create_task(self._run(request, generation, stream))
        self._tell()
        return stream

    def cancel(self, request: RequestId) -> None:
        task = self.open.pop(request, None)
        if task is not None:
            task.cancel()
            self.cancelled.append(request)
            self.streams[request].push(Finished("cancelled", 1, 0, 0.0, 0.0, 0.0, 0))
            self._tell()

    def standing(self) -> Standing:
        reason = "" if self.serving else "layers 3-5 are on no live node"
        return Standing(self.serving, reason, recovering=False)

    def node_standings(self) -> tuple[NodeStanding, ...]:
        return (NodeStanding("alpha", "ready", "0-5", ""),)

    def status(self) -> ServiceStatus:
        self.statuses += 1
        standing = self.standing()
        return ServiceStatus(
            serving=standing.serving,
            reason=standing.reason,
            recovering=standing.recovering,
            queued=0,
            running=len(self.open),
            nodes=(NodeStatus("alpha", "ready", "0-5", "cpu", 3, 40, len(self.open), 0),),
            links=(LinkStatus("@router", "alpha", 12345, 6),),
        )

    def draw_seed(self) -> int:
        self._seeds += 1
        return self._seeds

    def check_room(self, owner: str, priority: int, deadline_s: float | None) -> None:
        """There is always room."""

    def output_budget(self, prompt_tokens: int) -> int:
        return min(40, self.max_context - prompt_tokens)

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special)

    async def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        turns = [{"role": role, "content": content} for role, content in messages]
        return self.tokenizer.apply_chat_template(turns)

    def text_of(self, generation: Generation) -> str:
        return self.tokenizer.decode(expected_ids(generation))

    async def until_open(self, count: int) -> None:
        """Waits until exactly so many streams are open."""
        async with asyncio.timeout(240):
            while len(self.open) != count:
                self.changed.clear()
                await self.changed.wait()

    def _tell(self) -> None:
        self.changed.set()

    async def _run(self, request: RequestId, generation: Generation, stream: EventStream) -> None:
        text = TextStream(self.tokenizer.detokenizer(), generation.stop)
        reason, count = "length", 0
        ids = expected_ids(generation)
        for index, token in enumerate(ids):
            if self.hold_at is not None and index >= self.hold_at:
                await self.go.wait()
            if self.break_at is not None and index >= self.break_at[0]:
                self._end(request, Broken(self.break_at[1]))
                return
            await asyncio.sleep(0)
            pushed = text.push((token,))
            out, stopped = pushed.text, pushed.finished_by_stop
            if index == len(ids) - 1 and stopped is None:
                out += text.flush().text
            logprob = None
            if generation.sampling.logprobs:
                top = tuple((t, -0.5 * t) for t in range(generation.sampling.top_logprobs))
                logprob = TokenLogprob(token, -0.25, top)
            stream.push(Delta(index, token, out, logprob))
            count += 1
            if stopped is not None:
                reason = "stop"
                break
        prompt = len(generation.prompt_ids)
        self._end(request, Finished(reason, prompt, count, 0.01, 0.02, 0.5, 0))

    def _end(self, request: RequestId, event: Finished | Broken) -> None:
        self.open.pop(request, None)
        self.streams[request].push(event)
        self._tell()
