"""What the overload bench hands to the process that makes the load, and what comes back.

Times of outcomes are seconds since the phase began, on the load process's own clock.
"""

from __future__ import annotations

import msgspec

SERVED, REFUSED, LATE, BROKEN, HUNG = "served", "refused", "late", "broken", "hung"
"""What became of a request: `late` ended with its deadline, `broken` in any other way that it
should not have, `hung` had not ended when the load process gave up."""


class Sender(msgspec.Struct, frozen=True):
    """One API key and what it sends. `share`: of all arrivals. `priority` 1 is background."""

    name: str
    key: str
    priority: int
    share: float
    deadline_s: float


class Job(msgspec.Struct, frozen=True):
    """One phase. `rate_per_s`: Poisson arrivals whatever becomes of them; None keeps `at_once`
    requests under way. Prompts and outputs are drawn evenly from (least, most) tokens."""

    host: str
    port: int
    model: str
    senders: tuple[Sender, ...]
    seconds: float
    rate_per_s: float | None
    at_once: int
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    seed: int
    grace_s: float


class Outcome(msgspec.Struct, frozen=True):
    """`due_s`: when it was to be sent by the draw. `first_s`: its first token. `ended_s`: its end,
    or the refusal. `code`: of the error. `tokens`: as the router counted them."""

    sender: int
    kind: str
    status: int
    code: str
    retry_after_s: float | None
    due_s: float
    sent_s: float
    first_s: float | None
    ended_s: float
    tokens: int


class LoadResult(msgspec.Struct, frozen=True):
    """`cpu_s`: of the load process in `wall_s`, its start not counted."""

    outcomes: tuple[Outcome, ...]
    cpu_s: float
    wall_s: float
