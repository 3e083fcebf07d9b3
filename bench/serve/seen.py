"""What has come of one request so far, and what that makes it in the end. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from bench.serve.types import BROKEN, LATE, REFUSED, SERVED, WRONG

REFUSALS = (429, 503)
DEADLINE_STATUS = 504
DEADLINE_CODE = "deadline_exceeded"
MAX_REASON_CHARS = 160


@dataclass(slots=True)
class Seen:
    """`at_s`: when each event with output came, on the clock of whoever reads it. Tokens as the
    server counts them, None until it has said so. `fault`: what broke on our side of the wire."""

    at_s: array[float] = field(default_factory=lambda: array("d"))
    status: int = 0
    code: str = ""
    fault: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None
    finished: bool = False
    """The stream said that it is complete."""
    overdue: bool = False
    """We gave up at the deadline."""


def judge(seen: Seen, asked_tokens: int, exact: bool) -> tuple[str, str]:
    """Kind and reason. `exact`: as many tokens as asked for were to come."""
    if seen.overdue:
        return LATE, "deadline passed"
    if seen.code or seen.status >= 300:
        reason = f"{seen.status or ''} {seen.code}".strip()[:MAX_REASON_CHARS]
        if seen.status == DEADLINE_STATUS or seen.code == DEADLINE_CODE:
            return LATE, reason
        return (REFUSED if seen.status in REFUSALS else BROKEN), reason
    if seen.fault:
        return BROKEN, seen.fault[:MAX_REASON_CHARS]
    if not seen.finished:
        return BROKEN, "the stream ended without [DONE]"
    if seen.tokens is None:
        return WRONG, "no usage in the stream"
    if seen.tokens > asked_tokens or (exact and seen.tokens != asked_tokens):
        return WRONG, "another number of tokens than asked for"
    if not seen.tokens:
        return WRONG, "no tokens"
    return SERVED, ""
