"""SDK <-> router. Deltas are numbered, so that a resumed one repeats and skips nothing."""

from __future__ import annotations

from typing import Annotated

import msgspec

from helix_mq.messages.data import TopLogprob
from helix_mq.packing import U31, U63, Seconds
from helix_mq.sampling import SamplingParams

MAX_PROMPT_CHARS = 1 << 21
MAX_PROMPT_TOKENS = 1 << 17

LongText = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARS)]
ShortText = Annotated[str, msgspec.Meta(max_length=4096)]
RequestName = Annotated[str, msgspec.Meta(max_length=64)]


class ChatMessage(msgspec.Struct, array_like=True, frozen=True):
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    content: LongText


class Submit(msgspec.Struct, array_like=True, frozen=True):
    """A request: exactly one of `prompt`, `messages`, `token_ids` is given.

    `reference` is the client's own number for the stream; every answer carries it. `seed` and
    `max_tokens` in `sampling` count only where `seeded` and `limited` say the caller chose them;
    otherwise the router draws a seed and takes what the context leaves.
    """

    reference: U63
    model: ShortText
    prompt: LongText | None
    messages: Annotated[tuple[ChatMessage, ...], msgspec.Meta(max_length=4096)] | None
    token_ids: Annotated[tuple[U31, ...], msgspec.Meta(max_length=MAX_PROMPT_TOKENS)] | None
    sampling: SamplingParams
    seeded: bool
    limited: bool
    stop: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=16)]
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None
    priority: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class Accepted(msgspec.Struct, array_like=True, frozen=True):
    reference: U63
    request: RequestName
    model: ShortText
    prompt_tokens: U31


class TokenLogprob(msgspec.Struct, array_like=True, frozen=True):
    token: U31
    text: ShortText
    logprob: float
    top: Annotated[tuple[TopLogprob, ...], msgspec.Meta(max_length=20)]


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """Delta number `index` of a stream: one per output token, in order, without gaps.

    `text` may lag behind the token while a stop string or half a character is held back; a last
    delta without a token may carry what was held. A client that has seen n deltas resumes at n.
    """

    reference: U63
    index: U31
    token: U31 | None
    text: LongText
    logprob: TokenLogprob | None = None


class Timings(msgspec.Struct, array_like=True, frozen=True):
    queue_s: Seconds
    ttft_s: Seconds
    """From submission to the first token."""
    total_s: Seconds
    reroutes: U31


class Done(msgspec.Struct, array_like=True, frozen=True):
    """`finish_reason`: `stop` or `length`; `cancelled` after a cancel."""

    reference: U63
    finish_reason: Annotated[str, msgspec.Meta(max_length=32)]
    prompt_tokens: U31
    output_tokens: U31
    timings: Timings
    cached_tokens: U31 = 0
    """Of the prompt, those that were not computed: nodes had kept them from other requests."""
    drafted_tokens: U31 = 0
    accepted_tokens: U31 = 0
    """Of those guessed, what turned out to be the next tokens of the output."""


class Failed(msgspec.Struct, array_like=True, frozen=True):
    reference: U63
    code: ShortText
    message: ShortText
    param: ShortText | None
    http_status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    retry_after_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None


class Cancel(msgspec.Struct, array_like=True, frozen=True):
    reference: U63


class Resume(msgspec.Struct, array_like=True, frozen=True):
    """After a reconnect: go on with `request` from delta number `index`, under `reference`."""

    reference: U63
    request: RequestName
    index: U31


class Keepalive(msgspec.Struct, array_like=True, frozen=True):
    """Both ways; streams of a client not heard from for a while are cancelled."""

    sequence: U63


class Models(msgspec.Struct, array_like=True, frozen=True):
    """Client asks with an empty tuple, the router answers with what it serves."""

    models: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=64)]
    serving: bool = False
