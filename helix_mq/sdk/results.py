"""What a caller gets: tokens as they come, the whole in the end. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TopLogprob:
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`text` is the token's own text, special tokens by their name; `top` is best first."""

    id: int
    text: str
    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One step of a stream.

    text: what became certain with this token. It may lag behind while half a character or the
        beginning of a stop string is held back; the texts of a stream add up to its whole text.
    id: None only in a last step that brings held-back text and no token.
    index: 0, 1, 2, ... without gaps.
    """

    text: str
    id: int | None
    index: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """`cached_tokens`: of the prompt, those that nodes had kept from other requests.
    `drafted_tokens`: guessed beside the output; `accepted_tokens` of them are in it."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Times as the caller saw them, on its own clock, the way to the router included.

    ttft_s: from submission to the first token.
    total_s: from submission to the end.
    tokens_per_s: output tokens after the first, over the time after the first; with a single token
        over the whole time.
    queue_s: what the router says of waiting before the start.
    reroutes: how often the request was moved to another route.
    """

    ttft_s: float
    total_s: float
    tokens_per_s: float
    queue_s: float
    reroutes: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. `finish_reason`: `stop`, `length`, or `cancelled` (then partial)."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    model: str
    request: str
    """The router's name for it: before the dot, its id in the router's log."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per output token where they were asked for."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a router serves; `serving` is False while its nodes do not cover the model."""

    names: tuple[str, ...]
    serving: bool
