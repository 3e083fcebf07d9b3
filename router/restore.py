"""What the router left in its journal, made into what goes on: sessions with their output so far.

Tokens are taken by a session as they were when they came, so the text deltas, and how the text
ends, are the same. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helix_mq.ids import Attempt
from helix_mq.messages.data import TokenItem, TopLogprob
from router import events as ev
from router.journal_records import StoredRequest, TokenKept
from router.service import Delta, Generation
from router.sessions import Session
from router.text import TextStream

ATTEMPTS_PER_LIFE = 1 << 16
"""Nodes refuse what is older than they have seen: each life of the router begins above the
attempts of the one before."""


@dataclass(frozen=True, slots=True)
class Past:
    """A session as it was, what its stream has given out, and how the text ended if it did."""

    session: Session
    deltas: tuple[Delta, ...]
    finish: tuple[str, str | int | None] | None


def event_of(stored: StoredRequest, life: int, wall_s: float) -> ev.Restored:
    """What the core is told of a request that had not ended. `life`: the router's present one."""
    opened = stored.opened
    arrived_s = opened.arrived_ms / 1000
    first_token_s = None
    if stored.tokens:
        first_token_s = max(0.0, stored.tokens[0].at_ms / 1000 - arrived_s)
    return ev.Restored(
        request=opened.request,
        generation=opened.generation,
        output=tuple(_item(token) for token in stored.tokens),
        attempt=Attempt(max(1, life - opened.life) * ATTEMPTS_PER_LIFE),
        restarts=max(0, life - opened.life),
        # Clocks are set; what was in the future then has no age.
        age_s=max(0.0, wall_s - arrived_s),
        first_token_s=first_token_s,
        deadline_ms=opened.deadline_ms,
    )


def rebuild(
    event: ev.Restored, text: TextStream, eos_ids: frozenset[int], now_s: float, wall_s: float
) -> Past:
    """The session of a request, waiting for a route."""
    arrived_s = now_s - event.age_s
    session = Session(
        request=event.request,
        generation=event.generation,
        text=text,
        arrived_s=arrived_s,
        deadline_s=now_s + (event.deadline_ms / 1000 - wall_s),
        deadline_ms=event.deadline_ms,
        eos_ids=eos_ids,
        attempt=event.attempt,
        reroutes=event.restarts,
    )
    if event.first_token_s is not None:
        # When it left the queue is not kept; it was no later than this.
        session.started_s = session.first_token_s = arrived_s + event.first_token_s
    deltas: list[Delta] = []
    finish = None
    for item in event.output:
        delta, reason, stop = session.take(item, now_s)
        deltas.append(delta)
        if reason is not None:
            finish = (reason, stop)
            break
    return Past(session, tuple(deltas), finish)


def deltas_of(
    stored: StoredRequest,
    new_text: Callable[[Generation], TextStream],
    eos_ids: frozenset[int],
) -> tuple[Delta, ...]:
    """What the request's stream has given out."""
    event = event_of(stored, stored.opened.life, 0.0)
    text = new_text(stored.opened.generation)
    return rebuild(event, text, eos_ids, 0.0, 0.0).deltas


def _item(token: TokenKept) -> TokenItem:
    logprob = token.logprob
    top = tuple(TopLogprob(t, value) for t, value in logprob.top) if logprob is not None else ()
    return TokenItem(
        token.request,
        0,
        0,
        token.token,
        logprob.logprob if logprob is not None else None,
        top,
    )
