"""The body of /v1/completions, checked: prompts as text or token ids, echo, logprobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator

from helix_mq.errors import InvalidRequest
from helix_mq.sampling import MAX_TOP_LOGPROBS, SamplingParams
from router.gateway.faults import UnsupportedParameter
from router.gateway.fields import GenerationFields, Integer, read_fields

Prompt = str | tuple[int, ...]
"""Text, or token ids."""

MAX_SEQUENCES = 1024
"""Prompts times choices of one request."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {"suffix": ("",)}


def read_prompts(value: object) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, or token ids, and not empty")
    if type(value[0]) is int:
        return (_ids(value, ""),)
    if len(value) > MAX_SEQUENCES:
        raise ValueError(f"{len(value)} prompts; at most {MAX_SEQUENCES} are allowed")
    prompts: list[Prompt] = []
    for number, item in enumerate(value):
        if type(item) is not type(value[0]) or not isinstance(item, str | list):
            raise ValueError(f"prompt {number}: all must be strings, or all lists of token ids")
        prompts.append(item if isinstance(item, str) else _ids(item, f"prompt {number}: "))
    return tuple(prompts)


def _ids(value: list[Any], where: str) -> tuple[int, ...]:
    if not value:
        raise ValueError(f"{where}a list of token ids must not be empty")
    for place, token in enumerate(value):
        if type(token) is not int:
            raise ValueError(f"{where}item {place} is not an integer token id")
    return tuple(value)


class CompletionRequest(GenerationFields):
    prompt: Annotated[tuple[Prompt, ...], PlainValidator(read_prompts)]
    max_tokens: Integer = DEFAULT_MAX_TOKENS
    echo: bool = False
    logprobs: Integer | None = None
    best_of: Integer | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> CompletionRequest:
        """Raises InvalidRequest or a subclass of it."""
        request = read_fields(cls, body, _NEUTRAL)
        request.check_together()
        if request.best_of not in (None, request.n):
            raise UnsupportedParameter(
                f"best_of={request.best_of} is only supported when it equals n={request.n}",
                param="best_of",
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"logprobs={request.logprobs} must be from 0 to {MAX_TOP_LOGPROBS}",
                param="logprobs",
            )
        if request.echo and request.logprobs is not None:
            raise UnsupportedParameter(
                "logprobs with echo=true would need the prompt's own, which this server does not "
                "compute",
                param="logprobs",
            )
        if len(request.prompt) * request.n > MAX_SEQUENCES:
            raise InvalidRequest(
                f"{len(request.prompt)} prompts with n={request.n} make "
                f"{len(request.prompt) * request.n} sequences; at most {MAX_SEQUENCES} are allowed",
                param="n" if request.n > 1 else "prompt",
            )
        return request

    def sampling_as_asked(self) -> SamplingParams:
        return self.sampling(
            max_tokens=self.max_tokens,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs or 0,
        )
