"""What chat and text completions have in common: names, types, and errors that name the field.

Types are checked here, bounds by SamplingParams: one place holds them for HTTP and SDK alike. null
counts as not given, as with OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from helix_mq.errors import InvalidRequest
from helix_mq.sampling import MAX_LOGIT_BIAS, MAX_OUTPUT_TOKENS, SamplingParams
from router.gateway.faults import UnknownParameter, UnsupportedParameter

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 1024

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
"""Known to OpenAI, without an effect on the answer."""

M = TypeVar("M", bound=BaseModel)


def read_stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} stop strings; at most {MAX_STOPS} are allowed")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def read_logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"{len(value)} entries; at most {MAX_LOGIT_BIAS} are allowed")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise ValueError(f"{key[:40]!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {key} must be a number from -100 to 100")
        if int(key) in biases:
            raise ValueError(f"token {int(key)} is there twice")
        biases[int(key)] = float(bias)
    return tuple(sorted(biases.items()))


def read_number(value: object) -> float:
    """A JSON number; not left to pydantic, which gives infinity for a very large integer."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ValueError("must be a number")
    return float(value)


Number = Annotated[float, PlainValidator(read_number)]
Integer = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]


class Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(Fields):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted: random padding against traffic analysis is never sent."""


class GenerationFields(Fields):
    """Fields of both endpoints. Names of OpenAI's first, then the extensions."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(read_stop)] = ()
    seed: Integer | None = None
    temperature: Number = 1.0
    top_p: Number = 1.0
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    logit_bias: Annotated[tuple[tuple[int, float], ...], PlainValidator(read_logit_bias)] = ()

    top_k: Integer = 0
    """0 and, as elsewhere, -1 are off."""
    min_p: Number = 0.0
    repetition_penalty: Number = 1.0
    min_tokens: Integer = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[Integer], Field(max_length=64, fail_fast=True)] = []
    deadline_s: Number | None = None
    priority: Annotated[int, Field(ge=0, le=1)] = 0
    """0 = interactive, 1 = background."""

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check_together(self) -> None:
        """Raises InvalidRequest for fields that do not fit each other."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options is only allowed with stream=true", param="stream_options"
            )
        if self.deadline_s is not None and not 0 < self.deadline_s <= 86_400:
            raise InvalidRequest(
                f"deadline_s={self.deadline_s!r} must be above 0 and at most 86400 seconds",
                param="deadline_s",
            )

    def sampling(
        self, *, max_tokens: int | None, logprobs: bool, top_logprobs: int
    ) -> SamplingParams:
        """As asked; seed and an open max_tokens are decided later (router.preparing)."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            max_tokens=MAX_OUTPUT_TOKENS if max_tokens is None else max_tokens,
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )


def read_fields(
    model: type[M], body: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]]
) -> M:
    """`body` as `model`. `neutral`: unsupported names, with the values that ask for nothing.

    Raises UnknownParameter, UnsupportedParameter or InvalidRequest, each naming the field.
    """
    given: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in model.model_fields:
            given[name] = value
        elif name in neutral:
            if not any(type(value) is type(v) and value == v for v in neutral[name]):
                raise UnsupportedParameter(
                    f"{name} is not supported by this server: leave it out", param=name
                )
        else:
            raise _unknown(name[:100])
    try:
        return model.model_validate(given)
    except ValidationError as e:
        raise _translate(e.errors(include_url=False)[0]) from None


def _unknown(name: str) -> UnknownParameter:
    return UnknownParameter(
        f"unknown parameter {name!r}: leave it out, or correct its spelling", param=name
    )


def _translate(fault: ErrorDetails) -> InvalidRequest:
    field = ""
    for part in fault["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f"{'.' if field else ''}{part[:100]}"
    if fault["type"] == "missing":
        return InvalidRequest(f"you must provide {field}", param=field)
    if fault["type"] == "extra_forbidden":
        return _unknown(field)
    text = fault["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {text}{_given(fault['input'])}", param=field)


def _given(value: object) -> str:
    """The value where it is short; never a container, which may be large or deep."""
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 128):
        return f" (given: {value!r})"
    if isinstance(value, str):
        return f" (given: {value[:60]!r})"
    return ""
