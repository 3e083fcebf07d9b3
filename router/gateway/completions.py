"""/v1/completions as a Dialect."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from router.gateway.choices import choices_of
from router.gateway.completion_request import CompletionRequest
from router.gateway.dialects import Stamp, Tally, Texts
from router.gateway.fanout import Item
from router.gateway.logprobs import TextLogprobColumns, joined_text_logprobs
from router.gateway.replies import TextChoice, TextCompletion, TextLogprobs, Usage
from router.preparing import check_model, check_token_ids
from router.service import Delta, Generation, Service


class CompletionDialect:
    def __init__(self, request: CompletionRequest, service: Service) -> None:
        check_model(service, request.model)
        self.request = request
        self._tokenizer = service.tokenizer
        self._stamp = Stamp("", 0, request.model)
        self._usage: UnsetType | None = None if request.include_usage else UNSET
        self._tally = Tally(request.n)
        self._texts = Texts()
        self._logprobs: dict[int, list[TextLogprobs]] = {}
        self._columns: dict[int, TextLogprobColumns] = {}
        self._choices = len(request.prompt) * request.n

    async def generations(self, service: Service) -> list[Generation]:
        sampling = self.request.sampling_as_asked()
        generations: list[Generation] = []
        for prompt in self.request.prompt:
            if isinstance(prompt, str):
                ids = tuple(await service.tokenize(prompt, special=True))
            else:
                check_token_ids(prompt, service.vocab_size, "prompt")
                ids = prompt
            generations += choices_of(
                service, self.request, ids, sampling, limited=True, continues_text=True
            )
        return generations

    def begin(self, stamp: Stamp) -> None:
        self._stamp = Stamp(f"cmpl-{stamp.name}", stamp.created, stamp.model)

    def opening(self) -> list[msgspec.Struct]:
        if not self.request.echo:
            return []
        return [self._chunk(self._choice(i, self._echo(i), None)) for i in range(self._choices)]

    def chunk(self, item: Item) -> msgspec.Struct | None:
        self._tally.add(item)
        event = item.event
        if not isinstance(event, Delta):
            return self._chunk(
                TextChoice(item.index, "", None, event.finish_reason, event.stop_reason)
            )
        logprobs = self._columns_of(item.index).of(event)
        if not event.text and logprobs is None:
            return None
        return self._chunk(self._choice(item.index, event.text, logprobs))

    def usage_chunk(self) -> msgspec.Struct:
        return self._chunk(None, self._tally.usage())

    def keep(self, item: Item) -> None:
        self._tally.add(item)
        self._texts.add(item)
        if isinstance(item.event, Delta):
            logprobs = self._columns_of(item.index).of(item.event)
            if logprobs is not None:
                self._logprobs.setdefault(item.index, []).append(logprobs)

    def answer(self) -> msgspec.Struct:
        choices = [
            TextChoice(
                i,
                self._echo(i) + self._texts.text(i),
                joined_text_logprobs(self._logprobs.get(i, [])),
                self._texts.end(i).finish_reason,
                self._texts.end(i).stop_reason,
            )
            for i in range(self._choices)
        ]
        stamp = self._stamp
        return TextCompletion(stamp.name, stamp.created, stamp.model, choices, self._tally.usage())

    def _echo(self, index: int) -> str:
        if not self.request.echo:
            return ""
        prompt = self.request.prompt[index // self.request.n]
        if isinstance(prompt, str):
            # JSON can carry lone surrogates, which no answer can.
            return prompt.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return self._tokenizer.decode(prompt, skip_special_tokens=False)

    def _columns_of(self, index: int) -> TextLogprobColumns:
        if index not in self._columns:
            with_top = bool(self.request.logprobs)
            self._columns[index] = TextLogprobColumns(self._tokenizer, with_top=with_top)
        return self._columns[index]

    def _choice(self, index: int, text: str, logprobs: TextLogprobs | None) -> TextChoice:
        return TextChoice(index, text, logprobs, None)

    def _chunk(self, choice: TextChoice | None, usage: Usage | None = None) -> TextCompletion:
        stamp = self._stamp
        choices = [choice] if choice is not None else []
        return TextCompletion(stamp.name, stamp.created, stamp.model, choices, usage or self._usage)
