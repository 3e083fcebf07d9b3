"""From bodies to Generations: sampling parameters, limits and seeds of each choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from helix_mq.errors import InvalidRequest, UnknownModel
from helix_mq.sampling import SamplingParams
from router.gateway.bodies import Body, ChatBody, CompletionBody
from router.service import Generation, Service

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, for completions; chats go on until the model ends or the context is full."""

_SEED_STEP = 0x9E3779B97F4A7C15
"""Odd, near 2^64 divided by the golden ratio: choices' seeds never meet."""

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A body's parameters, checked: what every choice of every prompt shares."""

    sampling: SamplingParams
    limited: bool
    stop: tuple[str, ...]
    choices: int
    deadline_s: float | None
    priority: int

    def generation(self, service: Service, prompt: list[int], choice: int) -> Generation:
        """One sequence; each choice draws from a seed of its own."""
        sampling = replace(
            self.sampling, seed=(self.sampling.seed + choice * _SEED_STEP) % (1 << 63)
        )
        if not self.limited:
            # At least 1, so that a prompt that does not fit is refused for that.
            most = max(1, service.output_budget(len(prompt)))
            sampling = replace(sampling, max_tokens=max(most, 1))
        return Generation(tuple(prompt), sampling, self.stop, self.deadline_s, self.priority)


def wanted(service: Service, body: ChatBody | CompletionBody) -> Wanted:
    """Raises UnknownModel or InvalidRequest naming the parameter."""
    if body.model != service.model_name:
        raise UnknownModel(
            f"model {body.model[:100]!r} is not served here; this cluster serves "
            f"{service.model_name!r}",
            param="model",
        )
    body.refuse_unsupported()
    fields: dict[str, Any] = {
        name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None
    }
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        if name in fields:
            fields[name] = float(fields[name])
    limit = body.max_tokens
    if isinstance(body, ChatBody):
        if body.max_completion_tokens is not None:
            limit = body.max_completion_tokens
        fields["logprobs"] = bool(body.logprobs)
        if body.top_logprobs is not None:
            fields["top_logprobs"] = body.top_logprobs
    else:
        if limit is None:
            limit = DEFAULT_COMPLETION_TOKENS
        if body.logprobs is not None:
            fields["logprobs"], fields["top_logprobs"] = True, body.logprobs
    if limit is not None:
        fields["max_tokens"] = limit
    elif body.min_tokens is not None:
        # Checked against the real limit once the prompt's length is known.
        fields["max_tokens"] = max(SamplingParams().max_tokens, body.min_tokens)
    fields["seed"] = body.seed % (1 << 63) if body.seed is not None else service.draw_seed()
    fields["logit_bias"] = _bias(body)
    fields["stop_token_ids"] = tuple(body.stop_token_ids or ())
    sampling = SamplingParams(**fields)
    sampling.validate(service.vocab_size)
    return Wanted(
        sampling=sampling,
        limited=limit is not None,
        stop=body.stop,
        choices=body.n or 1,
        deadline_s=body.deadline_s,
        priority=body.priority or 0,
    )


def _bias(body: Body) -> tuple[tuple[int, float], ...]:
    pairs = []
    for token, value in (body.logit_bias or {}).items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise InvalidRequest(
                f"logit_bias: {token[:40]!r} is not a token id", param="logit_bias"
            )
        pairs.append((int(token), float(value)))
    return tuple(sorted(pairs))
