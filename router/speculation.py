"""How many drafts a decode takes along, and how many were right. Pure.

Drafts cost computing that other requests could use, so they share a fixed number of tokens: alone a
request may have as many as are ever made, among many it has none. Never more than the text may
still have, than there is KV room for, and than every node of the route can verify.
"""

from __future__ import annotations

from dataclasses import dataclass

from helix_mq.drafting import Drafter
from helix_mq.features import VERIFY
from helix_mq.layers import Route
from helix_mq.messages.data import RefusedItem, TokenItem
from router.kv_books import KvBooks
from router.membership import Membership
from router.sessions import Session


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """`drafts_at_once`: of all requests together, shared evenly; rounded down, so that with more
    requests than that there are none."""

    enabled: bool = True
    max_drafts: int = 8
    drafts_at_once: int = 64


@dataclass(frozen=True, slots=True)
class DraftStatistics:
    """Tokens since the router started. `accepted`: drafts that turned out to be the next tokens."""

    drafted: int = 0
    accepted: int = 0


class Speculation:
    def __init__(self, settings: SpeculationSettings, members: Membership, books: KvBooks) -> None:
        self._settings = settings
        self._members = members
        self._books = books
        self._drafted = 0
        self._accepted = 0

    def drafts(self, session: Session, running: int) -> tuple[int, ...]:
        """For the next decode of a session that has its newest token; `running`: how many are on
        routes."""
        most = self._most(session, running)
        if session.drafter is None:
            if most < 1:
                return ()
            session.drafter = Drafter()
        drafts = session.drafter.draft((session.generation.prompt_ids, session.output), most)
        self._count(session, len(drafts), 0)
        return tuple(drafts)

    def _most(self, session: Session, running: int) -> int:
        settings, route = self._settings, session.route
        if not settings.enabled or session.direct or route is None:
            return 0
        # The pass gives one token beside those that were drafted.
        left = session.generation.sampling.max_tokens - len(session.output) - 1
        most = min(settings.max_drafts, settings.drafts_at_once // max(1, running), left)
        if most < 1 or not self._members.all_can(route.nodes, VERIFY):
            return 0
        tokens = session.length_tokens + most + 1
        return most if self._books.has_room_to_grow(session.request, route, tokens) else 0

    def at_first_hop(self, route: Route) -> bool:
        """Whether the first hop of a direct route is to draft; how much it knows better itself."""
        settings = self._settings
        wanted = settings.enabled and min(settings.max_drafts, settings.drafts_at_once) > 0
        return wanted and self._members.all_can(route.nodes, VERIFY)

    def token(self, session: Session, item: TokenItem) -> None:
        """An expected token has come. How many drafts a first hop made is the last hop's word."""
        self._count(session, item.drafted if session.direct else 0, 0)
        # Nodes of older releases do not say.
        if item.more and session.accepted_tokens < session.drafted_tokens:
            self._count(session, 0, 1)

    def _count(self, session: Session, drafted: int, accepted: int) -> None:
        self._drafted += drafted
        self._accepted += accepted
        session.drafted_tokens += drafted
        session.accepted_tokens += accepted

    def statistics(self) -> DraftStatistics:
        return DraftStatistics(self._drafted, self._accepted)


def token_fault(session: Session, item: TokenItem, vocab_size: int) -> RefusedItem | None:
    """Why an expected token cannot be the node's honest answer; None if it can."""
    highest = max(item.token, *(top.token for top in item.top)) if item.top else item.token
    if highest >= vocab_size:
        # It has no text, and sent on it would cost the other rows of its frame theirs.
        reason = f"it sampled token id {item.token} of a vocabulary of {vocab_size}"
    elif item.more and not session.direct and session.drafts[:1] != (item.token,):
        # What it says next was computed behind another text. Of a direct sequence the drafts are
        # not known here.
        reason = f"it went on behind token id {item.token}, which was not the draft there"
    else:
        return None
    return RefusedItem(item.request, item.attempt, "bad_token", reason)
