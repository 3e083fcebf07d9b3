"""How one request's tokens are chosen: the parameters, as they are validated and as they travel.

Bounds are declared on the fields, so a struct that came off the wire is within them (NaN and
infinities included). `validate` adds what needs the model or two fields at once.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from helix_mq.errors import InvalidRequest
from helix_mq.packing import U31, U63

MAX_OUTPUT_TOKENS = 1 << 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 64
MAX_TOP_LOGPROBS = 20

_Bias = Annotated[float, msgspec.Meta(ge=-100.0, le=100.0)]


class SamplingParams(msgspec.Struct, array_like=True, frozen=True):
    """Defaults are OpenAI's. Penalties and filters are off at their defaults."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    """0 is off."""
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 1.0
    """Over prompt and output, multiplicative, as in transformers."""
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    """Over the output, as OpenAI defines it."""
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Annotated[
        tuple[tuple[U31, _Bias], ...], msgspec.Meta(max_length=MAX_LOGIT_BIAS)
    ] = ()
    seed: U63 = 0
    """With the position it decides every draw; the router draws one where the caller gave none."""
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTPUT_TOKENS)] = 256
    min_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTPUT_TOKENS)] = 0
    """End-of-sequence and stop tokens cannot be drawn before so many output tokens."""
    stop_token_ids: Annotated[tuple[U31, ...], msgspec.Meta(max_length=MAX_STOP_TOKENS)] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] = 0

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequest naming the parameter that does not fit the model or another."""
        # A struct made in Python is not checked against its bounds; one round trip checks them.
        try:
            msgspec.convert(msgspec.to_builtins(self), SamplingParams)
        except msgspec.ValidationError as e:
            raise InvalidRequest(self._say(str(e)), param=_field(str(e))) from None
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}",
                param="min_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                f"top_logprobs={self.top_logprobs} needs logprobs=true", param="top_logprobs"
            )
        _check_ids([t for t, _ in self.logit_bias], vocab_size, "logit_bias")
        _check_ids(self.stop_token_ids, vocab_size, "stop_token_ids")

    def _say(self, text: str) -> str:
        """msgspec's complaint with the field's name and value in place of its path."""
        what = text.partition(" - at ")[0]
        field = _field(text)
        if field is None:
            return what
        value = repr(getattr(self, field))
        shown = value if len(value) <= 60 else value[:57] + "..."
        return f"{field}={shown}: {what[0].lower()}{what[1:]}"


def _check_ids(ids: list[int] | tuple[int, ...], vocab_size: int, param: str) -> None:
    for token in ids:
        if token >= vocab_size:
            raise InvalidRequest(
                f"{param}: token id {token} is outside the vocabulary of {vocab_size}",
                param=param,
            )


def _field(text: str) -> str | None:
    """The field's name from msgspec's path, e.g. `$[0]` of an array-like struct."""
    _, _, path = text.rpartition("$[")
    index = path.split("]")[0]
    fields = SamplingParams.__struct_fields__
    if index.isdecimal() and int(index) < len(fields):
        return fields[int(index)]
    return None
