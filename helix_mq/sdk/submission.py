"""From a caller's arguments to a Submit message, with errors that name the argument. Pure.

Checked here so that a mistake raises where it was made, before anything is sent. What needs the
model (vocabulary, context) the router checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from helix_mq.errors import InvalidRequest
from helix_mq.messages import client
from helix_mq.sampling import MAX_OUTPUT_TOKENS, SamplingParams
from helix_mq.sdk.options import RequestOptions

Prompt = str | Sequence[int]
"""Text, or token ids."""

_ANY_VOCABULARY = 1 << 31
_MAX_SEED = (1 << 63) - 1
_SAMPLING = frozenset(SamplingParams.__struct_fields__)
_OTHER = frozenset({"model", "stop", "deadline_s", "priority"})
_FLOATS = frozenset(
    {
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    }
)


def submit_prompt(reference: int, prompt: Prompt, options: RequestOptions) -> client.Submit:
    """Raises InvalidRequest naming the argument."""
    if isinstance(prompt, str):
        return _submit(reference, options, prompt=prompt)
    ids = _tuple_of(prompt, "prompt", "text or token ids")
    if not ids:
        raise InvalidRequest("prompt: a list of token ids must not be empty", param="prompt")
    return _submit(reference, options, token_ids=ids)


def submit_chat(
    reference: int, messages: Iterable[Mapping[str, str]], options: RequestOptions
) -> client.Submit:
    """Messages are mappings with `role` and `content`. Raises InvalidRequest."""
    turns: list[client.ChatMessage] = []
    for number, message in enumerate(_tuple_of(messages, "messages", "a list of messages")):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InvalidRequest(
                f"messages[{number}] must be a mapping with exactly `role` and `content`",
                param="messages",
            )
        turns.append(client.ChatMessage(message["role"], message["content"]))
    if not turns:
        raise InvalidRequest("messages is empty: give at least one message", param="messages")
    return _submit(reference, options, messages=tuple(turns))


def _submit(
    reference: int,
    options: RequestOptions,
    *,
    prompt: str | None = None,
    messages: tuple[client.ChatMessage, ...] | None = None,
    token_ids: tuple[int, ...] | None = None,
) -> client.Submit:
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    unknown = sorted(given.keys() - _SAMPLING - _OTHER)
    if unknown:
        raise InvalidRequest(f"there is no parameter {unknown[0]!r}", param=unknown[0])
    submit = client.Submit(
        reference=reference,
        model=given.get("model", ""),
        prompt=prompt,
        messages=messages,
        token_ids=token_ids,
        sampling=_sampling(given),
        seeded="seed" in given,
        limited="max_tokens" in given,
        stop=_stops(given.get("stop", ())),
        deadline_s=_deadline(given.get("deadline_s")),
        priority=given.get("priority", 0),
    )
    try:
        msgspec.convert(msgspec.to_builtins(submit), client.Submit)
    except (msgspec.ValidationError, TypeError, ValueError) as e:
        raise _name_field(str(e)) from None
    return submit


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    chosen = {k: v for k, v in given.items() if k in _SAMPLING}
    for name in _FLOATS & chosen.keys():
        value = chosen[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{name}={value!r}: must be a number", param=name)
        chosen[name] = float(value)
    if isinstance(chosen.get("seed"), int):
        chosen["seed"] &= _MAX_SEED
    if "logit_bias" in chosen:
        bias = chosen["logit_bias"]
        if not isinstance(bias, Mapping):
            raise InvalidRequest("logit_bias must map token ids to numbers", param="logit_bias")
        chosen["logit_bias"] = tuple(sorted(bias.items()))
    if "stop_token_ids" in chosen:
        ids = _tuple_of(chosen["stop_token_ids"], "stop_token_ids", "token ids")
        chosen["stop_token_ids"] = ids
    if "max_tokens" not in chosen:
        # Open: the router fills it in. It must only not contradict min_tokens here.
        chosen["max_tokens"] = MAX_OUTPUT_TOKENS
    try:
        sampling = SamplingParams(**chosen)
        sampling.validate(_ANY_VOCABULARY)
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidRequest(f"sampling parameters: {e}") from None
    return sampling


def _stops(value: object) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else _tuple_of(value, "stop", "strings")
    if len(stops) > 16 or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequest("stop: give up to 16 strings, none of them empty", param="stop")
    return stops


def _deadline(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"deadline_s={value!r}: must be a number", param="deadline_s")
    if not (math.isfinite(value) and 0 < value <= 86_400):
        raise InvalidRequest(
            f"deadline_s={value!r}: must be above 0 and at most 86400 seconds", param="deadline_s"
        )
    return float(value)


def _tuple_of(value: object, param: str, what: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidRequest(f"{param}: {value!r:.60} is not {what}", param=param)
    return tuple(value)


def _name_field(text: str) -> InvalidRequest:
    """msgspec's complaint with the argument's name in place of its path into the struct."""
    what, _, path = text.partition(" - at ")
    index = path.strip("`$").strip("[").partition("]")[0]
    names = client.Submit.__struct_fields__
    if not (index.isdecimal() and int(index) < len(names)):
        return InvalidRequest(what)
    name = "prompt" if names[int(index)] == "token_ids" else names[int(index)]
    return InvalidRequest(f"{name}: {what[0].lower()}{what[1:]}", param=name)
