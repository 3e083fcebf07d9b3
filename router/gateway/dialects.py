"""What differs between the two endpoints: prompts in, answers and chunks out.

A Dialect is made per request. It keeps what has been said per choice, writes no bytes to anyone,
and decides nothing about the generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from router.gateway.fanout import Item
from router.gateway.fields import GenerationFields
from router.gateway.replies import Tokens, Usage
from router.service import Delta, Finished, Generation, Service


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every answer and chunk of one request repeats."""

    name: str
    created: int
    model: str


class Dialect(Protocol):
    @property
    def request(self) -> GenerationFields: ...

    async def generations(self, service: Service) -> list[Generation]:
        """One per choice; prompt-major. Raises InvalidRequest or ContextExceeded."""
        ...

    def begin(self, stamp: Stamp) -> None:
        """Called once, after the submission and before anything below."""
        ...

    def opening(self) -> list[msgspec.Struct]:
        """Chunks before the first token."""
        ...

    def chunk(self, item: Item) -> msgspec.Struct | None:
        """The chunk of an event; None when there is nothing to show."""
        ...

    def usage_chunk(self) -> msgspec.Struct:
        """The last chunk with stream_options.include_usage."""
        ...

    def keep(self, item: Item) -> None:
        """Takes an event of an answer that is not streamed."""
        ...

    def answer(self) -> msgspec.Struct:
        """The whole answer, once every choice has ended."""
        ...


class Tally:
    """Counts tokens over the choices of a request, as OpenAI counts them: each prompt once."""

    def __init__(self, choices_per_prompt: int) -> None:
        self._n = choices_per_prompt
        self._tokens = Tokens()

    def add(self, item: Item) -> None:
        if isinstance(item.event, Finished):
            self._tokens.add(item.event)
            if item.index % self._n == 0:
                self._tokens.prompt += item.event.prompt_tokens
                self._tokens.cached += item.event.cached_tokens

    def usage(self) -> Usage:
        return self._tokens.usage()


class Texts:
    """The text and the end of each choice of an answer that is not streamed."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[str]] = {}
        self._ends: dict[int, Finished] = {}

    def add(self, item: Item) -> None:
        match item.event:
            case Delta():
                self._pieces.setdefault(item.index, []).append(item.event.text)
            case Finished():
                self._ends[item.index] = item.event

    def text(self, index: int) -> str:
        return "".join(self._pieces.get(index, ()))

    def end(self, index: int) -> Finished:
        return self._ends[index]
