"""/v1/chat/completions as a Dialect."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from router.gateway.chat_request import ChatRequest
from router.gateway.choices import choices_of
from router.gateway.dialects import Stamp, Tally, Texts
from router.gateway.fanout import Item
from router.gateway.logprobs import chat_logprobs, joined_chat_logprobs
from router.gateway.replies import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from router.preparing import check_model
from router.service import Delta, Generation, Service


class ChatDialect:
    def __init__(self, request: ChatRequest, service: Service) -> None:
        check_model(service, request.model)
        self.request = request
        self._tokenizer = service.tokenizer
        self._stamp = Stamp("", 0, request.model)
        self._usage: UnsetType | None = None if request.include_usage else UNSET
        self._tally = Tally(request.n)
        self._texts = Texts()
        self._logprobs: dict[int, list[ChatLogprobs]] = {}

    async def generations(self, service: Service) -> list[Generation]:
        prompt = tuple(await service.tokenize_chat(self.request.turns()))
        return choices_of(
            service,
            self.request,
            prompt,
            self.request.sampling_as_asked(),
            limited=self.request.limit is not None,
        )

    def begin(self, stamp: Stamp) -> None:
        self._stamp = Stamp(f"chatcmpl-{stamp.name}", stamp.created, stamp.model)

    def opening(self) -> list[msgspec.Struct]:
        role = ChatDelta(role="assistant", content="")
        return [self._chunk(ChatChunkChoice(i, role)) for i in range(self.request.n)]

    def chunk(self, item: Item) -> msgspec.Struct | None:
        self._tally.add(item)
        event = item.event
        if not isinstance(event, Delta):
            return self._chunk(
                ChatChunkChoice(
                    item.index, ChatDelta(), None, event.finish_reason, event.stop_reason
                )
            )
        logprobs = chat_logprobs(event, self._tokenizer)
        if not event.text and logprobs is None:
            return None
        return self._chunk(ChatChunkChoice(item.index, ChatDelta(content=event.text), logprobs))

    def usage_chunk(self) -> msgspec.Struct:
        return self._chunk(None, self._tally.usage())

    def keep(self, item: Item) -> None:
        self._tally.add(item)
        self._texts.add(item)
        if isinstance(item.event, Delta):
            logprobs = chat_logprobs(item.event, self._tokenizer)
            if logprobs is not None:
                self._logprobs.setdefault(item.index, []).append(logprobs)

    def answer(self) -> msgspec.Struct:
        choices = [
            ChatChoice(
                i,
                ChatAnswer(self._texts.text(i)),
                joined_chat_logprobs(self._logprobs.get(i, [])),
                self._texts.end(i).finish_reason,
                self._texts.end(i).stop_reason,
            )
            for i in range(self.request.n)
        ]
        stamp = self._stamp
        return ChatCompletion(stamp.name, stamp.created, stamp.model, choices, self._tally.usage())

    def _chunk(self, choice: ChatChunkChoice | None, usage: Usage | None = None) -> ChatChunk:
        stamp = self._stamp
        choices = [choice] if choice is not None else []
        return ChatChunk(stamp.name, stamp.created, stamp.model, choices, usage or self._usage)
