"""Request bodies: which fields there are and of which types. Ranges are SamplingParams' business.

A field nobody knows is refused by name, as OpenAI does; fields that only concern OpenAI's own
bookkeeping are accepted and ignored; fields for things that are not done here are refused unless
they ask for nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from helix_mq.errors import InvalidRequest
from router.gateway.errors import BodyTooLarge

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_PROMPTS = 256

B = TypeVar("B", bound="Body")


def _one_or_many(value: Any) -> Any:
    if value is None:
        return ()
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


Stops = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
    BeforeValidator(_one_or_many),
    Field(max_length=MAX_STOPS),
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False


class Body(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Stops = ()
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: Literal[0, 1] | None = None
    deadline_s: float | None = Field(None, gt=0, le=86_400)

    # Bookkeeping of OpenAI's own platform: no meaning here, no harm either.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class Part(BaseModel):
    """One part of a message's content; only text is understood."""

    model_config = ConfigDict(strict=True, extra="ignore")
    type: str
    text: str | None = None


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: str = Field(min_length=1, max_length=32, pattern=r"^[a-z_]+$")
    content: str | list[Part] | None = None

    def text(self, index: int) -> str:
        """The content as one text. InvalidRequest for parts that are not text."""
        if isinstance(self.content, str):
            return self.content
        texts = []
        for part in self.content or ():
            if part.type != "text" or part.text is None:
                raise InvalidRequest(
                    f"messages[{index}].content has a part of type {part.type!r}: this model "
                    "reads text only",
                    param=f"messages[{index}].content",
                )
            texts.append(part.text)
        return "\n".join(texts)


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: str


class ChatBody(Body):
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    parallel_tool_calls: Any = None

    def refuse_unsupported(self) -> None:
        """InvalidRequest for features that are asked for and not done here."""
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise InvalidRequest(
                    f"{name}: calling tools is not supported; leave it out", param=name
                )
        if self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "tool_choice: calling tools is not supported; leave it out", param="tool_choice"
            )
        if self.response_format is not None and self.response_format.type != "text":
            raise InvalidRequest(
                f"response_format of type {self.response_format.type!r} is not supported; "
                'use {"type": "text"}',
                param="response_format",
            )


Prompt = str | list[str] | list[int] | list[list[int]]


class CompletionBody(Body):
    prompt: Prompt
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: str | None = None
    best_of: int | None = None

    def refuse_unsupported(self) -> None:
        if self.suffix:
            raise InvalidRequest("suffix: filling in the middle is not supported", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest(
                f"best_of={self.best_of} is not supported; ask for n choices", param="best_of"
            )
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs is not supported: logprobs are of output tokens only",
                param="logprobs",
            )

    def prompts(self) -> list[str | list[int]]:
        """Each prompt on its own, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequest("prompt is an empty list", param="prompt")
        ids: list[int] = [p for p in self.prompt if isinstance(p, int)]
        if ids:
            return [ids]
        if len(self.prompt) > MAX_PROMPTS:
            raise InvalidRequest(
                f"{len(self.prompt)} prompts in one request; the limit is {MAX_PROMPTS}",
                param="prompt",
            )
        many: list[str | list[int]] = [p for p in self.prompt if not isinstance(p, int)]
        return many


async def read_body(request: Request, kind: type[B], max_bytes: int) -> B:
    """The request's JSON body as `kind`. Raises CallerError naming what is wrong.

    The limit holds while reading, so a chunked body cannot grow past it.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body is {declared} bytes; the limit is {max_bytes}")
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() not in ("application/json", ""):
        raise InvalidRequest(
            f"content type {content_type[:80]!r}: send application/json", param="content-type"
        )
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise BodyTooLarge(f"the body is larger than the limit of {max_bytes} bytes")
    except ClientDisconnect:
        raise InvalidRequest("the connection closed before the body was complete") from None
    try:
        plain = json.loads(bytes(data), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        text = str(e).splitlines()[0] if str(e) else "too deeply nested"
        raise InvalidRequest(f"the body is not valid JSON: {text}") from None
    if not isinstance(plain, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(plain).__name__}")
    try:
        return kind.model_validate(plain)
    except ValidationError as e:
        raise _invalid(e) from None
    except RecursionError:
        raise InvalidRequest("the body is too deeply nested") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _invalid(error: ValidationError) -> InvalidRequest:
    fault = error.errors(include_url=False, include_context=False)[0]
    # Union members add their own names to the path; a user knows only fields and indexes.
    path = [
        p for p in fault["loc"] if isinstance(p, int) or (isinstance(p, str) and p.isidentifier())
    ]
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    root = str(fault["loc"][0]) if fault["loc"] else "body"
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter: {root!r}", param=root)
    if fault["type"] == "missing":
        return InvalidRequest(f"missing parameter: {field or root!r}", param=root)
    value = repr(fault.get("input"))
    shown = value if len(value) <= 60 else value[:57] + "..."
    name = root if root in ("prompt", "stop") else field or root
    return InvalidRequest(f"{name} = {shown}: {fault['msg']}", param=name)
