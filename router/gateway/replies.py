"""The JSON that goes out, as structs: answers, chunks, usage, log probabilities. No behaviour.

Field names and nesting are OpenAI's. `usage` is absent (UNSET) unless the request asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from router.service import Finished

StopReason = str | int | None
"""The stop string or token that ended a choice, where one did; not OpenAI's, but wide-spread."""


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    """Not computed for this request: nodes had kept them from others."""


class CompletionDetails(msgspec.Struct, frozen=True):
    """Of the tokens that were guessed beside the output, by whoever: those that are in it, and the
    others."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType = UNSET
    """Where some were cached."""
    completion_tokens_details: CompletionDetails | UnsetType = UNSET
    """Where some were guessed."""


@dataclass(slots=True)
class Tokens:
    """Counts over choices."""

    prompt: int = 0
    output: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, end: Finished) -> None:
        """A choice's output; whoever counts says which choice its prompt counts for."""
        self.output += end.output_tokens
        self.drafted += end.drafted_tokens
        self.accepted += end.accepted_tokens

    def usage(self) -> Usage:
        return Usage(
            self.prompt,
            self.output,
            self.prompt + self.output,
            PromptDetails(self.cached) if self.cached else UNSET,
            CompletionDetails(self.accepted, max(0, self.drafted - self.accepted))
            if self.drafted
            else UNSET,
        )


class TopChatLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    """Exact, also where the token is a piece of a character and `token` cannot show it."""


class ChatLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopChatLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: StopReason | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"


class ChatAnswer(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: StopReason


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class TextLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of an answer and of a chunk alike."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    stop_reason: StopReason | UnsetType = UNSET


class TextCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "helix_mq"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"
