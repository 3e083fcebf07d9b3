"""What a caller may ask for: the client's own timings, and the parameters of one request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypedDict

from helix_mq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Timings and bounds of a client, all > 0.

    connect_timeout_s: for the first connection and the router's first answer.
    reconnect_timeout_s: how long open streams wait for a lost connection to come back: long enough
        for a router to restart. One that was there all the time cancels a silent client's streams
        after 30 s by default.
    keepalive_s: how often the router is told that the client is there.
    router_silent_s: silence after which a router that should have answered counts as lost.
    max_streams: open at once; the router has a bound of its own.
    """

    connect_timeout_s: float = 10.0
    reconnect_timeout_s: float = 60.0
    keepalive_s: float = 5.0
    router_silent_s: float = 30.0
    max_streams: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{field.name} = {value!r}: must be a number greater than 0", param=field.name
                )


class RequestOptions(TypedDict, total=False):
    """Keyword arguments of stream, generate, chat and stream_chat; names and defaults are OpenAI's.

    model: empty takes what the router serves.
    max_tokens: left out, the output may fill the context.
    seed: left out, the router draws one.
    logprobs, top_logprobs: log probabilities of the output tokens, and of the best others (<= 20).
    stop: up to 16 strings that end the output; they are not part of it.
    deadline_s: seconds from now; then the request fails with DeadlineExceeded.
    priority: 0 interactive, 1 background.
    """

    model: str
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    deadline_s: float
    priority: int
