"""The body of /v1/chat/completions, checked: messages, sampling, logprobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from helix_mq.errors import InvalidRequest
from helix_mq.sampling import SamplingParams
from router.gateway.fields import Fields, GenerationFields, Integer, read_fields

MAX_MESSAGES = 4096

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}


def read_content(value: object) -> str:
    """A string, or text parts joined by line breaks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts of type text")
    texts: list[str] = []
    for number, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError(f"part {number} must be an object with a `type`")
        if part["type"] != "text":
            raise ValueError(
                f"part {number} has type {part['type'][:40]!r}: this model reads text only"
            )
        if not isinstance(part.get("text"), str):
            raise ValueError(f"part {number} must have a `text` that is a string")
        texts.append(part["text"])
    return "\n".join(texts)


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(read_content)]
    name: str | None = None
    """Accepted; chat templates have no place for it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        # Clients send answers back as they came: with `refusal: null`, `tool_calls: []`, ...
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None and v != []}


class ChatRequest(GenerationFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    logprobs: bool = False
    top_logprobs: Integer = 0

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> ChatRequest:
        """Raises InvalidRequest or a subclass of it."""
        request = read_fields(cls, body, _NEUTRAL)
        request.check_together()
        if (
            request.max_tokens is not None
            and request.max_completion_tokens is not None
            and request.max_tokens != request.max_completion_tokens
        ):
            raise InvalidRequest(
                f"max_tokens={request.max_tokens} and max_completion_tokens="
                f"{request.max_completion_tokens} differ: give one of them",
                param="max_completion_tokens",
            )
        return request

    @property
    def limit(self) -> int | None:
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    def turns(self) -> list[tuple[str, str]]:
        """(role, content); `developer` is what templates know as `system`."""
        return [("system" if m.role == "developer" else m.role, m.content) for m in self.messages]

    def sampling_as_asked(self) -> SamplingParams:
        return self.sampling(
            max_tokens=self.limit, logprobs=self.logprobs, top_logprobs=self.top_logprobs
        )
