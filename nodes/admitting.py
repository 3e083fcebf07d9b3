"""Rows about to run: pages from the engine, or a refusal, whatever the engine comes to.

Drafts are guesses, so they get only room that nobody else needs: with less of it a row runs with
fewer, here and on every hop behind, and its last hop gives so many tokens fewer.
"""

from __future__ import annotations

import logging

import msgspec

from helix_mq.messages.data import RefusedItem
from nodes.batching import Work
from nodes.ledger import Ledger
from nodes.payload import Payload, cut_payload
from nodes.steps import StepEngine

log = logging.getLogger(__name__)


def not_admitted(work: Work[Payload], node: str) -> RefusedItem:
    """What a fault of StepEngine.admit comes to, while it is handled: a refusal of this row.
    Nothing that a row brings may end the step loop, and every other request with it."""
    log.exception("a row could not be admitted", extra={"request": [work.seq.request]})
    return RefusedItem(*work.seq, "step_failed", f"a row could not be admitted on {node}")


def without_crowding(engine: StepEngine, ledger: Ledger, work: Work[Payload]) -> Work[Payload]:
    """A row with drafts, or with those of them that have room; the rest of its frame is used up."""
    room = engine.draft_room(work)
    over = len(work.drafts) - room
    if over <= 0 or not ledger.shorten(work.seq, work.position, work.count, room):
        # What came behind it out of turn may need them: it runs whole, or is refused.
        return work
    work.payload.use.take(over)
    payload = cut_payload(work.payload, 0, 1 + room)
    return msgspec.structs.replace(work, count=1 + room, drafts=work.drafts[:room], payload=payload)
